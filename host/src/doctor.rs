use std::time::Duration;

use lathe_protocol::{CheckStatus, DoctorCheck, EventBody};

use crate::{
    Paths,
    cuda::{self, Missing},
    db::Db,
    error::Result,
    files, gpus, hardware,
    job::Job,
    models, settings,
    units::gib,
    worker,
};

const LITTLE_DISK_BYTES: u64 = 2 << 30;
const LITTLE_RAM_BYTES: u64 = 4 << 30;

/// Checks the installation. What is wrong with it is the answer, not a failure.
pub(crate) fn check(job: &mut Job) {
    let paths = job.host.paths().clone();
    let mut checks =
        vec![data_dir(&paths), disk(&paths), database(&paths), settings_file(&paths), hf_cache(&paths)];
    checks.push(answers("worker", worker::probe(job, None)));
    checks.extend(cards(job));
    checks.push(starter(&paths));
    checks.extend(machine(&paths));
    job.emit(EventBody::Doctor { checks });
}

/// How a worker starts.
fn answers(name: &str, took: Result<Duration>) -> DoctorCheck {
    match took {
        Ok(took) => ok(name, format!("Starts and answers in {} ms", took.as_millis())),
        Err(error) => {
            let hint = error.hint.unwrap_or_else(|| "reinstall Lathe".into());
            let details = error.details.map(|details| format!("; it said: {details}")).unwrap_or_default();
            fail(name, format!("{}{details}", error.message), hint)
        }
    }
}

/// Each card, and what stands in its way. A machine without one is sound.
fn cards(job: &Job) -> Vec<DoctorCheck> {
    let host = &job.host;
    let seen = host.gpus.look(&host.options);
    let mut checks: Vec<DoctorCheck> = Vec::new();
    for gpu in &seen.gpus {
        let (device, name) = (gpu.device(), &gpu.name);
        checks.push(if gpu.is_usable {
            ok(&device, format!("Can be used: {name}"))
        } else if let Some(lacks) = cuda::card_lacks(gpu, host.options.cuda_visible.as_deref()) {
            warn(&device, lacks, "compute on another, or on the CPU with --device cpu")
        } else {
            warn(&device, format!("Cannot be used yet: {name}"), "each thing that is missing follows")
        });
    }
    for Missing { name, message, hint, looked } in &seen.missing {
        let looked: Vec<String> = looked.iter().map(|folder| folder.display().to_string()).collect();
        let looked =
            if looked.is_empty() { String::new() } else { format!(", looked for in {}", looked.join(", ")) };
        checks.push(warn(name, format!("{message}{looked}"), hint));
    }
    match (seen.usable().next(), &seen.gpu_note) {
        (Some(gpu), _) => {
            // A job has one worker, and this one had its.
            checks.push(answers("cuda worker", worker::probe(&mut Job::unheard(host.clone()), Some(gpu))));
        }
        (None, Some(note)) if seen.missing.is_empty() => checks.push(ok("gpu", note.clone())),
        (None, _) => {}
    }
    checks
}

fn ok(name: &str, message: String) -> DoctorCheck {
    DoctorCheck { name: name.into(), status: CheckStatus::Ok, message, hint: None }
}

fn warn(name: &str, message: String, hint: impl Into<String>) -> DoctorCheck {
    DoctorCheck { name: name.into(), status: CheckStatus::Warn, message, hint: Some(hint.into()) }
}

fn fail(name: &str, message: String, hint: impl Into<String>) -> DoctorCheck {
    DoctorCheck { name: name.into(), status: CheckStatus::Fail, message, hint: Some(hint.into()) }
}

fn data_dir(paths: &Paths) -> DoctorCheck {
    const NAME: &str = "data folder";
    let dir = &paths.data_dir;
    let probe = files::aside(&dir.join("doctor"));
    match files::write_atomic(&probe, b"lathe") {
        Ok(()) => {
            files::remove_quietly(&probe);
            ok(NAME, format!("Can be written: {}", dir.display()))
        }
        Err(error) => fail(NAME, error.message, "choose another with --data-dir or LATHE_DATA_DIR"),
    }
}

fn disk(paths: &Paths) -> DoctorCheck {
    const NAME: &str = "disk";
    let (total, free) = hardware::disk_of(&paths.data_dir);
    let message = format!("{} of {} free: {}", gib(free), gib(total), paths.data_dir.display());
    match total {
        0 => {
            warn(NAME, format!("Size unknown: {}", paths.data_dir.display()), "check that the disk has room")
        }
        _ if free < LITTLE_DISK_BYTES => {
            warn(NAME, message, "models and checkpoints need room: free some space")
        }
        _ => ok(NAME, message),
    }
}

fn database(paths: &Paths) -> DoctorCheck {
    const NAME: &str = "database";
    const HINT: &str = "move it away: it is rebuilt from the run folders";
    let path = paths.db();
    match Db::open(&path).and_then(|db| Ok((db.quick_check()?, db.runs()?.len()))) {
        Ok((verdict, runs)) if verdict == "ok" => {
            ok(NAME, format!("Sound, {runs} {}: {}", if runs == 1 { "run" } else { "runs" }, path.display()))
        }
        Ok((verdict, _)) => fail(NAME, format!("Damaged: {verdict}: {}", path.display()), HINT),
        Err(error) => fail(NAME, error.message, error.hint.unwrap_or_else(|| HINT.into())),
    }
}

fn settings_file(paths: &Paths) -> DoctorCheck {
    const NAME: &str = "settings";
    let path = &paths.settings;
    match settings::load(path) {
        Ok(_) if path.exists() => ok(NAME, format!("Sound: {}", path.display())),
        Ok(_) => ok(NAME, format!("The defaults, until some are saved: {}", path.display())),
        Err(error) => warn(NAME, error.message, error.hint.unwrap_or_else(|| "mend the file".into())),
    }
}

fn hf_cache(paths: &Paths) -> DoctorCheck {
    const NAME: &str = "model cache";
    let cache = &paths.hf_cache;
    if !cache.exists() {
        return ok(NAME, format!("Empty, made at the first import: {}", cache.display()));
    }
    let broken = |models: &[lathe_protocol::ModelEntry]| {
        models
            .iter()
            .filter(|model| model.problem.is_some())
            .map(|model| model.name.clone())
            .collect::<Vec<_>>()
    };
    match models::list(paths) {
        Ok(models) => match broken(&models).as_slice() {
            [] => ok(NAME, format!("Readable, {} on disk: {}", count(models.len()), cache.display())),
            broken => warn(
                NAME,
                format!(
                    "{} of {} on disk cannot be used: {}: {}",
                    broken.len(),
                    count(models.len()),
                    broken.join(", "),
                    cache.display()
                ),
                "`lathe models list` says why",
            ),
        },
        Err(error) => fail(NAME, error.message, "check the folder's permissions, or set HF_HUB_CACHE"),
    }
}

fn count(models: usize) -> String {
    if models == 1 { "1 model".into() } else { format!("{models} models") }
}

fn starter(paths: &Paths) -> DoctorCheck {
    const NAME: &str = "starter model";
    match models::starter::folder(paths) {
        Ok(folder) => ok(NAME, format!("Ready: {}", folder.display())),
        Err(error) => {
            let hint = error.hint.unwrap_or_else(|| "check the data folder".into());
            if models::starter::is_built_in() {
                fail(NAME, error.message, hint)
            } else {
                warn(NAME, error.message, hint)
            }
        }
    }
}

fn machine(paths: &Paths) -> [DoctorCheck; 2] {
    let machine = hardware::detect(paths, gpus::Seen::default());
    let cores = machine.logical_cores;
    let fast = machine.cpu_features.iter().any(|feature| feature == "avx2" || feature == "neon");
    let threads = format!("{cores} {}", if cores == 1 { "thread" } else { "threads" });
    let cpu = if fast {
        ok("cpu", format!("{threads}, {}", machine.cpu))
    } else {
        warn("cpu", format!("{threads}, no AVX2: {}", machine.cpu), "training will be slow on this CPU")
    };
    let memory = format!("{} of {} free", gib(machine.ram_available_bytes), gib(machine.ram_total_bytes));
    let ram = if machine.ram_total_bytes < LITTLE_RAM_BYTES {
        warn("memory", memory, "only small models fit: the starter, or one of about 100 million parameters")
    } else {
        ok("memory", memory)
    };
    [cpu, ram]
}
