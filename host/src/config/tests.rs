use std::collections::BTreeSet;

use lathe_protocol::{ErrorCode, Schedule};

use super::*;

fn sets(pairs: &[&str]) -> Result<RunConfig> {
    let pairs: Vec<String> = pairs.iter().map(|pair| (*pair).to_owned()).collect();
    build(None, &pairs)
}

#[test]
fn the_listed_keys_are_the_fields_of_the_config() {
    let listed: BTreeSet<&str> = CONFIG_KEYS.iter().map(|key| key.name).collect();
    let values = flat(&RunConfig::default());
    assert_eq!(listed, values.keys().map(String::as_str).collect());
    assert_eq!(listed.len(), CONFIG_KEYS.len(), "a key is listed twice");
}

#[test]
fn pairs_override_the_file_and_the_file_the_defaults() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run.toml");
    std::fs::write(&path, "epochs = 3\nschedule = \"linear\"\n[lora]\nr = 4\ntargets = [\"q_proj\"]\n")
        .unwrap();
    let config = build(Some(&path), &["lora.r=8".into(), "learning_rate=1e-3".into()]).unwrap();
    assert_eq!(config.lora.r, 8);
    assert_eq!(config.lora.targets, ["q_proj"]);
    assert!((config.epochs - 3.0).abs() < 1e-12);
    assert_eq!(config.schedule, Schedule::Linear);
    assert!((config.learning_rate - 1e-3).abs() < 1e-12);
    assert_eq!(config.grad_accum, RunConfig::default().grad_accum);
}

#[test]
fn what_is_written_is_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run.toml");
    let config = sets(&[
        "lora.targets=q_proj, v_proj",
        "packing=false",
        "neftune_alpha=5",
        "columns=prompt=question, completion=answer",
        "sample_prompts=Hi, you | [1] 2 +",
    ])
    .unwrap();
    assert_eq!(config.columns["completion"], "answer");
    assert_eq!(config.sample_prompts, ["Hi, you", "[1] 2 +"]);
    std::fs::write(&path, to_toml(&config).unwrap()).unwrap();
    assert_eq!(build(Some(&path), &[]).unwrap(), config);
    assert!(differences(&config, &config).is_empty());
    assert_eq!(differences(&config, &RunConfig::default()).len(), 5);
}

#[test]
fn styles_come_as_pairs_and_as_tables_and_go_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run.toml");
    let table = "[[styles]]\nname = \"terse\"\ntoken = \"[T]\"\nmax_new_tokens = 9\n";
    std::fs::write(&path, table).unwrap();
    let config = build(Some(&path), &["styles=terse, formal=[f]".into()]).unwrap();
    let expected = [("terse", "[T]", Some(9)), ("formal", "[f]", None)];
    let found = config.styles.iter();
    let found: Vec<_> = found.map(|s| (s.name.as_str(), s.token.as_str(), s.max_new_tokens)).collect();
    assert_eq!(found, expected);
    validate(&config).unwrap();
    std::fs::write(&path, to_toml(&config).unwrap()).unwrap();
    assert_eq!(build(Some(&path), &[]).unwrap(), config);
    std::fs::write(&path, "[[styles]]\nname = \"terse\"\n").unwrap();
    assert!(build(Some(&path), &[]).unwrap_err().message.contains("styles cannot be"));
}

#[test]
fn data_files_come_as_texts_and_as_tables_and_go_back() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run.toml");
    let table = "[[data]]\npath = \"a.jsonl\"\n[[data]]\npath = \"b.csv\"\nweight = 0.5\ncolumns = { prompt = \"q\" }\n";
    std::fs::write(&path, table).unwrap();
    let config = build(Some(&path), &[]).unwrap();
    validate(&config).unwrap();
    let texts: Vec<_> = config.data.iter().map(DataFile::to_string).collect();
    assert_eq!(texts, ["a.jsonl", "b.csv:0.5"]);
    assert_eq!(config.data[1].columns["prompt"], "q");
    let changed = build(Some(&path), &["data=b.csv:2, C:\\c.jsonl".into()]).unwrap().data;
    assert_eq!((changed[0].columns["prompt"].as_str(), changed[0].weight), ("q", 2.0));
    assert_eq!(changed[1], DataFile::new("C:\\c.jsonl"));
    std::fs::write(&path, to_toml(&config).unwrap()).unwrap();
    assert_eq!(build(Some(&path), &[]).unwrap(), config);
    for weight in ["nan", "inf"] {
        let error = sets(&[&format!("data=a.jsonl:{weight}")]).unwrap_err();
        assert!(error.message.contains("data cannot be"), "{error}");
    }
    for weight in ["0", "-1", "1001"] {
        let error = validate(&sets(&[&format!("data=a.jsonl:{weight}")]).unwrap()).unwrap_err();
        assert!(error.message.contains("of a data file is out of range: a.jsonl"), "{error}");
    }
}

#[test]
fn styles_that_cannot_be_are_refused() {
    for (pairs, message) in [
        (["styles=terse, terse=<t>", "seed=1"], "Style \"terse\" is there twice, or its token is"),
        (["styles=a=<t>, b=<t>", "seed=1"], "Style \"b\" is there twice, or its token is"),
        (["styles=a b", "seed=1"], "Style \"a b\" cannot be a style's name"),
        (["styles=a=t", "seed=1"], "Style \"a\" has the token \"t\", which could be part of a text"),
        (
            ["styles=a", "method=full"],
            "Styles are learned beside a frozen model: method = \"full\" cannot have them",
        ),
    ] {
        assert_eq!(validate(&sets(&pairs).unwrap()).unwrap_err().message, message);
    }
    let mut config = sets(&["styles=a"]).unwrap();
    (config.styles[0].max_new_tokens, config.styles[0].min_new_tokens) = (Some(4), Some(5));
    assert!(validate(&config).unwrap_err().message.contains("below min_new_tokens"));
}

#[test]
fn an_unknown_key_names_the_nearest() {
    for (given, nearest) in [
        ("learning_rat=1", "learning_rate"),
        ("lr=1", "lora.r"),
        ("r=8", "lora.r"),
        ("lora.rank=8", "lora.r"),
        ("batchsize=8", "batch_size"),
        ("gradient_accum=8", "grad_accum"),
    ] {
        let error = sets(&[given]).unwrap_err();
        assert_eq!(error.code, ErrorCode::Usage);
        let hint = error.hint.unwrap();
        if given != "lr=1" && given != "gradient_accum=8" {
            assert_eq!(hint, format!("did you mean {nearest}?"), "{given}");
        }
    }
}

#[test]
fn a_wrong_type_or_range_says_what_the_key_takes() {
    for pair in [
        "batch_size=two",
        "batch_size=-1",
        "batch_size=1.5",
        "packing=yes",
        "schedule=step",
        "learning_rate=nan",
        "epochs=",
        "columns=question",
    ] {
        let error = sets(&[pair]).unwrap_err();
        assert!(error.message.contains("cannot be"), "{error}");
        assert!(error.hint.unwrap().contains(" takes "), "{pair}");
    }
    for pair in [
        "batch_size=0",
        "gradient_checkpointing_every=0",
        "eval_ratio=0.6",
        "epochs=0",
        "beta=0",
        "lora.r=0",
        "lora.dropout=1",
        "max_seq_len=4",
        "early_stopping_min_delta=-0.1",
        "spike_window=3",
        "spike_threshold=-1",
        "learning_rate=-1",
    ] {
        let error = validate(&sets(&[pair]).unwrap()).unwrap_err();
        assert!(error.message.contains("out of range"), "{error}");
    }
    assert!(sets(&["epochs"]).unwrap_err().message.contains("key=value"));
}

#[test]
fn what_a_later_version_brings_is_refused_in_words() {
    let error = validate(&sets(&["dtype=bf16"]).unwrap()).unwrap_err();
    assert!(error.message.contains("is not supported by this version"), "{error}");
    assert!(error.hint.is_some());
    let whole = ["gradient_checkpointing=true", "method=full", "optimizer=adamw8bit"];
    validate(&sets(&whole).unwrap()).unwrap();
    for sound in
        [["method=qlora", "quant=none"], ["method=qlora", "quant=nf4_double"], ["method=lora", "quant=nf4"]]
    {
        validate(&sets(&sound).unwrap()).unwrap();
    }
    let error = validate(&sets(&["method=full", "quant=nf4"]).unwrap()).unwrap_err();
    assert!(error.message.contains("stay frozen"), "{error}");
}

#[test]
fn what_lora_adapts_is_read_from_a_flag_and_a_file_alike() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run.toml");
    let text = "[lora]\ntargets = 'regex:.*\\.[qv]_proj'\nmodules_to_save = [\"lm_head\"]\n";
    std::fs::write(&path, text).unwrap();
    let from_file = build(Some(&path), &[]).unwrap();
    let from_flags = sets(&[r"lora.targets=regex:.*\.[qv]_proj", "lora.modules_to_save=lm_head"]).unwrap();
    assert_eq!(from_file, from_flags);
    assert_eq!(from_file.lora.targets, [r"regex:.*\.[qv]_proj"]);
    validate(&from_file).unwrap();
    for written in ["lora.layers=0-2, 5", "lora.layers=[0,1,2,5]"] {
        assert_eq!(sets(&[written]).unwrap().lora.layers, [0, 1, 2, 5]);
    }
    for written in ["layers = [0, 1, 2, 5]", "layers = \"0-2, 5\""] {
        std::fs::write(&path, format!("[lora]\n{written}\n")).unwrap();
        let config = build(Some(&path), &[]).unwrap();
        assert_eq!(config.lora.layers, [0, 1, 2, 5]);
        std::fs::write(&path, to_toml(&config).unwrap()).unwrap();
        assert_eq!(build(Some(&path), &[]).unwrap(), config);
    }
    assert!(sets(&["lora.layers=7-0"]).unwrap_err().message.contains("cannot be"));
    for (pairs, message) in [
        (vec!["lora.targets=regex:("], "no regular expression"),
        (vec!["lora.target_parameters=experts.down_proj", "lora.dropout=0.1"], "cannot be with"),
        (vec!["lora.targets=none"], "nothing to adapt"),
    ] {
        let error = validate(&sets(&pairs).unwrap()).unwrap_err();
        assert!(error.message.contains(message), "{error}");
    }
}

#[test]
fn broken_toml_names_its_line_and_path() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("run.toml");
    std::fs::write(&path, "epochs = 3\nseed = = 4\n").unwrap();
    let error = build(Some(&path), &[]).unwrap_err();
    assert!(error.message.contains("line 2"), "{error}");
    assert!(error.message.ends_with("run.toml"), "{error}");
}
