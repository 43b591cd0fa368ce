//! Model folders as they occur in the wild, and what a person is told who meets a broken one.

#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
};

use flate2::{Compression, write::GzEncoder};
use lathe_tests::{Lathe, repo};
use serde_json::{Map, Value, json};

const INDEX: &str = "model.safetensors.index.json";
const SHARDS: [&str; 2] = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"];

/// A sound model in two shards.
fn model(lathe: &Lathe, name: &str) -> PathBuf {
    let (from, to) = (repo("tests/golden/data/tiny-llama"), lathe.path(name));
    fs::create_dir_all(&to).unwrap();
    for file in ["config.json", "tokenizer.json", "tokenizer_config.json"] {
        fs::copy(from.join(file), to.join(file)).unwrap();
    }
    let bytes = fs::read(from.join("model.safetensors")).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: Map<String, Value> = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    header.remove("__metadata__");
    let (data, half) = (&bytes[8 + length..], header.len() / 2);
    let mut places = BTreeMap::new();
    let tensors: Vec<(String, Value)> = header.into_iter().collect();
    for (tensors, shard) in [&tensors[..half], &tensors[half..]].into_iter().zip(SHARDS) {
        let (mut header, mut kept) = (Map::new(), Vec::new());
        for (name, entry) in tensors {
            let offset = |place: usize| entry["data_offsets"][place].as_u64().unwrap() as usize;
            let begin = kept.len();
            kept.extend(&data[offset(0)..offset(1)]);
            let mut entry = entry.clone();
            entry["data_offsets"] = json!([begin, kept.len()]);
            header.insert(name.clone(), entry);
            places.insert(name.clone(), shard);
        }
        let header = serde_json::to_vec(&header).unwrap();
        let bytes = [&(header.len() as u64).to_le_bytes(), header.as_slice(), &kept].concat();
        fs::write(to.join(shard), bytes).unwrap();
    }
    fs::write(to.join(INDEX), json!({"weight_map": places}).to_string()).unwrap();
    to
}

fn cut(path: &Path, by: u64) {
    let file = File::options().write(true).open(path).unwrap();
    file.set_len(file.metadata().unwrap().len() - by).unwrap();
}

fn gzip(path: &Path) {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(&fs::read(path).unwrap()).unwrap();
    fs::write(path, encoder.finish().unwrap()).unwrap();
}

/// The index says of its first tensor of the first shard that it lies in `shard`.
fn misplace(folder: &Path, shard: &str) {
    let mut index: Value = serde_json::from_slice(&fs::read(folder.join(INDEX)).unwrap()).unwrap();
    let places = index["weight_map"].as_object_mut().unwrap();
    *places.values_mut().find(|place| **place == SHARDS[0]).unwrap() = shard.into();
    fs::write(folder.join(INDEX), index.to_string()).unwrap();
}

fn data(lathe: &Lathe) -> String {
    let path = lathe.path("rows.jsonl");
    fs::write(&path, "{\"messages\": [{\"role\": \"user\", \"content\": \"hi\"}, {\"role\": \"assistant\", \"content\": \"ho\"}]}\n")
        .unwrap();
    path.display().to_string()
}

/// Everything that a person does with a model, in the order of the help.
fn commands<'a>(model: &'a str, data: &'a str, out: &'a str) -> [Vec<&'a str>; 5] {
    [
        vec!["models", "show", model],
        vec!["models", "verify", model],
        vec!["models", "import", model, "--name", "a/b"],
        vec!["chat", "--model", model, "-p", "hi", "--max-tokens", "2", "--device", "cpu"],
        vec!["train", "--model", model, "--data", data, "--max-steps", "1", "--out", out, "--device", "cpu"],
    ]
}

#[test]
fn a_model_whose_json_is_gzipped_is_a_model() {
    let lathe = Lathe::new();
    let folder = model(&lathe, "zipped");
    for name in ["config.json", "tokenizer.json", INDEX] {
        gzip(&folder.join(name));
    }
    let (name, data, out) =
        (folder.display().to_string(), data(&lathe), lathe.path("out").display().to_string());
    for args in commands(&name, &data, &out) {
        let output = lathe.run(&args);
        assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn a_broken_model_is_refused_with_a_sentence_that_names_the_file() {
    let lathe = Lathe::new();
    let data = data(&lathe);
    let check = |name: &str, file: &str, spoil: &dyn Fn(&Path)| {
        let folder = model(&lathe, name);
        spoil(&folder);
        let (model, out) = (folder.display().to_string(), lathe.path("out").display().to_string());
        for args in commands(&model, &data, &out) {
            let output = lathe.run(&args);
            let said = [output.stdout, output.stderr].concat();
            let said = String::from_utf8_lossy(&said);
            assert_eq!(output.status.code(), Some(1), "{args:?}: {said}");
            let errors: Vec<&str> = said.lines().filter(|line| line.contains(file)).collect();
            assert_eq!(errors.len(), 1, "{args:?}: {said}");
            assert!(!said.contains("panicked") && !said.contains("last words"), "{args:?}: {said}");
        }
        assert!(!lathe.path("out").join("adapter_model.safetensors").exists());
    };
    check("missing shard", SHARDS[1], &|folder| fs::remove_file(folder.join(SHARDS[1])).unwrap());
    check("cut weights", SHARDS[1], &|folder| cut(&folder.join(SHARDS[1]), 100));
    check("cut header", SHARDS[0], &|folder| {
        let path = folder.join(SHARDS[0]);
        cut(&path, fs::metadata(&path).unwrap().len() - 50);
    });
    check("elsewhere", SHARDS[1], &|folder| misplace(folder, SHARDS[1]));
    check("nowhere", "model-00003-of-00003.safetensors", &|folder| {
        misplace(folder, "model-00003-of-00003.safetensors");
    });
    check("cut index", INDEX, &|folder| cut(&folder.join(INDEX), 10));
    check("cut gzip", "config.json", &|folder| {
        gzip(&folder.join("config.json"));
        cut(&folder.join("config.json"), 20);
    });
    check("cut tokenizer", "tokenizer.json", &|folder| cut(&folder.join("tokenizer.json"), 10));
}
