use serde::{Deserialize, Serialize};

use crate::SamplingParams;

/// A way of answering that a token in the question asks for, and how such answers are sampled.
///
/// Settings are named as in transformers' `GenerationConfig`; one that is missing is the chat's own.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Style {
    pub name: String,
    /// Added to the tokenizer; the row of its embedding is what learns.
    pub token: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_new_tokens: Option<usize>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_new_tokens: Option<usize>,
    /// 0 takes the likeliest token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub temperature: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_p: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub top_k: Option<usize>,
}

/// Styles of an adapter, as they lie in its folder.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct StylesFile {
    /// Rows of the embedding table they were trained beside.
    pub base_vocab_size: usize,
    pub styles: Vec<Style>,
}

impl StylesFile {
    pub const NAME: &str = "styles.json";
}

impl Style {
    /// A style whose token is `<|name|>`.
    pub fn new(name: &str) -> Self {
        Self { name: name.into(), token: format!("<|{name}|>"), ..Self::default() }
    }

    /// The two styles of the verbosity sample.
    pub fn terse_and_detailed() -> Vec<Self> {
        vec![
            Self { max_new_tokens: Some(48), temperature: Some(0.0), ..Self::new("terse") },
            Self {
                max_new_tokens: Some(384),
                min_new_tokens: Some(24),
                temperature: Some(0.0),
                ..Self::new("detailed")
            },
        ]
    }

    /// `chosen` with this style's settings wherever it has the usual ones.
    pub fn sampling(&self, chosen: &SamplingParams) -> SamplingParams {
        fn fill<T: Copy + PartialEq>(chosen: &mut T, usual: T, own: Option<T>) {
            if let Some(own) = own.filter(|_| *chosen == usual) {
                *chosen = own;
            }
        }
        let usual = SamplingParams::default();
        let mut sampling = chosen.clone();
        fill(&mut sampling.max_tokens, usual.max_tokens, self.max_new_tokens);
        fill(&mut sampling.min_tokens, usual.min_tokens, self.min_new_tokens);
        fill(&mut sampling.temperature, usual.temperature, self.temperature);
        fill(&mut sampling.top_p, usual.top_p, self.top_p);
        fill(&mut sampling.top_k, usual.top_k, self.top_k);
        sampling
    }

    /// What it sets, in words.
    pub fn settings(&self) -> String {
        let settings = [
            ("at most", self.max_new_tokens.map(|tokens| format!("{tokens} tokens"))),
            ("at least", self.min_new_tokens.map(|tokens| format!("{tokens} tokens"))),
            ("temperature", self.temperature.map(|value| value.to_string())),
            ("top-p", self.top_p.map(|value| value.to_string())),
            ("top-k", self.top_k.map(|value| value.to_string())),
        ];
        let words = settings.into_iter().filter_map(|(name, value)| Some(format!("{name} {}", value?)));
        words.collect::<Vec<_>>().join(", ")
    }

    /// Styles from `name=token` or a name alone, each with the settings that a style of that name has in `known`.
    ///
    /// None for something that is neither.
    pub fn from_pairs(pairs: &[String], known: &[Self]) -> Option<Vec<Self>> {
        let style = |pair: &String| {
            let (name, token) = pair
                .split_once('=')
                .map_or((pair.trim(), None), |(name, token)| (name.trim(), Some(token.trim())));
            if name.is_empty() || token == Some("") {
                return None;
            }
            let style = known.iter().find(|style| style.name == name).cloned();
            let mut style = style.unwrap_or_else(|| Self::new(name));
            if let Some(token) = token {
                token.clone_into(&mut style.token);
            }
            Some(style)
        };
        pairs.iter().map(style).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_style_fills_what_nobody_chose() {
        let style = Style { max_new_tokens: Some(9), top_k: Some(3), ..Style::new("terse") };
        let chosen = SamplingParams { top_k: 7, seed: 1, ..SamplingParams::default() };
        let expected = SamplingParams { max_tokens: 9, ..chosen.clone() };
        assert_eq!(style.sampling(&chosen), expected);
        assert_eq!(style.settings(), "at most 9 tokens, top-k 3");
    }

    #[test]
    fn pairs_keep_the_settings_of_known_styles() {
        let known = Style::terse_and_detailed();
        let pairs = |pairs: &[&str]| {
            let pairs: Vec<_> = pairs.iter().map(|pair| (*pair).to_owned()).collect();
            Style::from_pairs(&pairs, &known)
        };
        let expected = vec![Style { token: "[T]".into(), ..known[0].clone() }, Style::new("formal")];
        assert_eq!(pairs(&["terse=[T]", "formal"]), Some(expected));
        assert_eq!((pairs(&["=x"]), pairs(&["terse="])), (None, None));
    }
}
