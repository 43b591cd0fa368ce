use std::{collections::BTreeMap, path::Path};
#[derive(serde::Deserialize)]
struct T {
    text: String,
    ids: Vec<u32>,
}
#[test]
fn pre() {
    let all: BTreeMap<String, Vec<T>> =
        serde_json::from_str(&std::fs::read_to_string("/tmp/pre/out.json").unwrap()).unwrap();
    for (pre, texts) in all {
        let tf = match lathe_engine::text_files::TextFiles::open(Path::new(&format!("/tmp/pre/{pre}.gguf"))) {
            Ok(t) => t,
            Err(e) => {
                println!("{pre}: {e}");
                continue;
            }
        };
        let mut bad = 0;
        for t in &texts {
            let ids = lathe_engine::tokenize::encode_plain(&tf, &t.text).unwrap();
            if ids != t.ids {
                bad += 1;
                let show = |ids: &[u32]| {
                    ids.iter().map(|i| tf.tokenizer.decode(&[*i], false).unwrap()).collect::<Vec<_>>()
                };
                if bad <= 2 {
                    println!("  {:?}\n   ours {:?}\n   them {:?}", t.text, show(&ids), show(&t.ids));
                }
            }
        }
        println!("{pre}: {bad} of {} differ, prefix {:?}", texts.len(), tf.prefix_ids);
    }
}
