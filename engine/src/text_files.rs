//! A model's words: its tokenizer, chat template and special tokens.

use std::{
    collections::{BTreeMap, HashSet},
    path::Path,
    sync::Arc,
};

use lathe_protocol::{ErrorCode, Message, Role, Style};
use serde_json::{Map, Value};
use tokenizers::{AddedToken, PostProcessorWrapper, Tokenizer};

use crate::{
    Error, Result,
    adapter::PeftConfig,
    data::Chat,
    files::{read_json, read_maybe_gzip},
    gguf::Gguf,
    gguf_tokenizer::GgufTokenizer,
    reply::{HARMONY_SIGNS, MESSAGE_END, ReplyForm, STOPS},
    styles,
    template::{ChatTemplate, RenderOptions},
};

/// Templates for models that bring none: what knows these tokens writes so.
const BY_TOKENS: [(&[&str], &str, &str); 2] = [
    (&HARMONY_SIGNS, include_str!("../../chat_templates/gptoss.jinja"), "Harmony"),
    (
        &["<|im_start|>", "<think>", "</think>"],
        include_str!("../../chat_templates/qwen3.jinja"),
        "ChatML with thoughts",
    ),
];
/// For all others.
const CHATML: &str = include_str!("../../chat_templates/chatml_training.jinja");
const CHATML_END: &str = "<|im_end|>";

pub(crate) const TOKENIZER_FILE: &str = "tokenizer.json";

/// The names under which a template may ask for special tokens.
const SPECIAL_KEYS: [&str; 7] =
    ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// What a model's own files say about text.
pub struct TextFiles {
    /// Without post-processing, truncation and padding: ids are exactly the text's.
    pub tokenizer: Arc<Tokenizer>,
    /// The model's own.
    pub template: Option<ChatTemplate>,
    /// Any of these ends a reply.
    pub stop_ids: Vec<u32>,
    pub bos: Option<SpecialToken>,
    pub eos: Option<SpecialToken>,
    /// What the tokenizer itself puts before and after a bare text, usually BOS and nothing.
    pub prefix_ids: Vec<u32>,
    pub suffix_ids: Vec<u32>,
    /// Ways of answering whose tokens the tokenizer knows.
    pub styles: Vec<Style>,
    fallback_template: ChatTemplate,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecialToken {
    pub id: u32,
    pub text: String,
}

/// What either kind of model says, before it is made ready.
struct Parts {
    tokenizer: Tokenizer,
    /// Source and origin.
    template: Option<(String, String)>,
    specials: BTreeMap<String, String>,
    stop_ids: Vec<u32>,
    prefix_ids: Vec<u32>,
    suffix_ids: Vec<u32>,
}

impl Parts {
    fn open(model: &Path) -> Result<Self> {
        if model.is_dir() {
            return Self::from_folder(model);
        }
        Self::from_gguf(&Gguf::open(model)?)
    }

    fn from_gguf(gguf: &Gguf) -> Result<Self> {
        let GgufTokenizer { tokenizer, specials, stop_ids, prefix_ids, suffix_ids, template } =
            GgufTokenizer::read(&gguf.header, &gguf.path)?;
        let template = template.map(|source| (source, "the GGUF's metadata".to_string()));
        Ok(Self { tokenizer, template, specials, stop_ids, prefix_ids, suffix_ids })
    }

    fn from_folder(folder: &Path) -> Result<Self> {
        let path = folder.join(TOKENIZER_FILE);
        if !path.exists() {
            let error = Error::model(format!("The model has no tokenizer.json: {}", folder.display()));
            return Err(if folder.join("tokenizer.model").exists() {
                error.hint(
                    "save the tokenizer with transformers' save_pretrained, which converts tokenizer.model",
                )
            } else {
                error.hint("the download may be incomplete: run `lathe models verify`")
            });
        }
        let mut tokenizer = Tokenizer::from_bytes(read_maybe_gzip(&path)?).map_err(|error| {
            Error::model(format!("Not a readable tokenizer: {error}: {}", path.display()))
        })?;
        let (prefix_ids, suffix_ids) = bare_frame(&tokenizer)?;
        // Offsets must be the text's own, and a chat template writes every special token itself.
        tokenizer.with_post_processor(None::<PostProcessorWrapper>);
        tokenizer.with_padding(None);
        tokenizer.with_truncation(None).map_err(|error| {
            Error::model(format!("Cannot set up the tokenizer: {error}: {}", path.display()))
        })?;

        let config: Map<String, Value> = read_optional(&folder.join("tokenizer_config.json"))?;
        let map: Map<String, Value> = read_optional(&folder.join("special_tokens_map.json"))?;
        let mut specials = BTreeMap::new();
        for key in SPECIAL_KEYS {
            if let Some(text) =
                [&config, &map].into_iter().find_map(|fields| fields.get(key).and_then(token_text))
            {
                specials.insert(key.to_string(), text.to_string());
            }
        }
        let mut stop_ids = Vec::new();
        for name in ["generation_config.json", "config.json"] {
            let fields: Map<String, Value> = read_optional(&folder.join(name))?;
            match fields.get("eos_token_id") {
                Some(Value::Array(ids)) => stop_ids.extend(ids.iter().filter_map(as_id)),
                Some(id) => stop_ids.extend(as_id(id)),
                None => {}
            }
        }
        let template = folder_template(folder, &config)?;
        Ok(Self { tokenizer, template, specials, stop_ids, prefix_ids, suffix_ids })
    }
}

impl TextFiles {
    /// Reads a model folder or a `.gguf` file.
    pub fn open(model: &Path) -> Result<Self> {
        Self::new(Parts::open(model)?)
    }

    /// [`Self::open`] with what the adapters bring: the tokenizer and template of one that has tokens of its own.
    ///
    /// Errors: a tokenizer that is not the model's with tokens added; two such adapters.
    pub fn open_with(model: &Path, adapters: &[impl AsRef<Path>]) -> Result<Self> {
        let mut parts = Parts::open(model)?;
        let mut styles = Vec::new();
        for folder in adapters.iter().map(AsRef::as_ref).filter(|folder| folder.join(TOKENIZER_FILE).exists())
        {
            if PeftConfig::read(folder)?.token_ids().is_empty() {
                // A copy of the model's own, as trainers leave it.
                continue;
            }
            let own = Parts::from_folder(folder)?;
            check_vocabulary(&parts.tokenizer, &own.tokenizer, folder)?;
            parts.specials.extend(own.specials);
            parts = Parts { tokenizer: own.tokenizer, template: own.template.or(parts.template), ..parts };
            styles.extend(styles::read(folder)?.styles);
        }
        Ok(Self { styles, ..Self::new(parts)? })
    }

    /// Adds the styles' tokens to the tokenizer, behind all it has.
    ///
    /// Errors: a token that it has already.
    pub fn with_styles(mut self, styles: &[Style]) -> Result<Self> {
        let tokenizer = Arc::make_mut(&mut self.tokenizer);
        for Style { name, token, .. } in styles {
            if tokenizer.token_to_id(token).is_some() {
                let message = format!(
                    "The model's tokenizer has {token:?} already, style {name:?} needs a token of its own"
                );
                return Err(Error::invalid(ErrorCode::Usage, message).hint(format!("e.g. <|style:{name}|>")));
            }
            tokenizer
                .add_special_tokens([AddedToken::from(token, true)])
                .map_err(|error| Error::model(format!("The tokenizer does not take {token:?}: {error}")))?;
        }
        self.styles = styles.to_vec();
        Ok(self)
    }

    /// Ids of the styles' tokens.
    ///
    /// Errors: the tokenizer lacks one.
    pub fn style_ids(&self) -> Result<Vec<u32>> {
        let id = |Style { name, token, .. }: &Style| {
            self.tokenizer.token_to_id(token).ok_or_else(|| {
                let message = format!("The tokenizer does not know {token:?}, the token of style {name:?}");
                Error::invalid(ErrorCode::Adapter, message)
            })
        };
        self.styles.iter().map(id).collect()
    }

    /// From a GGUF that is open already.
    pub fn from_gguf(gguf: &Gguf) -> Result<Self> {
        Self::new(Parts::from_gguf(gguf)?)
    }

    fn new(parts: Parts) -> Result<Self> {
        let Parts { tokenizer, template, specials, stop_ids, prefix_ids, suffix_ids } = parts;
        let special = |key: &str| {
            let text = specials.get(key)?;
            Some(SpecialToken { id: tokenizer.token_to_id(text)?, text: text.clone() })
        };
        let (bos, eos) = (special("bos_token"), special("eos_token"));
        let template =
            template.map(|(source, origin)| ChatTemplate::new(&source, origin, &specials)).transpose()?;
        let (source, name) = fallback_template(&tokenizer, eos.as_ref());
        let origin = format!("{name}, as the model brings no template");
        let fallback_template = ChatTemplate::new(&source, origin, &specials)?;
        let mut text_files = Self {
            tokenizer: Arc::new(tokenizer),
            template,
            stop_ids: Vec::new(),
            bos,
            eos,
            prefix_ids,
            suffix_ids,
            styles: Vec::new(),
            fallback_template,
        };
        let mut seen = HashSet::new();
        let eos_id = text_files.eos.as_ref().map(|eos| eos.id);
        let all = stop_ids.into_iter().chain(eos_id).chain(text_files.turn_end_id());
        text_files.stop_ids = if text_files.reply_form() == ReplyForm::Harmony {
            // Some files say that a message's end ends the reply.
            let message_end = text_files.tokenizer.token_to_id(MESSAGE_END);
            let stops = STOPS.iter().filter_map(|stop| text_files.tokenizer.token_to_id(stop));
            all.filter(|id| Some(*id) != message_end).chain(stops).filter(|id| seen.insert(*id)).collect()
        } else {
            all.filter(|id| seen.insert(*id)).collect()
        };
        Ok(text_files)
    }

    /// The model's template, or the one its tokens ask for, which is ChatML for most.
    pub fn chat_template(&self) -> &ChatTemplate {
        self.template.as_ref().unwrap_or(&self.fallback_template)
    }

    /// How the model marks the parts of its replies.
    pub fn reply_form(&self) -> ReplyForm {
        ReplyForm::of(&self.tokenizer, self.chat_template())
    }

    /// Whether the model can think before it answers.
    pub fn supports_thinking(&self) -> bool {
        let template = self.chat_template();
        self.reply_form() == ReplyForm::Harmony
            || ["<think>", "enable_thinking", "reasoning_content"].iter().any(|word| template.mentions(word))
    }

    /// Whether the model can be told how hard to think.
    pub fn supports_effort(&self) -> bool {
        self.chat_template().mentions("reasoning_effort")
    }

    /// The special token that the template writes behind an assistant's words.
    fn turn_end_id(&self) -> Option<u32> {
        const WORDS: &str = "Lathe probes the template";
        let chat = Chat::new(vec![Message::new(Role::User, "Hello"), Message::new(Role::Assistant, WORDS)]);
        // A template that refuses the probe may still serve the user's conversations, so this is no error.
        let text = self.chat_template().prompt(&chat, &RenderOptions::default()).ok()?;
        let (_, tail) = text.rsplit_once(WORDS)?;
        let encoding = self.tokenizer.encode_fast(tail, false).ok()?;
        let id = *encoding.get_ids().first()?;
        is_special(&self.tokenizer, id).then_some(id)
    }
}

/// Whether `id` is a token of the model's own making rather than text.
pub fn is_special(tokenizer: &Tokenizer, id: u32) -> bool {
    let vocabulary = tokenizer.get_added_vocabulary();
    vocabulary.simple_id_to_token(id).is_some_and(|text| vocabulary.is_special_token(&text))
}

/// Source and name of what a model without a template is taken to speak.
fn fallback_template(tokenizer: &Tokenizer, eos: Option<&SpecialToken>) -> (String, &'static str) {
    let knows = |token: &&str| tokenizer.token_to_id(token).is_some();
    if let Some((_, source, name)) = BY_TOKENS.iter().find(|(tokens, ..)| tokens.iter().all(knows)) {
        return ((*source).to_owned(), name);
    }
    match eos {
        // A model that never saw ChatML's end token has no single token for it; its own end token is one.
        Some(eos) if !knows(&CHATML_END) => (CHATML.replace(CHATML_END, &eos.text), "ChatML"),
        _ => (CHATML.to_owned(), "ChatML"),
    }
}

/// An error unless `own`, of the adapter in `folder`, is `base` with tokens added.
fn check_vocabulary(base: &Tokenizer, own: &Tokenizer, folder: &Path) -> Result<()> {
    let (base, own) = (base.get_vocab(true), own.get_vocab(true));
    let Some((token, id)) = base.iter().find(|(token, id)| own.get(*token) != Some(id)) else {
        return Ok(());
    };
    let there = own.get(token).map_or("is not in it".into(), |id| format!("is {id} there"));
    let message = format!(
        "The adapter's vocabulary ({} tokens) is not that of the model ({} tokens): {token:?}, the model's {id}, {there}: {}",
        own.len(),
        base.len(),
        folder.display()
    );
    Err(Error::invalid(ErrorCode::Adapter, message).hint("it was trained on another base model"))
}

/// What the tokenizer's post-processor puts before and after a text.
fn bare_frame(tokenizer: &Tokenizer) -> Result<(Vec<u32>, Vec<u32>)> {
    let encoding = tokenizer
        .encode_fast("a", true)
        .map_err(|error| Error::model(format!("The tokenizer fails on the letter a: {error}")))?;
    let mask = encoding.get_special_tokens_mask();
    let ids = encoding.get_ids();
    let first = mask.iter().position(|&special| special == 0).unwrap_or(mask.len());
    let last = mask.iter().rposition(|&special| special == 0).map_or(first, |at| at + 1);
    Ok((ids[..first].to_vec(), ids[last..].to_vec()))
}

fn read_optional(path: &Path) -> Result<Map<String, Value>> {
    if path.exists() { read_json(path) } else { Ok(Map::new()) }
}

/// A token is written as its text, or as an object with its text under `content`.
fn token_text(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value.get("content")?.as_str())
}

fn as_id(value: &Value) -> Option<u32> {
    value.as_u64().and_then(|id| u32::try_from(id).ok())
}

/// Source and origin: the file, or the config's key, which holds one template or several by name.
fn folder_template(folder: &Path, config: &Map<String, Value>) -> Result<Option<(String, String)>> {
    let path = folder.join("chat_template.jinja");
    if path.exists() {
        let source = String::from_utf8(read_maybe_gzip(&path)?).map_err(|error| {
            Error::model(format!("The chat template is not UTF-8: {error}: {}", path.display()))
        })?;
        return Ok(Some((source, "chat_template.jinja of the model".into())));
    }
    let origin = "tokenizer_config.json of the model";
    match config.get("chat_template") {
        None | Some(Value::Null) => {}
        Some(Value::String(source)) => return Ok(Some((source.clone(), origin.into()))),
        Some(Value::Array(named)) => {
            let field = |entry: &Value, key: &str| entry.get(key).and_then(Value::as_str).map(str::to_string);
            let chosen = named.iter().find(|entry| field(entry, "name").as_deref() == Some("default"));
            if let Some(source) = chosen.or(named.first()).and_then(|entry| field(entry, "template")) {
                return Ok(Some((source, origin.into())));
            }
        }
        Some(_) => {
            let path = folder.join("tokenizer_config.json");
            return Err(Error::model(format!(
                "chat_template is neither a string nor a list of named templates: {}",
                path.display()
            )));
        }
    }
    let path = folder.join("chat_template.json");
    let fields = read_optional(&path)?;
    let source = fields.get("chat_template").and_then(Value::as_str);
    Ok(source.map(|source| (source.to_string(), "chat_template.json of the model".into())))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use serde_json::json;

    use super::*;

    fn tiny() -> std::path::PathBuf {
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/data/tiny-llama")
    }

    /// A folder with the tiny tokenizer and these JSON files.
    fn folder(files: &[(&str, Value)]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        std::fs::copy(tiny().join("tokenizer.json"), folder.path().join("tokenizer.json")).unwrap();
        for (name, value) in files {
            std::fs::write(folder.path().join(name), value.to_string()).unwrap();
        }
        folder
    }

    fn hello(text_files: &TextFiles) -> String {
        let chat = Chat::new(vec![Message::new(Role::User, "Hi"), Message::new(Role::Assistant, "Hello")]);
        text_files.chat_template().prompt(&chat, &RenderOptions::default()).unwrap()
    }

    #[test]
    fn a_folder_tells_its_end_tokens_and_template() {
        let text_files = TextFiles::open(&tiny()).unwrap();
        assert_eq!(text_files.stop_ids, [2, 0]);
        assert_eq!(text_files.eos, Some(SpecialToken { id: 2, text: "<|im_end|>".into() }));
        assert_eq!(text_files.bos, None);
        let template = text_files.template.unwrap();
        assert_eq!(template.origin, "tokenizer_config.json of the model");
        assert!(template.has_generation_tags());
    }

    #[test]
    fn templates_come_under_several_names() {
        let named =
            json!([{"name": "tool_use", "template": "tools"}, {"name": "default", "template": "plain"}]);
        let model = folder(&[("tokenizer_config.json", json!({"chat_template": named}))]);
        assert_eq!(hello(&TextFiles::open(model.path()).unwrap()), "plain");
        std::fs::write(model.path().join("chat_template.jinja"), "file").unwrap();
        assert_eq!(hello(&TextFiles::open(model.path()).unwrap()), "file");
        let model = folder(&[("chat_template.json", json!({"chat_template": "json"}))]);
        assert_eq!(hello(&TextFiles::open(model.path()).unwrap()), "json");
    }

    #[test]
    fn a_model_without_a_template_gets_chatml() {
        let text_files = TextFiles::open(folder(&[]).path()).unwrap();
        assert!(text_files.template.is_none());
        assert_eq!(
            hello(&text_files),
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>\n"
        );
        assert_eq!(text_files.stop_ids, [2]);
    }

    #[test]
    fn a_model_without_a_template_speaks_as_its_tokens_tell() {
        let hello_with = |tokens: &[&str]| {
            let model = folder(&[]);
            let path = model.path().join("tokenizer.json");
            let mut tokenizer: Value = read_json(&path).unwrap();
            let added = tokenizer["added_tokens"].as_array_mut().unwrap();
            for (index, token) in tokens.iter().enumerate() {
                let mut entry = added[0].clone();
                (entry["id"], entry["content"]) = (json!(5000 + index), json!(token));
                added.push(entry);
            }
            std::fs::write(&path, tokenizer.to_string()).unwrap();
            let text_files = TextFiles::open(model.path()).unwrap();
            (hello(&text_files), text_files.reply_form(), text_files.supports_effort())
        };
        let (text, form, has_effort) = hello_with(&["<|start|>", "<|channel|>", "<|message|>", "<|return|>"]);
        assert!(text.ends_with(
            "<|start|>user<|message|>Hi<|end|><|start|>assistant<|channel|>final<|message|>Hello<|return|>"
        ));
        assert_eq!((form, has_effort), (ReplyForm::Harmony, true));
        let (text, form, has_effort) = hello_with(&["<think>", "</think>"]);
        assert_eq!(
            text,
            "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\nHello<|im_end|>\n"
        );
        assert_eq!((form, has_effort), (ReplyForm::Tagged, false));
        assert_eq!(hello_with(&["<|start|>", "<|message|>"]).1, ReplyForm::Plain);
    }

    #[test]
    fn a_model_that_does_not_know_chatml_ends_its_turns_with_its_own_token() {
        let path = tiny().join("tokenizer.json");
        let tokenizer = std::fs::read_to_string(path).unwrap().replace("<|im_end|>", "<|stop|>");
        let model = folder(&[("tokenizer_config.json", json!({"eos_token": {"content": "<|endoftext|>"}}))]);
        std::fs::write(model.path().join("tokenizer.json"), tokenizer).unwrap();
        let text_files = TextFiles::open(model.path()).unwrap();
        assert!(hello(&text_files).ends_with("Hello<|endoftext|>\n"));
        assert_eq!(text_files.stop_ids, [0]);
    }

    #[test]
    fn gzip_under_a_plain_name_is_read() {
        let model = folder(&[]);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&std::fs::read(tiny().join("tokenizer.json")).unwrap()).unwrap();
        std::fs::write(model.path().join("tokenizer.json"), gzip.finish().unwrap()).unwrap();
        assert!(TextFiles::open(model.path()).is_ok());
    }

    #[test]
    fn what_the_tokenizer_adds_to_bare_text_is_known_and_not_done_twice() {
        let model = folder(&[]);
        let path = model.path().join("tokenizer.json");
        let mut tokenizer: Value = read_json(&path).unwrap();
        tokenizer["post_processor"] = json!({
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<|im_start|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"<|im_start|>": {"id": "<|im_start|>", "ids": [1], "tokens": ["<|im_start|>"]}},
        });
        std::fs::write(&path, tokenizer.to_string()).unwrap();
        let text_files = TextFiles::open(model.path()).unwrap();
        assert_eq!(
            (text_files.prefix_ids.as_slice(), text_files.suffix_ids.as_slice()),
            ([1].as_slice(), [].as_slice())
        );
        assert_eq!(text_files.tokenizer.encode("Hi", true).unwrap().get_ids().first(), Some(&42));
    }

    #[test]
    fn a_folder_without_a_tokenizer_and_a_file_that_is_no_gguf_are_refused() {
        let empty = tempfile::tempdir().unwrap();
        let error = TextFiles::open(empty.path()).err().unwrap().to_string();
        assert!(error.starts_with("The model has no tokenizer.json: "), "{error}");
        let path = empty.path().join("model.gguf");
        std::fs::write(&path, "not a model").unwrap();
        let error = TextFiles::open(&path).err().unwrap().to_string();
        assert!(error.starts_with("Not a readable GGUF: "), "{error}");
    }
}
