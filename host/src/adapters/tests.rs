use super::*;

/// A minimal sound adapter of rank 2.
pub(crate) fn write_adapter(folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    fs::write(
        folder.join(CONFIG),
        r#"{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["v_proj", "q_proj"],
            "base_model_name_or_path": "starter"}"#,
    )
    .unwrap();
    let name = "base_model.model.model.layers.0.self_attn.q_proj";
    write_safetensors(
        &folder.join(WEIGHTS),
        &[(&format!("{name}.lora_A.weight"), &[2, 3]), (&format!("{name}.lora_B.weight"), &[3, 2])],
    );
}

pub(crate) fn write_safetensors(path: &Path, tensors: &[(&str, &[u64])]) {
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (name, shape) in tensors {
        let begin = end;
        end += shape.iter().product::<u64>() * 4;
        let entry = serde_json::json!({"dtype": "F32", "shape": shape, "data_offsets": [begin, end]});
        header.insert((*name).to_owned(), entry);
    }
    let header = serde_json::to_vec(&header).unwrap();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header);
    bytes.resize(bytes.len() + end as usize, 0);
    fs::write(path, bytes).unwrap();
}

#[test]
fn stacked_ranks_of_experts_are_sound_where_parameters_are_targeted() {
    let dir = tempfile::tempdir().unwrap();
    write_adapter(dir.path());
    let experts = "base_model.model.model.layers.0.mlp.experts";
    let (a, b) = (format!("{experts}.lora_A.weight"), format!("{experts}.lora_B.weight"));
    write_safetensors(&dir.path().join(WEIGHTS), &[(&a, &[8, 3]), (&b, &[5, 8])]);
    let found = || entry("experts", dir.path());
    assert!(found().problem.unwrap().contains("does not fit r = 2"));
    let config = r#"{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": null,
        "target_parameters": ["mlp.experts.down_proj"]}"#;
    fs::write(dir.path().join(CONFIG), config).unwrap();
    assert_eq!((found().problem, found().targets), (None, vec!["mlp.experts.down_proj".to_owned()]));
    write_safetensors(&dir.path().join(WEIGHTS), &[(&a, &[7, 3]), (&b, &[5, 7])]);
    assert!(found().problem.unwrap().contains("does not fit r = 2"));
}

#[test]
fn an_adapter_is_imported_found_listed_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    let paths = Paths::in_folder(dir.path());
    assert!(list(&paths).unwrap().is_empty());
    let source = dir.path().join("my adapter!");
    write_adapter(&source);
    fs::write(source.join("optimizer.pt"), "junk").unwrap();

    let first = import(&paths, &source, None).unwrap();
    let second = import(&paths, &source, None).unwrap();
    import(&paths, &source, Some("pirate")).unwrap();
    assert_eq!((first.name.as_str(), second.name.as_str()), ("my-adapter", "my-adapter-2"));
    assert_eq!((first.r, first.targets.as_slice()), (2, &["q_proj".to_owned(), "v_proj".to_owned()][..]));
    assert!(!Path::new(&first.path).join("optimizer.pt").exists());
    assert!(import(&paths, &source, Some("pirate")).unwrap_err().message.contains("already"));
    assert!(import(&paths, &source, Some("../x")).is_err());

    let listed = list(&paths).unwrap();
    assert_eq!(listed.len(), 3);
    assert!(listed.iter().all(|entry| entry.problem.is_none()));
    assert_eq!(resolve(&paths, "pirate").unwrap(), listed[2].path);
    assert_eq!(resolve(&paths, source.to_str().unwrap()).unwrap(), source.to_str().unwrap());
    let error = resolve(&paths, "pirat").unwrap_err();
    assert_eq!((error.code, error.hint.as_deref()), (ErrorCode::NotFound, Some("did you mean pirate?")));

    assert!(remove(&paths, "pirate").unwrap() > 100);
    assert_eq!(list(&paths).unwrap().len(), 2);
    assert!(remove(&paths, source.to_str().unwrap()).is_err());
    assert!(source.exists());
}

#[test]
fn a_broken_adapter_is_refused_with_its_reason() {
    let dir = tempfile::tempdir().unwrap();
    let paths = Paths::in_folder(dir.path());
    let check = |spoil: &dyn Fn(&Path), reason: &str| {
        let source = dir.path().join("a");
        files::remove_quietly(&source);
        write_adapter(&source);
        spoil(&source);
        let error = import(&paths, &source, None).unwrap_err();
        assert!(error.message.contains(reason), "{error}");
        assert!(error.message.ends_with(source.to_str().unwrap()), "{error}");
    };
    check(&|dir| fs::remove_file(dir.join(CONFIG)).unwrap(), "is missing");
    check(&|dir| fs::remove_file(dir.join(WEIGHTS)).unwrap(), "adapter_model.safetensors is missing");
    check(&|dir| fs::write(dir.join(CONFIG), "{").unwrap(), "Not valid JSON");
    check(&|dir| fs::write(dir.join(CONFIG), r#"{"peft_type": "LOHA"}"#).unwrap(), "type LOHA");
    let weights =
        |tensors: &'static [(&str, &[u64])]| move |dir: &Path| write_safetensors(&dir.join(WEIGHTS), tensors);
    check(&weights(&[("base_model.model.q.lora_A.weight", &[2, 3])]), "only one of");
    check(&weights(&[("base_model.model.q.lora_A.weight", &[4, 3])]), "does not fit r = 2");
    check(&weights(&[("q.lora_A.weight", &[2, 3])]), "does not begin with");
    check(&weights(&[]), "no LoRA tensors");
    check(
        &|dir| {
            let bytes = fs::read(dir.join(WEIGHTS)).unwrap();
            fs::write(dir.join(WEIGHTS), &bytes[..bytes.len() - 1]).unwrap();
        },
        "is truncated",
    );
    assert!(list(&paths).unwrap().is_empty(), "nothing half-imported");
}

#[test]
fn names_notes_and_tags_are_changed_in_the_folder_itself() {
    let dir = tempfile::tempdir().unwrap();
    let paths = Paths::in_folder(dir.path());
    let source = dir.path().join("a");
    write_adapter(&source);
    import(&paths, &source, Some("pirate")).unwrap();
    import(&paths, &source, Some("other")).unwrap();
    let change = |name: &str, change: AdapterUpdate| update(&paths, name, &change);
    let tags = Some(vec!["fun".to_owned()]);
    let entry =
        change("pirate", AdapterUpdate { notes: Some("Arr".into()), tags, ..AdapterUpdate::default() })
            .unwrap();
    assert_eq!((entry.notes.as_str(), entry.tags.as_slice()), ("Arr", &["fun".to_owned()][..]));

    let rename = |name: &str| AdapterUpdate { name: Some(name.into()), ..AdapterUpdate::default() };
    let entry = change("pirate", rename("buccaneer")).unwrap();
    assert_eq!((entry.name.as_str(), entry.notes.as_str()), ("buccaneer", "Arr"));
    assert!(resolve(&paths, "pirate").is_err());
    assert_eq!(show(&paths, "buccaneer").unwrap(), entry);
    assert!(entry.problem.is_none() && entry.run.is_none());
    for name in ["other", "../x", ""] {
        let both = AdapterUpdate { notes: Some("lost".into()), ..rename(name) };
        assert_eq!(change("buccaneer", both).unwrap_err().code, ErrorCode::Usage, "{name}");
    }
    assert_eq!(show(&paths, "buccaneer").unwrap(), entry, "nothing was changed by halves");
    assert!(change(source.to_str().unwrap(), rename("mine")).is_err());
    assert!(change("nobody", rename("mine")).is_err());
}
