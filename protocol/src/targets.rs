//! Which linears, expert parameters and layers a LoRA config means, by PEFT's rules.

use std::collections::BTreeSet;

use fancy_regex::Regex;

use crate::{ErrorCode, ErrorInfo, LoraConfig};

/// What makes the only one of `lora.targets` a regular expression.
pub const REGEX_PREFIX: &str = "regex:";
/// Layers beyond this are a slip of the pen.
const MAX_LAYERS: usize = 10_000;
/// More rows than a data file has.
const MAX_ROWS: usize = 10_000_000;

/// The targets of a [`LoraConfig`], understood.
pub struct LoraTargets<'a> {
    linears: Linears<'a>,
    parameters: &'a [String],
    layers: &'a [usize],
}

enum Linears<'a> {
    /// Every linear of the blocks.
    All,
    None,
    Names(&'a [String]),
    /// Matches a whole module path.
    Regex(Box<Regex>),
}

impl<'a> LoraTargets<'a> {
    /// Errors: settings that exclude each other, a regular expression that is none.
    pub fn new(lora: &'a LoraConfig) -> Result<Self, ErrorInfo> {
        let LoraConfig { targets, target_parameters, layers, .. } = lora;
        let usage = |message: String, hint: &str| Err(ErrorInfo::new(ErrorCode::Usage, message).hint(hint));
        let word = |word: &str| targets.iter().any(|target| target == word);
        let pattern = targets.iter().find_map(|target| target.strip_prefix(REGEX_PREFIX));
        if targets.len() > 1 && (word("all-linear") || word("none") || pattern.is_some()) {
            return usage(
                format!("lora.targets = {} mixes names with a word for all", targets.join(", ")),
                "all-linear, none or regex:PATTERN stands alone",
            );
        }
        let linears = match pattern {
            Some(_) if !layers.is_empty() => {
                return usage(
                    "lora.layers has no meaning beside a regular expression in lora.targets".into(),
                    "name the layers in the expression, as PEFT wants it",
                );
            }
            Some(pattern) => match Regex::new(&format!(r"\A(?:{pattern})\z")) {
                Ok(regex) => Linears::Regex(Box::new(regex)),
                Err(error) => {
                    return usage(
                        format!("lora.targets holds no regular expression: {error}"),
                        "it matches whole module paths, e.g. regex:.*\\.(q|v)_proj",
                    );
                }
            },
            None if targets.is_empty() || word("all-linear") => Linears::All,
            None if word("none") => Linears::None,
            None => Linears::Names(targets),
        };
        if matches!(linears, Linears::None) && target_parameters.is_empty() {
            return usage(
                "lora.targets = none leaves nothing to adapt".into(),
                "name expert tensors in lora.target_parameters, or linears in lora.targets",
            );
        }
        if !target_parameters.is_empty() && lora.dropout > 0.0 {
            return usage(
                format!("lora.dropout = {} cannot be with lora.target_parameters", lora.dropout),
                "set lora.dropout=0: experts' updates are added to their weights, which see no input to drop",
            );
        }
        if !target_parameters.is_empty() && lora.use_dora {
            return usage(
                "lora.use_dora cannot be with lora.target_parameters".into(),
                "DoRA is for linears: set lora.use_dora=false, or leave the experts out",
            );
        }
        Ok(Self { linears, parameters: target_parameters, layers })
    }

    /// Whether a linear of the blocks is adapted, e.g. `model.layers.0.self_attn.q_proj`.
    pub fn has_linear(&self, module: &str) -> bool {
        match &self.linears {
            Linears::All => self.has_layer(module),
            Linears::None => false,
            Linears::Names(names) => self.is_named(module, names),
            Linears::Regex(regex) => regex.is_match(module).unwrap_or(false),
        }
    }

    /// Whether a stack of expert matrices is adapted, e.g. `model.layers.0.mlp.experts.down_proj`.
    pub fn has_parameter(&self, parameter: &str) -> bool {
        self.is_named(parameter, self.parameters)
    }

    /// A whole path is meant as it stands; its last parts are, in the layers that learn.
    fn is_named(&self, path: &str, names: &[String]) -> bool {
        names.iter().any(|name| path == name)
            || (self.has_layer(path) && names.iter().any(|name| ends_in(path, name)))
    }

    fn has_layer(&self, path: &str) -> bool {
        self.layers.is_empty() || layer_of(path).is_some_and(|layer| self.layers.contains(&layer))
    }
}

/// Whether `name` is the path or its last parts.
pub fn ends_in(path: &str, name: &str) -> bool {
    path.strip_suffix(name).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// PEFT's rule for `modules_to_save`, which takes any end of a path: `norm` means every norm.
pub fn is_saved(module: &str, modules_to_save: &[String]) -> bool {
    modules_to_save.iter().any(|name| module.ends_with(name.as_str()))
}

/// PEFT's rule for `rank_pattern` and `alpha_pattern`: the path, or its last parts, match a regular expression.
///
/// Errors: no regular expression.
pub fn matches_pattern(path: &str, pattern: &str) -> Result<bool, ErrorInfo> {
    let wrong =
        |error| ErrorInfo::new(ErrorCode::Adapter, format!("{pattern:?} is no regular expression: {error}"));
    Regex::new(&format!(r"\A(?:.*\.)?(?:{pattern})\z")).and_then(|regex| regex.is_match(path)).map_err(wrong)
}

/// 3 of `model.layers.3.mlp.down_proj`.
fn layer_of(path: &str) -> Option<usize> {
    path.strip_prefix("model.layers.")?.split('.').next()?.parse().ok()
}

/// Layers as a person writes them, `0-7, 12`; ascending, each once.
///
/// `None`: something else, or a range that runs backwards.
pub fn parse_layers(written: &str) -> Option<Vec<usize>> {
    parse_indices(written, MAX_LAYERS)
}

/// Rows of a data file, written like layers.
pub fn parse_rows(written: &str) -> Option<Vec<usize>> {
    parse_indices(written, MAX_ROWS)
}

fn parse_indices(written: &str, below: usize) -> Option<Vec<usize>> {
    let mut indices = BTreeSet::new();
    for part in written.split(',').map(str::trim).filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (first, last): (usize, usize) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        if first > last || last >= below {
            return None;
        }
        indices.extend(first..=last);
    }
    Some(indices.into_iter().collect())
}

/// What [`parse_layers`] and [`parse_rows`] read.
pub fn indices_text(indices: &[usize]) -> String {
    let runs = indices.chunk_by(|a, b| a + 1 == *b).map(|run| match run {
        [first, .., last] => format!("{first}-{last}"),
        _ => run[0].to_string(),
    });
    runs.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn targets_mean_what_they_mean_to_peft() {
        let check = |targets: &[&str], layers: &[usize], module: &str, expected: bool| {
            let lora = LoraConfig { targets: names(targets), layers: layers.into(), ..LoraConfig::default() };
            let found = LoraTargets::new(&lora).unwrap_or_else(|error| panic!("{error}")).has_linear(module);
            assert_eq!(found, expected, "{targets:?} in layers {layers:?}: {module}");
        };
        let (q0, q12) = ("model.layers.0.self_attn.q_proj", "model.layers.12.self_attn.q_proj");
        for (targets, layers, in_0, in_12) in [
            (&[][..], &[][..], true, true),
            (&["all-linear"], &[12], false, true),
            (&["q_proj"], &[], true, true),
            (&["self_attn.q_proj"], &[0, 1], true, false),
            (&["proj"], &[], false, false),
            (&["layers.0.self_attn.q_proj"], &[], true, false),
            (&["model.layers.0.self_attn.q_proj"], &[12], true, false),
            (&[r"regex:.*\.(q|v)_proj"], &[], true, true),
            (&[r"regex:(q|v)_proj"], &[], false, false),
            (&[r"regex:model\.layers\.1\d\..*(?<!k_proj)"], &[], false, true),
        ] {
            check(targets, layers, q0, in_0);
            check(targets, layers, q12, in_12);
        }
        let lora = LoraConfig {
            targets: names(&["none"]),
            target_parameters: names(&["experts.down_proj"]),
            layers: vec![1],
            ..LoraConfig::default()
        };
        let targets = LoraTargets::new(&lora).unwrap_or_else(|error| panic!("{error}"));
        assert!(!targets.has_linear(q0));
        for (parameter, expected) in [
            ("model.layers.1.mlp.experts.down_proj", true),
            ("model.layers.0.mlp.experts.down_proj", false),
            ("model.layers.1.mlp.experts.gate_up_proj", false),
        ] {
            assert_eq!(targets.has_parameter(parameter), expected, "{parameter}");
        }
    }

    #[test]
    fn settings_that_exclude_each_other_are_refused_with_the_reason() {
        let experts = names(&["experts.down_proj"]);
        for (lora, message) in [
            (LoraConfig { targets: names(&["regex:(", "q_proj"]), ..LoraConfig::default() }, "mixes"),
            (LoraConfig { targets: names(&["regex:("]), ..LoraConfig::default() }, "no regular expression"),
            (
                LoraConfig { targets: names(&["regex:.*"]), layers: vec![0], ..LoraConfig::default() },
                "no meaning beside",
            ),
            (LoraConfig { targets: names(&["none"]), ..LoraConfig::default() }, "nothing to adapt"),
            (
                LoraConfig { target_parameters: experts.clone(), dropout: 0.1, ..LoraConfig::default() },
                "lora.dropout = 0.1 cannot be with",
            ),
            (
                LoraConfig { target_parameters: experts, use_dora: true, ..LoraConfig::default() },
                "lora.use_dora cannot be with",
            ),
        ] {
            let Err(error) = LoraTargets::new(&lora) else { panic!("{lora:?} was taken") };
            assert!(error.message.contains(message), "{error}");
            assert!(error.hint.is_some());
        }
    }

    #[test]
    fn layers_are_read_as_they_are_written() {
        for (written, layers, text) in [
            ("", vec![], ""),
            ("3", vec![3], "3"),
            ("12, 0-2,1", vec![0, 1, 2, 12], "0-2, 12"),
            (" 4 - 5 ,7", vec![4, 5, 7], "4-5, 7"),
        ] {
            assert_eq!(parse_layers(written).as_ref(), Some(&layers), "{written:?}");
            assert_eq!(indices_text(&layers), text);
        }
        for wrong in ["a", "3-1", "-1", "1-", "0-99999999999", "1.5"] {
            assert_eq!(parse_layers(wrong), None, "{wrong:?}");
        }
    }
}
