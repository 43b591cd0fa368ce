//! Keys of a [`RunConfig`] by name, as text: what the window's fields show and take.

use lathe_protocol::{
    CONFIG_KEYS, ConfigKey, DataFile, REGEX_PREFIX, RunConfig, Style, indices_text, parse_layers, parse_rows,
};
use serde_json::{Map, Number, Value};

/// What lies between prompts in a text.
const PROMPT_SEPARATOR: &str = " | ";

pub fn config_key(name: &str) -> Option<&'static ConfigKey> {
    CONFIG_KEYS.iter().find(|key| key.name == name)
}

/// The value of a key; `Null` if there is no such key.
pub fn get(config: &RunConfig, name: &str) -> Value {
    let mut value = serde_json::to_value(config).unwrap_or(Value::Null);
    path(name).fold(&mut value, |value, part| &mut value[part]).take()
}

/// A key's value as a person would write it.
pub fn text(config: &RunConfig, name: &str) -> String {
    match get(config, name) {
        Value::Array(_) if name == "lora.layers" => indices_text(&config.lora.layers),
        Value::Array(_) if name == "skip_rows" => indices_text(&config.skip_rows),
        Value::String(text) => text,
        Value::Number(number) => match number.as_f64().filter(|_| number.is_f64()) {
            Some(value) => value.to_string(),
            None => number.to_string(),
        },
        Value::Array(items) if name == "styles" => {
            let pair = |style: &Value| {
                Some(format!("{}={}", style.get("name")?.as_str()?, style.get("token")?.as_str()?))
            };
            items.iter().filter_map(pair).collect::<Vec<_>>().join(", ")
        }
        Value::Array(_) if name == "data" => {
            config.data.iter().map(DataFile::to_string).collect::<Vec<_>>().join(", ")
        }
        Value::Array(items) => {
            let items: Vec<_> = items.iter().filter_map(Value::as_str).collect();
            items.join(if name == "sample_prompts" { PROMPT_SEPARATOR } else { ", " })
        }
        Value::Object(pairs) => {
            let pair =
                |(role, column): (&String, &Value)| format!("{role}={}", column.as_str().unwrap_or(""));
            pairs.iter().map(pair).collect::<Vec<_>>().join(", ")
        }
        value => value.to_string(),
    }
}

/// Sets a key to what was written.
///
/// Errors: what may stand there, as a sentence.
pub fn set(config: &mut RunConfig, key: &ConfigKey, written: &str) -> Result<(), String> {
    let mut whole = serde_json::to_value(&*config).map_err(|error| error.to_string())?;
    let place = path(key.name).fold(&mut whole, |value, part| &mut value[part]);
    *place = parse(place, key, written.trim()).ok_or_else(|| range_words(key))?;
    *config = serde_json::from_value(whole).map_err(|_| range_words(key))?;
    Ok(())
}

pub fn reset(config: &mut RunConfig, key: &ConfigKey) {
    let default = text(&RunConfig::default(), key.name);
    // A default is a value of its key.
    if let Err(message) = set(config, key, &default) {
        debug_assert!(false, "{}: {message}", key.name);
    }
}

/// The words a key takes, if those are all it takes.
pub fn options(key: &ConfigKey) -> Vec<&'static str> {
    if key.range.contains(" | ") && !key.range.contains('"') {
        key.range.split(" | ").collect()
    } else if key.name == "dtype" {
        vec![key.range]
    } else {
        Vec::new()
    }
}

/// What a key takes, as a sentence: `From 1 to 4096`.
pub fn range_words(key: &ConfigKey) -> String {
    // Lists and tables are for files.
    let range = key.range.split(", or a ").next().unwrap_or(key.range);
    let range = range.split(", or [[").next().unwrap_or(range);
    let options = options(key);
    if range == "true | false" {
        "On or off".into()
    } else if !options.is_empty() {
        format!("One of {}", options.join(", "))
    } else if let Some((low, high)) = range.split_once("..=") {
        format!("From {low} to {high}")
    } else if let Some(low) = range.strip_suffix("..") {
        format!("{low} or more")
    } else if let Some((low, high)) = range.split_once("..") {
        format!("From {low} to below {high}")
    } else if let Some(low) = range.strip_prefix("> ") {
        format!("Above {low}")
    } else {
        format!("Takes {range}")
    }
}

fn path(name: &str) -> std::str::Split<'_, char> {
    name.split('.')
}

/// `written` in the type of `old`, if the key takes it.
fn parse(old: &Value, key: &ConfigKey, written: &str) -> Option<Value> {
    let list = |separator: &str| {
        let items = written.split(separator).map(str::trim).filter(|item| !item.is_empty());
        items.map(str::to_owned).collect::<Vec<_>>()
    };
    match old {
        Value::Bool(_) => written.parse().ok().map(Value::Bool),
        Value::Number(number) if number.is_f64() => {
            let number = written.parse().ok().filter(|&number| in_range(key, number))?;
            Number::from_f64(number).map(Value::Number)
        }
        Value::Number(_) => {
            let number: u64 = written.parse().ok()?;
            in_range(key, number as f64).then(|| number.into())
        }
        Value::Array(_) if key.name == "styles" => {
            let known: Vec<Style> = serde_json::from_value(old.clone()).ok()?;
            serde_json::to_value(Style::from_pairs(&list(","), &known)?).ok()
        }
        Value::Array(_) if key.name == "data" => {
            let known: Vec<DataFile> = serde_json::from_value(old.clone()).ok()?;
            let files = DataFile::from_texts(&list(","), &known);
            files.iter().all(|file| file.weight > 0.0).then(|| serde_json::to_value(files).ok())?
        }
        Value::Array(_) if key.name == "sample_prompts" => Some(list(PROMPT_SEPARATOR).into()),
        Value::Array(_) if key.name == "lora.layers" => parse_layers(written).map(Value::from),
        Value::Array(_) if key.name == "skip_rows" => parse_rows(written).map(Value::from),
        Value::Array(_) if written.starts_with(REGEX_PREFIX) => Some(vec![written].into()),
        Value::Array(_) => {
            let names = list(",");
            names.iter().all(|name| !name.contains(char::is_whitespace)).then(|| names.into())
        }
        Value::Object(_) => {
            let pair = |pair: String| {
                let (role, column) = pair.split_once('=')?;
                Some((role.trim().to_owned(), Value::from(column.trim())))
            };
            list(",").into_iter().map(pair).collect::<Option<Map<_, _>>>().map(Value::Object)
        }
        _ => options(key).contains(&written).then(|| written.into()),
    }
}

/// Ranges are written as `> 0`, `1..`, `0..1` or `0..=0.5`.
fn in_range(key: &ConfigKey, value: f64) -> bool {
    let number = |text: &str| text.trim().parse::<f64>().unwrap_or(f64::INFINITY);
    value.is_finite()
        && match key.range.split_once("..") {
            None => key.range.strip_prefix('>').is_none_or(|low| value > number(low)),
            Some((low, "")) => value >= number(low),
            Some((low, high)) => {
                let below = high.strip_prefix('=').map_or(value < number(high), |high| value <= number(high));
                value >= number(low) && below
            }
        }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn set_to(name: &str, written: &str) -> Result<RunConfig, String> {
        let mut config = RunConfig::default();
        set(&mut config, config_key(name).unwrap(), written).map(|()| config)
    }

    #[test]
    fn every_key_can_be_shown_and_set_back() {
        for key in CONFIG_KEYS {
            assert!(!get(&RunConfig::default(), key.name).is_null(), "{}", key.name);
            let default = text(&RunConfig::default(), key.name);
            assert_eq!(set_to(key.name, &default), Ok(RunConfig::default()), "{}", key.name);
        }
    }

    #[test]
    fn what_is_written_is_taken_in_the_type_of_the_key() {
        assert_eq!(set_to("lora.r", " 8 ").unwrap().lora.r, 8);
        assert_eq!(set_to("lora.targets", "q_proj, v_proj").unwrap().lora.targets, ["q_proj", "v_proj"]);
        let pattern = r"regex:.*\.(q|v)_proj, \w{1,2}";
        let config = set_to("lora.targets", pattern).unwrap();
        assert_eq!(
            (config.lora.targets.as_slice(), text(&config, "lora.targets")),
            (&[pattern.to_owned()][..], pattern.into())
        );
        let config = set_to("lora.layers", "12, 0-3").unwrap();
        assert_eq!(
            (config.lora.layers.as_slice(), text(&config, "lora.layers")),
            (&[0, 1, 2, 3, 12][..], "0-3, 12".into())
        );
        assert_eq!(set_to("skip_rows", "4096, 1-2").unwrap().skip_rows, [1, 2, 4096]);
        assert_eq!(set_to("sample_prompts", "Hi, you | Bye").unwrap().sample_prompts, ["Hi, you", "Bye"]);
        assert_eq!(set_to("columns", "prompt=question").unwrap().columns["prompt"], "question");
        let mut styled = RunConfig { styles: Style::terse_and_detailed(), ..RunConfig::default() };
        let before = styled.clone();
        let shown = text(&styled, "styles");
        assert_eq!(shown, "terse=<|terse|>, detailed=<|detailed|>");
        set(&mut styled, config_key("styles").unwrap(), &shown).unwrap();
        assert_eq!(styled, before, "their settings are lost");
        assert!((set_to("learning_rate", "1e-3").unwrap().learning_rate - 1e-3).abs() < 1e-12);
        let mut config = set_to("packing", "false").unwrap();
        reset(&mut config, config_key("packing").unwrap());
        assert_eq!(config, RunConfig::default());
    }

    #[test]
    fn a_value_out_of_range_is_told_the_range() {
        for (name, written, message) in [
            ("lora.r", "0", "From 1 to 4096"),
            ("lora.r", "1.5", "From 1 to 4096"),
            ("learning_rate", "0", "Above 0"),
            ("learning_rate", "nan", "Above 0"),
            ("batch_size", "-1", "1 or more"),
            ("lora.dropout", "1", "From 0 to below 1"),
            ("eval_ratio", "0.6", "From 0 to 0.5"),
            ("schedule", "step", "One of linear, cosine, constant"),
            ("columns", "question", "Takes role=column, …"),
            ("lora.layers", "3-1", "Takes layers, e.g. 0-7, 12"),
            ("styles", "terse=", "Takes name=token, …"),
        ] {
            assert_eq!(set_to(name, written), Err(message.to_owned()), "{name} = {written}");
        }
    }
}
