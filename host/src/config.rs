//! A [`RunConfig`] from defaults, a TOML file and `key=value` pairs; every value checked, every unknown key named.

mod pairs;
#[cfg(test)]
mod tests;

use std::path::Path;

use lathe_protocol::{
    CONFIG_KEYS, ConfigKey, DataFile, ErrorInfo, LoraTargets, Method, Quant, REGEX_PREFIX, RunConfig, Style,
    is_saved, parse_layers, parse_rows,
};
use serde_json::{Map, Value};

pub use pairs::as_sets;

use crate::error::{Result, did_you_mean, io_error, near, usage};

/// How often an epoch may see a row.
const MOST_WEIGHT: f64 = 1000.0;

/// The defaults, then the file's keys, then the pairs, in order. Not yet validated: see [`validate`].
pub fn build(file: Option<&Path>, sets: &[String]) -> Result<RunConfig> {
    build_on(&RunConfig::default(), file, sets)
}

/// Like [`build`], on other defaults.
pub fn build_on(base: &RunConfig, file: Option<&Path>, sets: &[String]) -> Result<RunConfig> {
    let mut values = flat(base);
    if let Some(path) = file {
        let text = std::fs::read_to_string(path).map_err(io_error("read the config", path))?;
        let place = |error: ErrorInfo| ErrorInfo {
            message: format!("{}: {}", error.message, path.display()),
            ..error
        };
        let table: toml::Table = toml::from_str(&text).map_err(|error| {
            let line = error.span().map_or(1, |span| text[..span.start].matches('\n').count() + 1);
            usage(format!("Not valid TOML at line {line}: {}: {}", error.message(), path.display()))
        })?;
        for (key, value) in flat_toml(table, "") {
            set(&mut values, &key, Given::Typed(&value)).map_err(place)?;
        }
    }
    for pair in sets {
        let (key, value) = pair
            .split_once('=')
            .ok_or_else(|| usage(format!("Not key=value: {pair:?}")).hint("write e.g. --set lora.r=8"))?;
        set(&mut values, key.trim(), Given::Text(value.trim()))?;
    }
    nested(values)
}

/// The `run.toml` of a run folder.
pub fn to_toml(config: &RunConfig) -> Result<String> {
    toml::to_string(config).map_err(|error| usage(format!("The config cannot be written: {error}")))
}

/// The keys whose values differ, with both values as text.
pub fn differences(a: &RunConfig, b: &RunConfig) -> Vec<(String, String, String)> {
    let (a, b) = (flat(a), flat(b));
    a.iter()
        .filter_map(|(key, value)| {
            let other = b.get(key)?;
            (other != value).then(|| (key.clone(), value.to_string(), other.to_string()))
        })
        .collect()
}

/// An error for a value out of range, or one that belongs to a later version.
pub fn validate(config: &RunConfig) -> Result<()> {
    let RunConfig { lora, .. } = config;
    if config.method == Method::Full && config.quant != Quant::None {
        return Err(usage("Weights in NF4 stay frozen: method = \"full\" cannot train them")
            .hint("use method = \"qlora\", or quant = \"none\""));
    }
    if config.dtype != "f32" {
        return Err(usage(format!("dtype = {:?} is not supported by this version", config.dtype))
            .hint("use dtype = \"f32\""));
    }

    let in_range = |name: &str, value: f64, ok: bool| {
        if ok && value.is_finite() {
            return Ok(());
        }
        let range = CONFIG_KEYS.iter().find(|key| key.name == name).map_or("", |key| key.range);
        Err(usage(format!("{name} = {value} is out of range")).hint(format!("{name} takes {range}")))
    };
    let positive = |name, value: f64| in_range(name, value, value > 0.0);
    let not_negative = |name, value: f64| in_range(name, value, value >= 0.0);
    let at_least_one = |name, value: usize| in_range(name, value as f64, value >= 1);
    in_range("eval_ratio", config.eval_ratio, (0.0..=0.5).contains(&config.eval_ratio))?;
    in_range("max_seq_len", config.max_seq_len as f64, (8..=1_048_576).contains(&config.max_seq_len))?;
    at_least_one("batch_size", config.batch_size)?;
    at_least_one("grad_accum", config.grad_accum)?;
    positive("beta", config.beta)?;
    positive("epochs", config.epochs)?;
    positive("learning_rate", config.learning_rate)?;
    in_range("warmup_ratio", config.warmup_ratio, (0.0..=1.0).contains(&config.warmup_ratio))?;
    not_negative("weight_decay", config.weight_decay)?;
    not_negative("max_grad_norm", config.max_grad_norm)?;
    at_least_one("gradient_checkpointing_every", config.gradient_checkpointing_every)?;
    at_least_one("save_total_limit", config.save_total_limit)?;
    not_negative("early_stopping_min_delta", config.early_stopping_min_delta)?;
    in_range("spike_window", config.spike_window as f64, config.spike_window >= 4)?;
    not_negative("spike_threshold", config.spike_threshold)?;
    not_negative("neftune_alpha", config.neftune_alpha)?;
    in_range("lora.r", lora.r as f64, (1..=4096).contains(&lora.r))?;
    positive("lora.alpha", lora.alpha)?;
    in_range("lora.dropout", lora.dropout, (0.0..1.0).contains(&lora.dropout))?;
    let lists = [
        ("lora.targets", &lora.targets, "q_proj,v_proj, or all-linear"),
        ("lora.target_parameters", &lora.target_parameters, "mlp.experts.down_proj"),
        ("lora.modules_to_save", &lora.modules_to_save, "embed_tokens,lm_head"),
    ];
    for (key, names, example) in lists {
        let is_name = |name: &String| {
            !name.is_empty() && (!name.contains(char::is_whitespace) || name.starts_with(REGEX_PREFIX))
        };
        if let Some(name) = names.iter().find(|name| !is_name(name)) {
            return Err(usage(format!("{key} holds {name:?}, which is no module's name"))
                .hint(format!("write e.g. {key}={example}")));
        }
    }
    LoraTargets::new(lora)?;
    check_data(&config.data)?;
    check_styles(config)
}

fn check_data(files: &[DataFile]) -> Result<()> {
    for DataFile { path, weight, .. } in files {
        if path.is_empty() {
            return Err(
                usage("data has a file without a path").hint("write e.g. data=a.jsonl, b.parquet:0.5")
            );
        }
        if !(*weight > 0.0 && *weight <= MOST_WEIGHT) {
            let message = format!("The weight {weight} of a data file is out of range: {path}");
            return Err(usage(message).hint(format!(
                "an epoch sees each row as often as the weight says: more than 0, at most {MOST_WEIGHT}"
            )));
        }
    }
    Ok(())
}

/// An error for styles that cannot be told apart, that nothing learns, or whose settings are out of range.
fn check_styles(config: &RunConfig) -> Result<()> {
    if config.styles.is_empty() {
        return Ok(());
    }
    if config.method == Method::Full {
        return Err(usage("Styles are learned beside a frozen model: method = \"full\" cannot have them")
            .hint("use method = \"lora\""));
    }
    let saved = &config.lora.modules_to_save;
    if let Some(table) = ["model.embed_tokens", "lm_head"].into_iter().find(|table| is_saved(table, saved)) {
        return Err(usage(format!(
            "Styles are rows beside a frozen table: {table} cannot learn whole with them"
        ))
        .hint("leave it out of lora.modules_to_save, or the styles out"));
    }
    for (index, style) in config.styles.iter().enumerate() {
        let Style { name, token, max_new_tokens, min_new_tokens, temperature, top_p, .. } = style;
        let wrong = |problem: &str, hint: &str| Err(usage(format!("Style {name:?} {problem}")).hint(hint));
        if name.is_empty() || !name.chars().all(|c| c.is_alphanumeric() || "-_".contains(c)) {
            return wrong("cannot be a style's name", "use letters, digits, - and _");
        }
        if token.chars().count() < 3 || token.contains(char::is_whitespace) {
            let problem = format!("has the token {token:?}, which could be part of a text");
            return wrong(&problem, "write e.g. <|terse|>: three characters or more, no spaces");
        }
        if config.styles[..index].iter().any(|other| other.name == *name || other.token == *token) {
            return wrong("is there twice, or its token is", "give each style a name and a token of its own");
        }
        let longest = max_new_tokens.unwrap_or(usize::MAX);
        if longest == 0 || min_new_tokens.is_some_and(|shortest| shortest > longest) {
            return wrong("has max_new_tokens below 1 or below min_new_tokens", "raise max_new_tokens");
        }
        if temperature.is_some_and(|value| !(0.0..=10.0).contains(&value)) {
            return wrong("has a temperature out of range", "temperature takes 0 to 10");
        }
        if top_p.is_some_and(|value| !(value > 0.0 && value <= 1.0)) {
            return wrong("has a top_p out of range", "top_p takes more than 0, at most 1");
        }
    }
    Ok(())
}

/// A value as it was written: in a TOML file, or after `key=`.
#[derive(Clone, Copy)]
enum Given<'a> {
    Typed(&'a Value),
    Text(&'a str),
}

impl std::fmt::Display for Given<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Typed(value) => write!(f, "{value}"),
            Self::Text(text) => write!(f, "{text:?}"),
        }
    }
}

/// Puts a value in its place, in the type the place has.
fn set(values: &mut Map<String, Value>, name: &str, given: Given<'_>) -> Result<()> {
    let (Some(key), Some(place)) = (CONFIG_KEYS.iter().find(|key| key.name == name), values.get_mut(name))
    else {
        return Err(unknown_key(name));
    };
    let value = match place {
        Value::Bool(_) => as_bool(given).map(Value::Bool),
        Value::Number(number) if number.is_f64() => {
            as_f64(given).and_then(|number| serde_json::Number::from_f64(number).map(Value::Number))
        }
        Value::Number(_) => as_u64(given).map(Value::from),
        Value::Array(_) if key.name == "styles" => as_styles(given, place),
        Value::Array(_) if key.name == "data" => as_data(given, place),
        Value::Array(_) if key.name == "sample_prompts" => as_list(given, prompts).map(Value::from),
        Value::Array(_) if key.name == "lora.layers" => as_indices(given, parse_layers).map(Value::from),
        Value::Array(_) if key.name == "skip_rows" => as_indices(given, parse_rows).map(Value::from),
        Value::Array(_) => as_list(given, names).map(Value::from),
        Value::Object(_) => as_pairs(given).map(Value::Object),
        _ => as_word(given, key).map(Value::String),
    };
    *place = value.ok_or_else(|| wrong_value(key, given))?;
    Ok(())
}

fn as_bool(given: Given<'_>) -> Option<bool> {
    match given {
        Given::Typed(value) => value.as_bool(),
        Given::Text("true") => Some(true),
        Given::Text("false") => Some(false),
        Given::Text(_) => None,
    }
}

fn as_f64(given: Given<'_>) -> Option<f64> {
    match given {
        Given::Typed(value) => value.as_f64(),
        Given::Text(text) => text.parse().ok(),
    }
    .filter(|number: &f64| number.is_finite())
}

fn as_u64(given: Given<'_>) -> Option<u64> {
    match given {
        Given::Typed(value) => value.as_u64(),
        Given::Text(text) => text.parse().ok(),
    }
}

/// A list of texts, or one text that is split into them.
fn as_list(given: Given<'_>, split: impl Fn(&str) -> Vec<String>) -> Option<Vec<String>> {
    match given {
        Given::Typed(Value::Array(items)) => {
            items.iter().map(|item| item.as_str().map(str::to_owned)).collect()
        }
        Given::Typed(value) => value.as_str().map(split),
        Given::Text(text) => Some(split(text)),
    }
}

/// A list of numbers, or one text of numbers and ranges.
fn as_indices(given: Given<'_>, parse: fn(&str) -> Option<Vec<usize>>) -> Option<Vec<usize>> {
    match given {
        Given::Typed(Value::Array(items)) => {
            items.iter().map(|item| usize::try_from(item.as_u64()?).ok()).collect()
        }
        Given::Typed(value) => {
            value.as_u64().map(|index| index.to_string()).as_deref().or(value.as_str()).and_then(parse)
        }
        Given::Text(text) => parse(text.trim_start_matches('[').trim_end_matches(']')),
    }
}

/// A list of tables, or `name=token` pairs, which keep the settings of styles that are there already.
fn as_styles(given: Given<'_>, old: &Value) -> Option<Value> {
    if let Given::Typed(tables @ Value::Array(_)) = given {
        return serde_json::from_value::<Vec<Style>>(tables.clone()).is_ok().then(|| tables.clone());
    }
    let known: Vec<Style> = serde_json::from_value(old.clone()).ok()?;
    // Brackets may be a token's.
    let pairs = |text: &str| {
        let pairs = text.split(',').map(|pair| pair.trim().to_owned());
        pairs.filter(|pair| !pair.is_empty()).collect::<Vec<_>>()
    };
    serde_json::to_value(Style::from_pairs(&as_list(given, pairs)?, &known)?).ok()
}

/// A list of tables, or `path[:weight]`s, which keep the columns of files that are there already.
fn as_data(given: Given<'_>, old: &Value) -> Option<Value> {
    if let Given::Typed(tables @ Value::Array(items)) = given
        && items.iter().all(Value::is_object)
    {
        return serde_json::from_value::<Vec<DataFile>>(tables.clone()).is_ok().then(|| tables.clone());
    }
    let known: Vec<DataFile> = serde_json::from_value(old.clone()).ok()?;
    let files = DataFile::from_texts(&as_list(given, names)?, &known);
    // JSON has no other numbers.
    let are_numbers = files.iter().all(|file| file.weight.is_finite());
    are_numbers.then(|| serde_json::to_value(files).ok()).flatten()
}

/// Names between commas, brackets and quotes or not. A regular expression is one, whatever it holds.
fn names(text: &str) -> Vec<String> {
    let text = text.trim();
    if text.starts_with(REGEX_PREFIX) {
        return vec![text.to_owned()];
    }
    let text = text.trim_start_matches('[').trim_end_matches(']');
    let names = text.split(',').map(|name| name.trim().trim_matches(['"', '\'']).to_owned());
    names.filter(|name| !name.is_empty()).collect()
}

/// Prompts, which may hold commas, between bars with spaces around them.
fn prompts(text: &str) -> Vec<String> {
    let prompts = text.split(" | ").map(|prompt| prompt.trim().to_owned());
    prompts.filter(|prompt| !prompt.is_empty()).collect()
}

/// A table of texts, or one text `role=column, …`.
fn as_pairs(given: Given<'_>) -> Option<Map<String, Value>> {
    if let Given::Typed(Value::Object(pairs)) = given {
        return pairs.values().all(Value::is_string).then(|| pairs.clone());
    }
    let pair = |item: String| {
        let (role, column) = item.split_once('=')?;
        Some((role.trim().to_owned(), Value::from(column.trim())))
    };
    as_list(given, names)?.into_iter().map(pair).collect()
}

/// One of the words the key takes (any, if it lists none).
fn as_word(given: Given<'_>, key: &ConfigKey) -> Option<String> {
    let word = match given {
        Given::Typed(value) => value.as_str()?,
        Given::Text(text) => text.trim_matches(['"', '\'']),
    };
    let known = key.name == "dtype" || key.range.split(" | ").any(|known| known == word);
    known.then(|| word.to_owned())
}

fn wrong_value(key: &ConfigKey, given: Given<'_>) -> ErrorInfo {
    usage(format!("{} cannot be {given}", key.name)).hint(format!("{} takes {}", key.name, key.range))
}

fn unknown_key(name: &str) -> ErrorInfo {
    // A key of a group may have been written without it: `r` for `lora.r`.
    let in_group = CONFIG_KEYS.iter().find(|key| key.name.rsplit('.').next() == Some(name));
    let near = match in_group {
        Some(key) => vec![key.name],
        None => near(name, CONFIG_KEYS.iter().map(|key| key.name)),
    };
    let nearest = near.first().copied().or_else(|| {
        CONFIG_KEYS.iter().map(|key| key.name).min_by_key(|key| strsim::damerau_levenshtein(name, key))
    });
    let hint = did_you_mean(nearest.as_slice(), "");
    usage(format!("Unknown config key {name:?}")).hint(hint)
}

fn is_key(name: &str) -> bool {
    CONFIG_KEYS.iter().any(|key| key.name == name)
}

/// `{"lora": {"r": 8}}` as `{"lora.r": 8}`.
fn flat(config: &RunConfig) -> Map<String, Value> {
    let mut values = Map::new();
    if let Ok(Value::Object(fields)) = serde_json::to_value(config) {
        for (name, value) in fields {
            match value {
                Value::Object(group) if !is_key(&name) => {
                    values.extend(group.into_iter().map(|(key, value)| (format!("{name}.{key}"), value)));
                }
                value => {
                    values.insert(name, value);
                }
            }
        }
    }
    values
}

fn nested(values: Map<String, Value>) -> Result<RunConfig> {
    let mut fields = Map::new();
    for (name, value) in values {
        match name.split_once('.') {
            None => {
                fields.insert(name, value);
            }
            Some((group, key)) => {
                let group = fields.entry(group.to_owned()).or_insert_with(|| Value::Object(Map::new()));
                if let Value::Object(group) = group {
                    group.insert(key.to_owned(), value);
                }
            }
        }
    }
    serde_json::from_value(Value::Object(fields)).map_err(|error| usage(format!("Bad config: {error}")))
}

fn flat_toml(table: toml::Table, prefix: &str) -> Vec<(String, Value)> {
    let mut pairs = Vec::new();
    for (name, value) in table {
        let name = if prefix.is_empty() { name } else { format!("{prefix}.{name}") };
        match value {
            toml::Value::Table(group) if !is_key(&name) => pairs.extend(flat_toml(group, &name)),
            value => pairs.push((name, serde_json::to_value(value).unwrap_or(Value::Null))),
        }
    }
    pairs
}
