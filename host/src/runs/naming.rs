use std::path::{Path, PathBuf};

use jiff::Timestamp;

use crate::{
    Paths, adapters, files,
    models::{self, file_name},
};

/// `2026-04-01-1530-3f9a`: sorts by time, easy to type the end of.
pub(super) fn new_id(paths: &Paths) -> (String, u64) {
    let now = files::now_secs();
    let secs = now as u64;
    let minute = Timestamp::from_second(secs.cast_signed()).unwrap_or_default().strftime("%Y-%m-%d-%H%M");
    let mut salt = ((now.fract() * 1e9) as u32) ^ std::process::id().wrapping_mul(0x9e37_79b9);
    loop {
        let id = format!("{minute}-{:04x}", (salt >> 8) & 0xffff);
        if !paths.runs().join(&id).exists() {
            return (id, secs);
        }
        salt = salt.wrapping_mul(0x9e37_79b9).wrapping_add(1);
    }
}

/// `smollm2-135m-instruct-pirate` of a model's name and a data file.
pub(super) fn made_up_name(model: &str, data: &str) -> String {
    let stem = |path: &str| {
        let path = PathBuf::from(path);
        let name = if models::is_gguf_path(&path) {
            path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default()
        } else {
            file_name(&path)
        };
        name.to_lowercase()
    };
    let data =
        Path::new(data).file_stem().map(|stem| stem.to_string_lossy().to_lowercase()).unwrap_or_default();
    adapters::clean_name(&format!("{}-{data}", stem(model)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_from_model_and_data() {
        assert_eq!(made_up_name("starter", "/x/Pirate talk.jsonl"), "starter-pirate-talk");
        assert_eq!(made_up_name("Qwen/Qwen3-0.6B", "/x/a.csv"), "qwen3-0.6b-a");
        assert_eq!(made_up_name("/m/Smol.Q4_1.gguf", "/x/a.csv"), "smol.q4_1-a");
    }
}
