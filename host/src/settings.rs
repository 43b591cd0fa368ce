//! `settings.toml`: what a person chose, kept in a file that can be edited by hand.

use std::{fs, io, path::Path};

use lathe_protocol::{ErrorCode, ErrorInfo, EventBody, Settings, SettingsView};

use crate::{
    error::{Result, io_error, usage},
    files,
    job::Job,
    token,
};

/// The defaults, if there is no such file.
pub(crate) fn load(path: &Path) -> Result<Settings> {
    let text = match fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Settings::default()),
        Err(error) => return Err(io_error("read the settings", path)(error)),
    };
    toml::from_str(&text).map_err(|error| {
        let message = format!("The settings cannot be used: {}: {}", error.message(), path.display());
        ErrorInfo::new(ErrorCode::Usage, message)
            .hint("mend the file, or save the settings again; until then the defaults hold")
    })
}

/// Of a damaged file: the defaults, then the error.
pub(crate) fn show(job: &Job) -> Result<()> {
    let paths = job.host.paths();
    let loaded = load(&paths.settings);
    job.emit(EventBody::Settings(Box::new(SettingsView {
        settings: loaded.as_ref().cloned().unwrap_or_default(),
        path: paths.settings.display().to_string(),
        data_dir: paths.data_dir.display().to_string(),
        hf_cache: paths.hf_cache.display().to_string(),
        token: token::status(&job.host.options.net),
        version: env!("CARGO_PKG_VERSION").into(),
    })));
    loaded.map(drop)
}

pub(crate) fn save(job: &Job, settings: &Settings) -> Result<()> {
    let path = &job.host.paths().settings;
    let settings = checked(settings)?;
    let text = toml::to_string(&settings).map_err(|error| {
        ErrorInfo::new(ErrorCode::Internal, format!("The settings cannot be written: {error}"))
    })?;
    if let Some(folder) = path.parent() {
        files::create_dir_all(folder)?;
    }
    files::write_atomic(path, text.as_bytes())?;
    show(job)
}

/// Without blanks around its texts. An error if something cannot be.
fn checked(settings: &Settings) -> Result<Settings> {
    let folder = |folder: &Option<String>| match folder.as_deref().map(str::trim) {
        None | Some("") => Ok(None),
        Some(folder) if Path::new(folder).is_absolute() => Ok(Some(folder.to_owned())),
        Some(folder) => {
            Err(usage(format!("Not a folder's full path: {folder}")).hint("write the path from the root on"))
        }
    };
    let endpoint = settings.endpoint.trim().trim_end_matches('/');
    if !endpoint.starts_with("https://") && !endpoint.starts_with("http://") {
        return Err(usage(format!("Not the address of a Hub: {endpoint:?}"))
            .hint(format!("the usual one is {}", Settings::default().endpoint)));
    }
    Ok(Settings {
        endpoint: endpoint.to_owned(),
        hf_cache: folder(&settings.hf_cache)?,
        data_dir: folder(&settings.data_dir)?,
        ..settings.clone()
    })
}

#[cfg(all(test, unix))]
mod tests {
    use lathe_protocol::{CommandBody, Theme};

    use super::*;
    use crate::testing::{Bench, ask, failure};

    fn view(events: &[EventBody]) -> &SettingsView {
        match &events[0] {
            EventBody::Settings(view) => view,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn settings_come_back_as_they_were_saved() {
        let bench = Bench::new();
        let mut host = bench.shell_host("exit 1");
        assert_eq!(view(&ask(&mut host, 1, CommandBody::SettingsShow)).settings, Settings::default());
        assert!(!bench.paths.settings.exists());
        let settings = Settings {
            theme: Theme::Dark,
            threads: 3,
            endpoint: " https://hub.example/ ".into(),
            hf_cache: Some(String::new()),
            data_dir: Some("/data".into()),
            token_cache_gb: 5,
        };
        let events = ask(&mut host, 2, CommandBody::SettingsSave(settings));
        let saved = view(&events);
        assert_eq!((saved.settings.endpoint.as_str(), saved.settings.threads), ("https://hub.example", 3));
        assert_eq!(
            (saved.settings.hf_cache.as_deref(), saved.settings.data_dir.as_deref()),
            (None, Some("/data"))
        );
        assert_eq!(load(&bench.paths.settings).unwrap(), saved.settings);
        assert_eq!(saved.data_dir, bench.paths.data_dir.display().to_string(), "until the next start");

        let wrong = Settings { endpoint: "hub".into(), ..Settings::default() };
        let error = failure(&ask(&mut host, 3, CommandBody::SettingsSave(wrong)));
        assert!(error.hint.unwrap().contains("huggingface.co"), "{}", error.message);
        let wrong = Settings { data_dir: Some("here".into()), ..Settings::default() };
        failure(&ask(&mut host, 4, CommandBody::SettingsSave(wrong)));
        assert_eq!(load(&bench.paths.settings).unwrap(), saved.settings);
    }

    #[test]
    fn a_damaged_file_is_named_and_stays_until_settings_are_saved() {
        let bench = Bench::new();
        fs::write(&bench.paths.settings, "threads = \"many\"").unwrap();
        let mut host = bench.shell_host("exit 1");
        let events = ask(&mut host, 1, CommandBody::SettingsShow);
        assert_eq!(view(&events).settings, Settings::default());
        let error = failure(&events);
        assert!(error.message.ends_with("settings.toml") && error.hint.is_some(), "{error}");
        assert_eq!(fs::read_to_string(&bench.paths.settings).unwrap(), "threads = \"many\"");
        let events = ask(&mut host, 2, CommandBody::SettingsSave(Settings::default()));
        assert_eq!(events.last(), Some(&EventBody::Done));
    }

    #[test]
    fn a_job_computes_on_the_threads_that_were_chosen() {
        let bench = Bench::new();
        let told = bench.path("threads");
        let mut host = bench.shell_host(&format!("echo $RAYON_NUM_THREADS > {}; exit 1", told.display()));
        ask(&mut host, 1, CommandBody::SettingsSave(Settings { threads: 3, ..Settings::default() }));
        ask(&mut host, 2, CommandBody::Doctor);
        assert_eq!(fs::read_to_string(told).unwrap().trim(), "3");
    }
}
