//! The tokenizer in a GGUF's metadata, made to agree with llama.cpp.
//!
//! candle can build one too, but takes every pre-tokenizer it does not know (SmolLM2's, Llama 3's `llama-bpe`) for
//! GPT-2's with a space put in front, which gives other ids.

use std::{collections::BTreeMap, path::Path};

use tokenizers::{
    AddedToken, NormalizerWrapper, PreTokenizerWrapper, SplitDelimiterBehavior, Tokenizer,
    models::bpe::{BPE, Vocab},
    normalizers::NFC,
    pre_tokenizers::{
        byte_level::ByteLevel,
        digits::Digits,
        sequence::Sequence,
        split::{Split, SplitPattern},
    },
};

use crate::{
    Error, Result,
    gguf::{Header, Value},
};

/// What a GGUF says about text.
pub struct GgufTokenizer {
    pub tokenizer: Tokenizer,
    /// Template source.
    pub template: Option<String>,
    /// `bos_token`, `eos_token`, .. by their text.
    pub specials: BTreeMap<String, String>,
    pub stop_ids: Vec<u32>,
    /// What stands before and after a bare text.
    pub prefix_ids: Vec<u32>,
    pub suffix_ids: Vec<u32>,
}

/// llama.cpp's `llama_token_type`.
const TYPE_UNKNOWN: i64 = 2;
const TYPE_CONTROL: i64 = 3;
const TYPE_USER_DEFINED: i64 = 4;

// The patterns are those of the models' own tokenizer.json; the first is llama.cpp's for files that name none.
const DEFAULT: [&str; 4] = [
    r"[\p{P}\$\+<=>\^~\|]+",
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
    r"\p{N}+",
    "[0-9][0-9][0-9]",
];
const CONTRACTIONS: &str = "(?i:'s|'t|'re|'ve|'m|'ll|'d)";
const DEEPSEEK3: [&str; 3] = [
    r"\p{N}{1,3}",
    "[一-龥\u{3040}-ゟ゠-ヿ]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
];
const DEEPSEEK_CODER: [&str; 5] =
    ["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", "[一-龥\u{800}-一가-\u{d7ff}]+", r"\p{N}"];

/// How a text is cut before byte-pair merging.
struct PreTokenizer {
    normalizer: Option<NormalizerWrapper>,
    splitter: PreTokenizerWrapper,
    /// A piece that is a token is taken whole, whatever the merges make of it.
    ignore_merges: bool,
    /// Whether a bare text begins with BOS unless the metadata says otherwise.
    add_bos: bool,
}

impl GgufTokenizer {
    /// Reads the metadata; `path` is for errors.
    pub fn read(header: &Header, path: &Path) -> Result<Self> {
        let metadata = Metadata { header, path };
        let model = metadata.string("tokenizer.ggml.model")?.ok_or_else(|| {
            metadata.error("The GGUF has no tokenizer").hint("take a GGUF that llama.cpp's converter made")
        })?;
        if model != "gpt2" {
            return Err(metadata
                .error(&format!(
                    "Unsupported kind of GGUF tokenizer {model:?} (byte-level BPE, \"gpt2\", is supported)"
                ))
                .hint("use the model's Hugging Face folder instead, whose tokenizer.json is complete"));
        }
        let pre = metadata.string("tokenizer.ggml.pre")?.unwrap_or("default");
        let PreTokenizer { normalizer, splitter, ignore_merges, add_bos } =
            pre_tokenizer(pre).ok_or_else(|| {
                metadata
                    .error(&format!("Unknown pre-tokenizer {pre:?} in the GGUF"))
                    .hint("use the model's Hugging Face folder instead, whose tokenizer.json is complete")
            })?;

        let tokens = metadata.strings("tokenizer.ggml.tokens")?;
        let merges = metadata.merges()?;
        let vocab: Vocab =
            tokens.iter().enumerate().map(|(id, text)| (text.to_string(), id as u32)).collect();
        let fail = |error: tokenizers::Error| metadata.error(&format!("Cannot build the tokenizer: {error}"));
        let bpe = BPE::builder()
            .vocab_and_merges(vocab, merges)
            .ignore_merges(ignore_merges)
            .build()
            .map_err(fail)?;
        let mut tokenizer = Tokenizer::new(bpe);
        // Before the added tokens, which it would otherwise have to go through again.
        tokenizer.with_normalizer(normalizer).map_err(fail)?;
        tokenizer.with_pre_tokenizer(Some(splitter));
        tokenizer.with_decoder(Some(ByteLevel::new(false, false, false)));
        tokenizer.add_tokens(metadata.added_tokens(&tokens)?).map_err(fail)?;

        let text_of = |id: u32| tokens.get(id as usize).map(|text| (*text).to_string());
        let mut specials = BTreeMap::new();
        let mut stop_ids = Vec::new();
        for (key, name) in [
            ("bos", "bos_token"),
            ("eos", "eos_token"),
            ("eot", ""),
            ("eom", ""),
            ("unknown", "unk_token"),
            ("padding", "pad_token"),
        ] {
            let Some(id) = metadata.id(&format!("tokenizer.ggml.{key}_token_id"))? else { continue };
            let Some(text) = text_of(id) else {
                return Err(
                    metadata.error(&format!("{key}_token_id {id} is past the {} tokens", tokens.len()))
                );
            };
            if key.starts_with("eo") {
                stop_ids.push(id);
            }
            if !name.is_empty() {
                specials.insert(name.to_string(), text);
            }
        }
        let frame = |add: bool, id: Option<u32>| id.filter(|_| add).into_iter().collect::<Vec<_>>();
        let add_bos = metadata.bool("tokenizer.ggml.add_bos_token")?.unwrap_or(add_bos);
        let add_eos = metadata.bool("tokenizer.ggml.add_eos_token")?.unwrap_or(false);
        let prefix_ids = frame(add_bos, metadata.id("tokenizer.ggml.bos_token_id")?);
        let suffix_ids = frame(add_eos, metadata.id("tokenizer.ggml.eos_token_id")?);
        let template = metadata.string("tokenizer.chat_template")?.map(str::to_string);
        Ok(Self { tokenizer, template, specials, stop_ids, prefix_ids, suffix_ids })
    }
}

/// Typed look-ups in the metadata.
struct Metadata<'a> {
    header: &'a Header,
    path: &'a Path,
}

impl<'a> Metadata<'a> {
    fn error(&self, problem: &str) -> Error {
        Error::model(format!("{problem}: {}", self.path.display()))
    }

    fn wrong_type(&self, key: &str, value: &Value) -> Error {
        self.error(&format!("GGUF metadata {key} is unexpectedly {value:?}"))
    }

    fn string(&self, key: &str) -> Result<Option<&'a str>> {
        match self.header.metadata.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong_type(key, other)),
        }
    }

    fn bool(&self, key: &str) -> Result<Option<bool>> {
        match self.header.metadata.get(key) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(*value)),
            Some(other) => Err(self.wrong_type(key, other)),
        }
    }

    fn id(&self, key: &str) -> Result<Option<u32>> {
        let Some(value) = self.header.metadata.get(key) else { return Ok(None) };
        // Some converters write -1 for a token the model does not have.
        integer(value).map(|id| u32::try_from(id).ok()).ok_or_else(|| self.wrong_type(key, value))
    }

    fn array(&self, key: &str) -> Result<&'a [Value]> {
        match self.header.metadata.get(key) {
            Some(Value::Array(items)) => Ok(items),
            Some(other) => Err(self.wrong_type(key, other)),
            None => Err(self.error(&format!("The GGUF has no metadata {key}"))),
        }
    }

    fn strings(&self, key: &str) -> Result<Vec<&'a str>> {
        let text = |value: &'a Value| match value {
            Value::String(text) => Ok(text.as_str()),
            other => Err(self.wrong_type(key, other)),
        };
        self.array(key)?.iter().map(text).collect()
    }

    fn merges(&self) -> Result<Vec<(String, String)>> {
        let pair = |merge: &str| {
            let halves = merge.split_once(' ').map(|(left, right)| (left.to_string(), right.to_string()));
            halves.ok_or_else(|| self.error(&format!("Not a merge of two tokens: {merge:?}")))
        };
        self.strings("tokenizer.ggml.merges")?.into_iter().map(pair).collect()
    }

    /// The tokens that are found in a text before anything else, as llama.cpp does it.
    fn added_tokens(&self, tokens: &[&str]) -> Result<Vec<AddedToken>> {
        if !self.header.metadata.contains_key("tokenizer.ggml.token_type") {
            return Ok(Vec::new());
        }
        let types = self.array("tokenizer.ggml.token_type")?;
        let added = types.iter().zip(tokens).filter_map(|(kind, text)| match integer(kind)? {
            TYPE_UNKNOWN | TYPE_CONTROL => Some(AddedToken::from(*text, true)),
            TYPE_USER_DEFINED => Some(AddedToken::from(*text, false).normalized(false)),
            _ => None,
        });
        Ok(added.collect())
    }
}

fn integer(value: &Value) -> Option<i64> {
    match value {
        Value::Integer(value) => Some(*value),
        _ => None,
    }
}

/// llama.cpp's names, each with what the models behind it have in their tokenizer.json.
fn pre_tokenizer(name: &str) -> Option<PreTokenizer> {
    // GPT-2's pattern, which the byte-level step brings itself.
    let gpt2 = || PreTokenizerWrapper::from(ByteLevel::new(false, true, true));
    let plain = |splitter| PreTokenizer { normalizer: None, splitter, ignore_merges: false, add_bos: false };
    Some(match name {
        "default" => plain(split(&DEFAULT)?),
        "gpt-2" | "gpt2" | "phi-2" | "mpt" | "olmo" | "jais" | "trillion" | "granite-docling" => {
            plain(gpt2())
        }
        "smollm" | "starcoder" | "refact" | "command-r" | "codeshell" | "exaone" | "minerva-7b" => {
            plain(Sequence::new(vec![Digits::new(true).into(), gpt2()]).into())
        }
        "llama3" | "llama-v3" | "llama-bpe" | "falcon3" | "falcon-h1" | "pixtral" | "midm-2.0" | "lfm2" => {
            PreTokenizer {
                ignore_merges: true,
                add_bos: true,
                ..plain(split(&[&words(r"\p{L}", r"\p{N}{1,3}")])?)
            }
        }
        "smaug-bpe" | "dbrx" | "chatglm-bpe" | "glm4" => plain(split(&[&words(r"\p{L}", r"\p{N}{1,3}")])?),
        // Their tokenizer.json composes characters first; llama.cpp leaves that out.
        "qwen2" | "deepseek-r1-qwen" => {
            PreTokenizer { normalizer: Some(NFC.into()), ..plain(split(&[&words(r"\p{L}", r"\p{N}")])?) }
        }
        "stablelm2" | "hunyuan" | "megrez" => plain(split(&[&words(r"\p{L}", r"\p{N}")])?),
        "qwen35" => {
            PreTokenizer { normalizer: Some(NFC.into()), ..plain(split(&[&words(r"\p{L}\p{M}", r"\p{N}")])?) }
        }
        "deepseek-v3" => plain(split(&DEEPSEEK3)?),
        "deepseek-coder" => plain(split(&DEEPSEEK_CODER)?),
        "gpt-4o" | "llama4" => plain(split(&[&cased_words(&format!("{CONTRACTIONS}?"), r"\p{N}{1,3}")])?),
        "tekken" => PreTokenizer {
            ignore_merges: true,
            add_bos: true,
            ..plain(split(&[&cased_words("", r"\p{N}")])?)
        },
        _ => return None,
    })
}

/// The pattern of Llama 3 and Qwen: contractions, words, numbers, punctuation, white space.
fn words(letters: &str, numbers: &str) -> String {
    let not_symbol = if letters.contains(r"\p{M}") { r"\s\p{L}\p{M}\p{N}" } else { r"\s\p{L}\p{N}" };
    format!(
        r"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?[{letters}]+|{numbers}| ?[^{not_symbol}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
}

/// The pattern of GPT-4o: as [`words`], but a capital begins a new word.
fn cased_words(suffix: &str, numbers: &str) -> String {
    const UPPER: &str = r"\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}";
    const LOWER: &str = r"\p{Ll}\p{Lm}\p{Lo}\p{M}";
    format!(
        r"[^\r\n\p{{L}}\p{{N}}]?[{UPPER}]*[{LOWER}]+{suffix}|[^\r\n\p{{L}}\p{{N}}]?[{UPPER}]+[{LOWER}]*{suffix}|{numbers}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
}

/// One splitter a pattern, each on the pieces of the one before, then bytes.
fn split(patterns: &[&str]) -> Option<PreTokenizerWrapper> {
    let mut steps: Vec<PreTokenizerWrapper> = Vec::new();
    for pattern in patterns {
        let pattern = SplitPattern::Regex((*pattern).to_string());
        steps.push(Split::new(pattern, SplitDelimiterBehavior::Isolated, false).ok()?.into());
    }
    steps.push(ByteLevel::new(false, false, false).into());
    Some(Sequence::new(steps).into())
}
