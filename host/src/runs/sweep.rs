//! A sweep: a queued run for each combination of the values of one or two keys.

use lathe_protocol::{
    ErrorCode, ErrorInfo, EventBody, MAX_SWEEP_KEYS, RunConfig, RunEntry, RunStatus, SweepKey, SweepPlace,
    SweepRequest, SweepValue, TrainRequest, TrainStart, sweep_points,
};

use super::{
    all, delete, entries,
    folder::{self, LockedFolder},
    naming::made_up_name,
    open_db, status_word, train,
};
use crate::{
    Shared, adapters, config,
    db::Db,
    error::{Result, did_you_mean, near, not_found, usage},
    host::data_path,
    job::Job,
    models,
};

/// A run's name has no more characters.
const LONGEST_NAME: usize = 80;

/// Queues the runs of a sweep, all or none.
pub(crate) fn sweep(job: &Job, request: SweepRequest) -> Result<()> {
    let SweepRequest { train, keys } = request;
    let configs = configs(&train.config, &keys)?;
    let host = &job.host;
    let db = open_db(host.paths())?;
    let name = name(host, &db, &train)?;
    let mut made: Vec<RunEntry> = Vec::new();
    for (index, (values, config)) in configs.into_iter().enumerate() {
        let request = TrainRequest {
            config,
            out_dir: None,
            name: Some(run_name(&name, index, &values)),
            start: TrainStart::Queued,
            ..train.clone()
        };
        let place = SweepPlace { name: name.clone(), index, values };
        match train::create(host, request, Some(place)) {
            Ok(created) => made.push(created.record.entry),
            Err(error) => {
                undo(host, &db, &made);
                return Err(error);
            }
        }
    }
    job.emit(EventBody::Runs { runs: of_sweep(host, &db, &name)? });
    Ok(())
}

/// A sweep that cannot be made whole leaves nothing, but for what the queue has started already.
fn undo(host: &Shared, db: &Db, made: &[RunEntry]) {
    for entry in made {
        if db.dequeue(&entry.id).unwrap_or(false) {
            // The error that led here says more.
            drop(delete(host.paths(), db, entry));
        }
    }
}

/// Each combination of values, and the config it makes of `base`: every one in range, no two the same.
fn configs(base: &RunConfig, keys: &[SweepKey]) -> Result<Vec<(Vec<SweepValue>, RunConfig)>> {
    if keys.is_empty() || keys.len() > MAX_SWEEP_KEYS {
        let message = format!("A sweep has one key or two, not {}", keys.len());
        return Err(usage(message).hint("write e.g. --grid learning_rate=1e-4,3e-4 --grid lora.r=8,16"));
    }
    if let [first, second] = keys
        && first.key == second.key
    {
        return Err(usage(format!("{} is swept twice", first.key)).hint("give its values in one list"));
    }
    for SweepKey { key, values } in keys {
        if values.is_empty() {
            return Err(usage(format!("{key} has no values to sweep")).hint(format!("write {key}=A,B")));
        }
        let of = |value: &String| config::build_on(base, None, &[format!("{key}={value}")]);
        let seen = values.iter().map(of).collect::<Result<Vec<_>>>()?;
        for (index, config) in seen.iter().enumerate() {
            if let Some(before) = seen[..index].iter().position(|other| other == config) {
                let (a, b) = (&values[before], &values[index]);
                let message = if a == b {
                    format!("{key} = {a} is there twice")
                } else {
                    format!("{key} = {a} and {key} = {b} are the same")
                };
                return Err(usage(message).hint("give each value once"));
            }
        }
    }
    let with_config = |values: Vec<SweepValue>| {
        let sets: Vec<String> = values.iter().map(|value| format!("{}={}", value.key, value.value)).collect();
        let config = config::build_on(base, None, &sets)?;
        config::validate(&config).map_err(|error| ErrorInfo {
            message: format!("{}: {}", sets.join(", "), error.message),
            ..error
        })?;
        Ok((values, config))
    };
    sweep_points(keys).into_iter().map(with_config).collect()
}

/// The sweep's name: the one asked for, which must be free, or one made of model and data.
fn name(host: &Shared, db: &Db, train: &TrainRequest) -> Result<String> {
    let runs = all(host, db)?;
    let is_taken = |name: &str| {
        runs.iter().any(|run| {
            run.entry.name == name || run.entry.sweep.as_ref().is_some_and(|place| place.name == name)
        })
    };
    if let Some(name) = &train.name {
        adapters::check_name(name)?;
        if is_taken(name) {
            return Err(usage(format!("The name {name:?} is taken")).hint("choose another with --name"));
        }
        return Ok(name.clone());
    }
    let model = models::resolve(host.paths(), &train.model)?.name;
    let wanted = format!("{}-sweep", made_up_name(&model, &data_path(&train.data)?));
    let names = (2..).map(|count| format!("{wanted}-{count}"));
    let mut names = std::iter::once(wanted.clone()).chain(names);
    Ok(names.find(|name| !is_taken(name)).unwrap_or(wanted))
}

/// `pirate-sweep-learning_rate-1e-4-r-8`, or with its number if that is too long.
fn run_name(sweep: &str, index: usize, values: &[SweepValue]) -> String {
    let values = values
        .iter()
        .map(|SweepValue { key, value }| format!("{}-{value}", key.rsplit('.').next().unwrap_or(key)));
    let values = values.collect::<Vec<_>>().join("-");
    let is_plain = |c: char| c.is_alphanumeric() || "-_.".contains(c);
    let values: String = values.chars().map(|c| if is_plain(c) { c } else { '-' }).collect();
    let name = format!("{sweep}-{}", values.trim_end_matches(['.', '-']));
    if name.chars().count() <= LONGEST_NAME { name } else { format!("{sweep}-{}", index + 1) }
}

/// Puts those runs of a sweep that were stopped or interrupted back into the queue.
pub(crate) fn resume_sweep(job: &Job, name: &str) -> Result<()> {
    let host = &job.host;
    let db = open_db(host.paths())?;
    let runs = of_sweep(host, &db, name)?;
    for run in &runs {
        if matches!(run.status, RunStatus::Stopped | RunStatus::Interrupted) {
            // Nobody may be starting it meanwhile.
            let _folder = LockedFolder::open(folder::of_run(run)?)?;
            db.enqueue(&run.id)?;
        }
    }
    let runs = of_sweep(host, &db, name)?;
    if !runs.iter().any(|run| matches!(run.status, RunStatus::Queued | RunStatus::Running)) {
        let told: Vec<String> =
            runs.iter().map(|run| format!("{} is {}", run.name, status_word(run.status))).collect();
        return Err(ErrorInfo::new(ErrorCode::NotFound, format!("Nothing of sweep {name} can go on"))
            .hint(format!("`lathe runs compare {name}` shows it: {}", told.join(", "))));
    }
    job.emit(EventBody::Runs { runs });
    Ok(())
}

/// The runs of a sweep in their order. An error if there are none.
fn of_sweep(host: &Shared, db: &Db, name: &str) -> Result<Vec<RunEntry>> {
    let runs = entries(host, db)?;
    let place =
        |run: &RunEntry| run.sweep.as_ref().filter(|place| place.name == name).map(|place| place.index);
    let mut found: Vec<RunEntry> = runs.iter().filter(|run| place(run).is_some()).cloned().collect();
    if found.is_empty() {
        let sweeps = runs.iter().filter_map(|run| Some(run.sweep.as_ref()?.name.as_str()));
        let hint = did_you_mean(&near(name, sweeps), "`lathe runs list` shows the runs");
        return Err(not_found(format!("No sweep named {name:?}")).hint(hint));
    }
    found.sort_by_key(|run| place(run));
    Ok(found)
}
