//! A data file, in the format that its first byte picks, to conversations.

#![no_main]

use std::{collections::BTreeMap, path::PathBuf, sync::LazyLock};

use lathe_engine::data;
use lathe_fuzz::{folder, spare_expected_panics};
use libfuzzer_sys::fuzz_target;

static FOLDER: LazyLock<PathBuf> = LazyLock::new(|| folder("rows"));
const FORMATS: [&str; 7] = ["jsonl", "json", "csv", "txt", "tsv", "jsonl.gz", "parquet"];

fuzz_target!(init: spare_expected_panics(), |bytes: &[u8]| {
    let Some((format, bytes)) = bytes.split_first() else { return };
    let path = FOLDER.join("rows").with_extension(FORMATS[usize::from(*format) % FORMATS.len()]);
    std::fs::write(&path, bytes).expect("written");
    let Ok(dataset) = data::read_examples(&path, &BTreeMap::new()) else { return };
    for example in &dataset.examples {
        drop(data::parse_conversation(example, dataset.shape, &path));
    }
});
