//! What is given to Lathe from outside: arguments, double clicks, drops.

use std::path::{Path, PathBuf};

use lathe_protocol::Opened;

/// Of a command line: the first path that is there.
pub fn of_args(args: &[String], folder: &Path) -> Option<Opened> {
    let paths = args.iter().skip(1).filter(|arg| !arg.starts_with('-')).map(|arg| folder.join(arg));
    paths.filter(|path| path.exists()).map(|path| of_path(&path)).next()
}

fn of_path(path: &Path) -> Opened {
    let text = path.display().to_string();
    let is_gguf = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
    if path.join("adapter_config.json").exists() {
        Opened::Adapter { path: text }
    } else if is_gguf || path.join("config.json").exists() {
        Opened::Model { path: text }
    } else {
        // Data, or something that the wizard says it cannot use.
        Opened::Dropped { paths: vec![text] }
    }
}

/// Adapters go to the library; the wizard knows what to do with anything else.
pub fn dropped(paths: &[PathBuf]) -> Option<Opened> {
    match paths {
        [] => None,
        [path] if path.join("adapter_config.json").exists() => Some(of_path(path)),
        paths => {
            Some(Opened::Dropped { paths: paths.iter().map(|path| path.display().to_string()).collect() })
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_path_is_opened_as_what_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path();
        let path = |name: &str| folder.join(name).display().to_string();
        fs::create_dir_all(folder.join("adapter")).unwrap();
        fs::write(folder.join("adapter/adapter_config.json"), "{}").unwrap();
        fs::write(folder.join("adapter/config.json"), "{}").unwrap();
        fs::create_dir_all(folder.join("model")).unwrap();
        fs::write(folder.join("model/config.json"), "{}").unwrap();
        for name in ["m.GGUF", "rows.jsonl"] {
            fs::write(folder.join(name), "").unwrap();
        }
        let check = |arg: &str, expected: Option<Opened>| {
            assert_eq!(of_args(&["lathe-desktop".into(), arg.into()], folder), expected, "{arg}");
        };
        check("adapter", Some(Opened::Adapter { path: path("adapter") }));
        check("model", Some(Opened::Model { path: path("model") }));
        check("m.GGUF", Some(Opened::Model { path: path("m.GGUF") }));
        check("rows.jsonl", Some(Opened::Dropped { paths: vec![path("rows.jsonl")] }));
        check("gone", None);
        check("--flag", None);
        let both = [folder.join("model"), folder.join("rows.jsonl")];
        assert_eq!(dropped(&both), Some(Opened::Dropped { paths: vec![path("model"), path("rows.jsonl")] }));
        assert_eq!(dropped(&[]), None);
    }
}
