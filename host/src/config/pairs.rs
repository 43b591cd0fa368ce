use lathe_protocol::RunConfig;
use serde_json::Value;

use super::{build, flat};

/// The `key=value` pairs that make `config` of the defaults; none if one of its values has no such form.
pub fn as_sets(config: &RunConfig) -> Option<Vec<String>> {
    let defaults = flat(&RunConfig::default());
    let values = flat(config).into_iter().filter(|(key, value)| defaults.get(key) != Some(value));
    let sets: Vec<String> = values.map(|(key, value)| format!("{key}={}", as_text(&key, &value))).collect();
    (build(None, &sets).ok()? == *config).then_some(sets)
}

fn as_text(key: &str, value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) if key == "styles" => {
            let field =
                |item: &Value, name: &str| item.get(name).and_then(Value::as_str).unwrap_or("").to_owned();
            let pairs = items.iter().map(|item| format!("{}={}", field(item, "name"), field(item, "token")));
            pairs.collect::<Vec<_>>().join(",")
        }
        Value::Array(items) => {
            let texts: Vec<String> = items.iter().map(|item| as_text(key, item)).collect();
            texts.join(if key == "sample_prompts" { " | " } else { "," })
        }
        Value::Object(pairs) => {
            let pairs = pairs.iter().map(|(name, value)| format!("{name}={}", as_text(key, value)));
            pairs.collect::<Vec<_>>().join(",")
        }
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_config_is_written_as_pairs_where_it_can_be() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("run.toml");
        for text in [
            "",
            "seed = 7\nlearning_rate = 1.2345678901234567e-5\nmethod = \"qlora\"\nskip_rows = [0, 17]",
            "sample_prompts = [\"Hi, you\", \"it's what\"]\n[columns]\nprompt = \"my question\"",
            "[lora]\ntargets = [\"regex:.*[qv]_proj{1,2}\"]\nlayers = [0, 1]\nmodules_to_save = [\"norm\", \"lm_head\"]",
            "[[styles]]\nname = \"terse\"\ntoken = \"[T]\"",
        ] {
            std::fs::write(&path, text).unwrap();
            let config = build(Some(&path), &[]).unwrap();
            let pairs = as_sets(&config).unwrap();
            assert_eq!(build(None, &pairs).unwrap(), config, "{pairs:?}");
        }
        // These have no such form.
        for text in
            ["[columns]\nprompt = \"a, b\"", "[[styles]]\nname = \"a\"\ntoken = \"<a>\"\nmax_new_tokens = 9"]
        {
            std::fs::write(&path, text).unwrap();
            assert_eq!(as_sets(&build(Some(&path), &[]).unwrap()), None);
        }
    }
}
