use std::{path::PathBuf, sync::atomic::AtomicBool};

use lathe_protocol::{EventBody, LogLevel, Objective};
use serde_json::json;

use super::*;
use crate::tokenize::TokenizedRow;

/// Data files in a folder, and a cache beside them.
struct World {
    folder: tempfile::TempDir,
    text_files: TextFiles,
}

impl World {
    fn new() -> Self {
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/data/tiny-qwen3");
        Self { folder: tempfile::tempdir().unwrap(), text_files: TextFiles::open(&model).unwrap() }
    }

    fn cache(&self) -> PathBuf {
        self.folder.path().join("cache")
    }

    fn write(&self, name: &str, answers: &[&str]) -> DataFile {
        let row = |answer: &&str| {
            json!({"messages": [{"role": "user", "content": format!("What of {answer}?")},
                                {"role": "assistant", "content": answer}]})
            .to_string()
        };
        let path = self.folder.path().join(name);
        std::fs::write(&path, answers.iter().map(row).collect::<Vec<_>>().join("\n")).unwrap();
        DataFile::new(path.display().to_string())
    }

    fn read(&self, files: &[DataFile], eval_data: Option<&str>, config: &RunConfig) -> Result<Corpus> {
        self.read_telling(files, eval_data, config, &mut drop)
    }

    fn read_telling(
        &self,
        files: &[DataFile],
        eval_data: Option<&str>,
        config: &RunConfig,
        emit: &mut dyn FnMut(EventBody),
    ) -> Result<Corpus> {
        let (cache, stop) = (self.cache(), AtomicBool::new(false));
        read(&self.text_files, files, eval_data, config, &mut Reading { cache: &cache, stop: &stop, emit })
    }

    /// Whether reading a file makes tokens, or finds them; and what warnings it gives.
    fn tokenises(&self, file: &DataFile) -> (bool, Vec<String>) {
        let (mut makes, mut warnings) = (false, Vec::new());
        self.read_telling(
            std::slice::from_ref(file),
            None,
            &RunConfig::default(),
            &mut |event| match event {
                EventBody::Progress { what, .. } => makes |= what.starts_with("Tokenising"),
                EventBody::Log { level: LogLevel::Warn, message } => warnings.push(message),
                _ => {}
            },
        )
        .unwrap();
        (makes, warnings)
    }

    fn entries(&self) -> Vec<PathBuf> {
        std::fs::read_dir(self.cache()).unwrap().map(|entry| entry.unwrap().path()).collect()
    }
}

fn places(rows: &StoredRows) -> Vec<String> {
    (0..rows.len()).map(|row| rows.place(row).to_string()).collect()
}

#[test]
fn stored_rows_are_those_that_are_prepared_in_memory() {
    let world = World::new();
    let long = "long ".repeat(40);
    let file = world.write("a.jsonl", &["one", &long, "three"]);
    let config = RunConfig { max_seq_len: 60, ..RunConfig::default() };
    let corpus = world.read(std::slice::from_ref(&file), None, &config).unwrap();
    let dataset = crate::data::read_examples(Path::new(&file.path), &file.columns).unwrap();
    let expected = prepare::rows(&world.text_files, &dataset, 60).unwrap();
    let rows = Rows::Stored(corpus.rows);
    let found: Vec<_> = (0..rows.len()).map(|row| rows.get(row).unwrap().into_owned()).collect();
    assert_eq!(found, expected);
    assert_eq!(rows.lengths(), expected.iter().map(|row| row.ids.len()).collect::<Vec<_>>());
    assert!(!found.is_empty());
}

#[test]
fn stored_pairs_have_both_sides_each_cut_alone() {
    let world = World::new();
    let long = format!(" yes{}", ", indeed".repeat(20));
    let rows = [["a", " yes", " no"], ["b", " same", " same"], ["c", &long, " no"], ["d", " yes", &long]];
    let line = |[prompt, chosen, rejected]: [&str; 3]| {
        json!({"prompt": prompt, "chosen": chosen, "rejected": rejected}).to_string()
    };
    let file = DataFile::new(world.folder.path().join("pairs.jsonl").display().to_string());
    std::fs::write(&file.path, rows.map(line).join("\n")).unwrap();
    let config = RunConfig { max_seq_len: 20, objective: Objective::Dpo, ..RunConfig::default() };
    let corpus = world.read(std::slice::from_ref(&file), None, &config).unwrap();
    let Findings { truncated_rows, rows_nothing_to_learn, lengths, rejected_lengths, .. } = corpus.findings;
    assert_eq!((truncated_rows, rows_nothing_to_learn), (2, 1));
    assert_eq!((lengths[2], rejected_lengths[2]), (rejected_lengths[3], lengths[3]));
    let dataset = crate::data::read_examples(Path::new(&file.path), &file.columns).unwrap();
    let expected = prepare::rows(&world.text_files, &dataset, 20).unwrap();
    let rows = Rows::Stored(corpus.rows);
    let found: Vec<_> = (0..rows.len()).map(|row| rows.get(row).unwrap().into_owned()).collect();
    assert_eq!(found, expected);
    assert_eq!(found.iter().map(|row| row.row).collect::<Vec<_>>(), [0, 2, 3]);
    assert_eq!(rows.lengths(), found.iter().map(TokenizedRow::num_tokens).collect::<Vec<_>>());
    assert_eq!((rows.longest_side(), found[1].ids.len()), (20, 20));
}

#[test]
fn tokens_are_made_once_for_each_file_template_and_mapping() {
    let mut world = World::new();
    let file = world.write("a.jsonl", &["one", "two"]);
    assert!(world.tokenises(&file).0);
    assert!(!world.tokenises(&file).0);
    // The same content under another name.
    assert!(!world.tokenises(&world.write("b.jsonl", &["one", "two"])).0);
    assert!(world.tokenises(&world.write("a.jsonl", &["one", "three"])).0);
    let styles = [lathe_protocol::Style::new("terse")];
    world.text_files = world.text_files.with_styles(&styles).unwrap();
    assert!(world.tokenises(&file).0);
    // A template that writes one letter otherwise.
    let model = world.folder.path().join("model");
    std::fs::create_dir(&model).unwrap();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/data/tiny-qwen3");
    std::fs::copy(golden.join("tokenizer.json"), model.join("tokenizer.json")).unwrap();
    let template = |turn: &str| {
        let source = format!("{{% for m in messages %}}{turn}{{{{ m.content }}}}<|im_end|>{{% endfor %}}");
        std::fs::write(model.join("chat_template.jinja"), source).unwrap();
        TextFiles::open(&model).unwrap()
    };
    world.text_files = template("a");
    assert!(world.tokenises(&file).0);
    world.text_files = template("b");
    assert!(world.tokenises(&file).0);
    world.text_files = template("a");
    assert!(!world.tokenises(&file).0);
}

#[test]
fn a_damaged_store_is_made_anew() {
    let world = World::new();
    let file = world.write("a.jsonl", &["one", "two", "three"]);
    world.tokenises(&file);
    let [folder] = world.entries().try_into().unwrap();
    let damage: [&dyn Fn(&Path); 4] = [
        &|folder| {
            let tokens = std::fs::read(folder.join("tokens.bin")).unwrap();
            std::fs::write(folder.join("tokens.bin"), &tokens[..tokens.len() - 4]).unwrap();
        },
        &|folder| {
            let mut rows = std::fs::read(folder.join("rows.bin")).unwrap();
            rows[9] ^= 1;
            std::fs::write(folder.join("rows.bin"), rows).unwrap();
        },
        &|folder| std::fs::remove_file(folder.join("prints.bin")).unwrap(),
        &|folder| std::fs::write(folder.join("meta.json"), "{").unwrap(),
    ];
    for damage in damage {
        damage(&folder);
        let (makes, warnings) = world.tokenises(&file);
        assert!(makes && warnings[0].starts_with("The tokens kept of a.jsonl are made anew"), "{warnings:?}");
        assert_eq!(world.tokenises(&file), (false, Vec::new()));
    }
}

#[test]
fn a_stop_and_a_bad_row_leave_nothing_behind() {
    let world = World::new();
    let file = world.write("a.jsonl", &["one"]);
    let stop = AtomicBool::new(true);
    let cache = world.cache();
    let mut reading = Reading { cache: &cache, stop: &stop, emit: &mut drop };
    let stopped = read(&world.text_files, &[file], None, &RunConfig::default(), &mut reading);
    assert!(matches!(stopped, Err(Error::Stopped)));
    let bad = world.write("bad.jsonl", &["one", " "]);
    let error = world.read(&[bad], None, &RunConfig::default()).err().unwrap().to_string();
    assert!(
        error.starts_with("Row 1 (line 2), messages[1].content: the assistant's content is empty"),
        "{error}"
    );
    assert!(world.entries().is_empty());
}

#[test]
fn rows_of_several_files_are_counted_through_and_named() {
    let world = World::new();
    let files = [
        world.write("a.jsonl", &["one", "two"]),
        DataFile { weight: 0.5, ..world.write("b.jsonl", &["three", "four", "five"]) },
    ];
    let corpus = world.read(&files, None, &RunConfig::default()).unwrap();
    let expected =
        ["0 (line 1 of a.jsonl)", "1 (line 2 of a.jsonl)", "2 (line 1 of b.jsonl)", "3 (line 2 of b.jsonl)"];
    assert_eq!(places(&corpus.rows)[..4], expected);
    let rows = Rows::Stored(corpus.rows);
    assert_eq!(rows.get(3).unwrap().row, 3);
    let shares = [Share { rows: 0..2, weight: 1.0 }, Share { rows: 2..5, weight: 0.5 }];
    assert_eq!(rows.shares(), shares);
    // The same tokens, found under another first row.
    let corpus = world.read(&files[1..], None, &RunConfig::default()).unwrap();
    assert_eq!(places(&corpus.rows), ["0 (line 1)", "1 (line 2)", "2 (line 3)"]);

    let bad = [world.write("c.jsonl", &["one", "two"]), world.write("d.jsonl", &[" "])];
    let error = world.read(&bad, None, &RunConfig::default()).err().unwrap().to_string();
    assert!(
        error.starts_with("Row 2 (line 1), messages[1].content: ") && error.ends_with("d.jsonl"),
        "{error}"
    );
    let twice = [files[0].clone(), files[0].clone()];
    let error = world.read(&twice, None, &RunConfig::default()).err().unwrap().to_string();
    assert!(error.starts_with("The same data file is given twice: "), "{error}");
}

#[test]
fn duplicates_and_leaks_are_found_and_left_out_on_request() {
    let world = World::new();
    let words =
        |seed: usize| (0..60).map(|word| format!("w{}", (word * 37 + seed * 101) % 997)).collect::<Vec<_>>();
    let texts: Vec<String> = (0..6).map(|seed| words(seed).join(" ")).collect();
    let near = texts[1].replacen(&words(1)[50], "other", 1);
    let mut rows: Vec<&str> = texts[..5].iter().map(String::as_str).collect();
    rows.extend([texts[0].as_str(), near.as_str()]);
    let file = world.write("a.jsonl", &rows);
    let held_out = world.write("held_out.jsonl", &[&texts[5], &texts[3], &texts[2].replacen('w', "W", 5)]);
    let read = |dedupe| {
        let config = RunConfig { dedupe, ..RunConfig::default() };
        world.read(std::slice::from_ref(&file), Some(&held_out.path), &config).unwrap()
    };
    let found = |dedupe| {
        let Corpus { rows, held_out, findings, .. } = read(dedupe);
        let counts = |similar: &SimilarRows| (similar.exact, similar.near);
        (
            rows.len(),
            held_out.len(),
            counts(&findings.duplicates),
            counts(&findings.leaks),
            findings.rows_dropped,
        )
    };
    assert_eq!(found(Dedupe::None), (7, 3, (1, 1), (1, 1), 0));
    assert_eq!(found(Dedupe::Exact), (5, 3, (1, 1), (1, 1), 2));
    assert_eq!(found(Dedupe::Near), (3, 3, (1, 1), (1, 1), 4));
    let findings = read(Dedupe::None).findings;
    let pairs = |similar: &SimilarRows| -> Vec<(usize, usize)> {
        similar.pairs.iter().map(|pair| (pair.row.row, pair.like.row)).collect()
    };
    assert_eq!(pairs(&findings.duplicates), [(5, 0), (6, 1)]);
    assert_eq!(pairs(&findings.leaks), [(2, 2), (3, 1)]);
    // Of a share that is held out, the duplicates are gone before.
    let config = RunConfig { dedupe: Dedupe::Near, eval_ratio: 0.5, ..RunConfig::default() };
    let corpus = world.read(std::slice::from_ref(&file), None, &config).unwrap();
    assert_eq!(
        (corpus.rows.len() + corpus.held_out.len(), corpus.findings.leaks),
        (5, SimilarRows::default())
    );
}
