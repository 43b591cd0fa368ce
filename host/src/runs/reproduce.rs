//! The command line that does a run again, and what differs by now.

use std::path::Path;

use lathe_protocol::{
    BaseMatch, ErrorInfo, EventBody, FilePrint, Job as WorkerJob, Origins, RunConfig, TrainJob,
};

use super::{find, folder, open_db};
use crate::{
    Paths, config,
    db::RunRecord,
    error::Result,
    files, hardware,
    job::Job,
    models,
    worker::{self, Beat, Verdict},
};

/// Hashes the run's files as they are now, in a worker, and compares.
pub(crate) fn reproduce(job: &mut Job, name: &str) -> Result<()> {
    let record = find(&job.host, &open_db(job.host.paths())?, name)?;
    let args = arguments(job.host.paths(), &record)?;
    let run = record.entry.id.clone();
    let command = format!("lathe {}", args.iter().map(|arg| quoted(arg)).collect::<Vec<_>>().join(" "));
    let answer = |warnings| EventBody::Reproduction { run, args, command, warnings };
    let begun: Option<Origins> = files::read_json(&Path::new(&record.entry.out_dir).join(Origins::NAME)).ok();
    let Some(begun) = begun else {
        let warning = format!(
            "{} is missing or damaged: whether its files are as they were is not known",
            Origins::NAME
        );
        job.emit(answer(vec![warning]));
        return Ok(());
    };
    let mut warnings = since(&begun, &record);
    match now(job, &record) {
        Ok(now) => warnings.extend(differences(&begun, &now)),
        Err(error) => warnings.push(format!("The run's files cannot be compared: {error}")),
    }
    job.emit(answer(warnings));
    Ok(())
}

/// What follows `lathe` on the command line: what differs from the defaults, and nothing of this run's own.
fn arguments(paths: &Paths, record: &RunRecord) -> Result<Vec<String>> {
    let RunRecord { entry, config: run_config, eval_data, init_adapter, force } = record;
    let mut args: Vec<String> = ["train", "--model", &entry.model].map(String::from).into();
    let mut flag = |name: &str, value: &str| args.extend([name.to_owned(), value.to_owned()]);
    let mut run_config = run_config.clone();
    // Files with columns of their own have no such form: those are left to the run's own file.
    if run_config.data.iter().all(|file| file.columns.is_empty()) {
        run_config.data.iter().for_each(|file| flag("--data", &file.to_string()));
        if run_config.data.is_empty() {
            flag("--data", &entry.data);
        }
        run_config.data.clear();
    }
    if let Some(eval_data) = eval_data {
        flag("--eval-data", eval_data);
    }
    if let Some(adapter) = init_adapter {
        flag("--init-adapter", adapter);
    }
    match config::as_sets(&run_config) {
        Some(sets) => sets.iter().for_each(|set| flag("--set", set)),
        // Styles with settings, say, or a name with a comma: the run's own file has every value.
        None => flag("--config", &folder::of_run(entry)?.join(folder::CONFIG).display().to_string()),
    }
    flag("--device", entry.runs_on.as_deref().unwrap_or(&entry.device));
    if Paths::detect(None).ok().is_none_or(|usual| usual.data_dir != paths.data_dir) {
        flag("--data-dir", &paths.data_dir.display().to_string());
    }
    if *force {
        args.push("--force".into());
    }
    Ok(args)
}

/// As a shell takes it for one word: a POSIX shell's, or on Windows what both of its shells read so.
fn quoted(arg: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./=,:+@%".contains(c);
    if !arg.is_empty() && arg.chars().all(is_plain) {
        return arg.to_owned();
    }
    if cfg!(windows) { format!("\"{arg}\"") } else { format!("'{}'", arg.replace('\'', r"'\''")) }
}

/// What of the run, the program and the machine is not as it was when the run began.
fn since(begun: &Origins, record: &RunRecord) -> Vec<String> {
    let mut warnings = Vec::new();
    let mut changed = |what: &str, then: &str, now: &str| {
        if then != now {
            warnings.push(format!("{what} was {then}, is {now} now"));
        }
    };
    changed("The version of Lathe", &begun.lathe, env!("CARGO_PKG_VERSION"));
    let machine = hardware::machine();
    changed("The processor", &begun.machine.cpu, &machine.cpu);
    // A config of another version may have other keys; then only the version is told of.
    if let Ok(config_then) = serde_json::from_value::<RunConfig>(begun.config.clone().into()) {
        for (key, then, now) in config::differences(&config_then, &record.config) {
            changed(&format!("{key}, changed when the run was resumed,"), &then, &now);
        }
    }
    warnings
}

/// What a worker finds of the run's files.
fn now(job: &mut Job, record: &RunRecord) -> Result<Origins> {
    let RunRecord { entry, config, eval_data, init_adapter, force } = record.clone();
    let model = models::resolve(job.host.paths(), &entry.model)?.path_string();
    let work = WorkerJob::Origins(Box::new(TrainJob {
        model,
        model_name: entry.model,
        data: entry.data,
        eval_data,
        out_dir: entry.out_dir,
        config,
        init_adapter,
        resume: false,
        device: "cpu".into(),
        force,
        machine: hardware::machine(),
        cache: job.host.paths().token_cache().display().to_string(),
    }));
    let grace = job.host.options.stop_grace;
    let mut now = None;
    worker::run(job, work, grace, &mut |_, beat| {
        if let Beat::Event(EventBody::Origins(origins)) = beat {
            now = Some(origins.clone());
        }
        Verdict::Continue
    })?;
    let silent = || ErrorInfo::new(lathe_protocol::ErrorCode::Internal, "the worker said nothing of them");
    now.map(|now| *now).ok_or_else(silent)
}

fn differences(begun: &Origins, now: &Origins) -> Vec<String> {
    let mut found = Vec::new();
    match begun.base.matches(&now.base) {
        BaseMatch::Same => {}
        BaseMatch::OtherForm(warning) => found.push(warning),
        BaseMatch::Other(lines) => found.push(format!("The model has changed: {}", lines.join("; "))),
    }
    for (what, then, now) in [
        ("tokenizer", &begun.tokenizer_hash, &now.tokenizer_hash),
        ("chat template", &begun.template_hash, &now.template_hash),
    ] {
        if then != now {
            found.push(format!("The {what} has changed since"));
        }
    }
    let files = |origins: &Origins| -> Vec<(&'static str, FilePrint)> {
        let Origins { data, eval_data, init_adapter, .. } = origins.clone();
        let data = data.into_iter().map(|file| ("data", file));
        let eval_data = eval_data.into_iter().map(|file| ("held-out data", file));
        data.chain(eval_data).chain(init_adapter.map(|file| ("adapter it starts from", file))).collect()
    };
    let files_now = files(now);
    for (what, then) in files(begun) {
        match files_now.iter().find(|(kind, file)| *kind == what && file.path == then.path) {
            None => found.push(format!("The {what} is gone: {}", then.path)),
            Some((_, file)) if file.sha256 != then.sha256 => {
                found.push(format!(
                    "The {what} has changed, {} bytes then, {} now: {}",
                    then.size_bytes, file.size_bytes, then.path
                ));
            }
            Some(_) => {}
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(unix)]
    fn a_shell_reads_back_what_was_quoted() {
        let words =
            ["plain", "--set", "a b", "it's", "", "$HOME `x` \"y\" \\", "{1..3}*?~", "ä\nb", "regex:.*[qv]"];
        let line = words.map(quoted).join(" ");
        let script = format!("printf '%s\\0' {line}");
        let output = std::process::Command::new("sh").args(["-c", &script]).output().unwrap();
        let read: Vec<_> = output.stdout.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
        assert_eq!(read[..words.len()], words);
    }

    #[test]
    fn what_differs_is_named() {
        let file = |path: &str, sha256: &str| FilePrint {
            path: path.into(),
            sha256: sha256.into(),
            ..FilePrint::default()
        };
        let mut begun: Origins =
            serde_json::from_str(r#"{"lathe": "0.1.0", "base": {"weights_hash": "a", "index_hash": "i"}}"#)
                .unwrap();
        begun.data = vec![file("/a.jsonl", "1"), file("/b.jsonl", "2")];
        assert!(differences(&begun, &begun).is_empty());
        let mut now = begun.clone();
        now.data = vec![file("/b.jsonl", "3")];
        now.template_hash = "other".into();
        now.base.weights_hash = "b".into();
        let found = differences(&begun, &now);
        let begins: Vec<_> = found.iter().map(|line| line.split([',', ':']).next().unwrap()).collect();
        let expected = [
            "The model has changed",
            "The chat template has changed since",
            "The data is gone",
            "The data has changed",
        ];
        assert_eq!(begins, expected);
    }
}
