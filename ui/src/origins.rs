//! What an adapter was made of, in lines, for the window and the command line.

use lathe_protocol::{FilePrint, Origins, WeightsMetrics};

use crate::format::{bytes, number, plural};

/// Names and values, the names twice where there are several values.
pub fn facts(origins: &Origins) -> Vec<(&'static str, String)> {
    let Origins { base, template_hash, data, eval_data, init_adapter, forced, metrics, .. } = origins;
    let weights =
        format!("{}, config {}, {}", short(&base.weights_hash), short(&base.config_hash), base.storage);
    let mut facts = vec![("Base weights", weights), ("Template", short(template_hash).to_owned())];
    facts.extend(data.iter().map(|file| ("Data", of_file(file))));
    facts.extend(eval_data.iter().map(|file| ("Held-out data", of_file(file))));
    facts.extend(init_adapter.as_ref().map(|file| ("From adapter", of_file(file))));
    facts.extend(metrics.as_ref().map(|metrics| ("Result", of_weights(metrics))));
    facts.extend(forced.iter().map(|refusal| ("Forced", refusal.clone())));
    facts.push(("Lathe", origins.lathe.clone()));
    facts
}

/// The beginning of a hash, for people.
fn short(hash: &str) -> &str {
    hash.get(..8).unwrap_or(hash)
}

fn of_file(file: &FilePrint) -> String {
    let rows = file.rows.map_or(String::new(), |rows| format!("{}, ", plural(rows, "row")));
    format!("{} ({rows}{}, {})", file.path, bytes(file.size_bytes), short(&file.sha256))
}

fn of_weights(metrics: &WeightsMetrics) -> String {
    let WeightsMetrics { step, loss, eval_loss, perplexity, token_accuracy } = metrics;
    let mut parts = vec![plural(*step, "step")];
    parts.extend(loss.map(|loss| format!("loss {}", number(loss))));
    parts.extend(eval_loss.map(|loss| format!("held-out loss {}", number(loss))));
    parts.extend(perplexity.map(|perplexity| format!("perplexity {perplexity:.2}")));
    parts.extend(token_accuracy.map(|accuracy| format!("accuracy {:.1} %", accuracy * 100.0)));
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_adapter_tells_what_it_was_made_of() {
        let json = r#"{"lathe": "0.1.0", "template_hash": "0123456789",
            "base": {"storage": "BF16", "weights_hash": "abcdefabcdef", "config_hash": "fedcbafedcba"},
            "data": [{"path": "/d.jsonl", "sha256": "77777777ffff", "size_bytes": 2048, "rows": 3}],
            "forced": ["another base"],
            "metrics": {"step": 24, "loss": 1.5, "eval_loss": 2.0, "perplexity": 7.389, "token_accuracy": 0.5}}"#;
        let facts: Vec<String> = facts(&serde_json::from_str(json).unwrap())
            .into_iter()
            .map(|(name, value)| format!("{name}: {value}"))
            .collect();
        let expected = [
            "Base weights: abcdefab, config fedcbafe, BF16",
            "Template: 01234567",
            "Data: /d.jsonl (3 rows, 2.0 KB, 77777777)",
            "Result: 24 steps, loss 1.500, held-out loss 2.000, perplexity 7.39, accuracy 50.0 %",
            "Forced: another base",
            "Lathe: 0.1.0",
        ];
        assert_eq!(facts, expected);
    }
}
