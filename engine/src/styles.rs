//! Styles: tokens that ask for a way of answering.
//!
//! A style's token stands right behind what the user says, inside the user's turn, as Qwen3's `/no_think` does: every
//! template writes it, no loss is taken on it, and a reply begins as it always does. Training and chat put it there by
//! the same [`apply`].

use std::path::Path;

use candle_core::Tensor;
use lathe_protocol::{ErrorCode, Message, Role, Style, StylesFile};
use serde_json::{Map, Value, json};

use crate::{
    Error, Result,
    data::{Conversation, RawText},
    files,
    model::Model,
    template::ChatTemplate,
    text_files::{SpecialToken, TOKENIZER_FILE, TextFiles},
    tokenize,
};

/// What goes along with a tokenizer, where the model has it.
const TEXT_FILES: [&str; 3] = ["tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"];

/// Puts the token of each styled turn behind what the user says there.
///
/// Errors: a style that is none of `styles`.
pub fn apply(styles: &[Style], messages: &mut [Message]) -> Result<()> {
    for message in messages.iter_mut().filter(|message| message.role == Role::User) {
        if let Some(name) = &message.style {
            message.content.push_str(&find(styles, name)?.token);
        }
    }
    Ok(())
}

/// [`apply`] on a row: text without turns has the token at the end of its prompt.
pub fn apply_to_row(styles: &[Style], conversation: &mut Conversation) -> Result<()> {
    match conversation {
        Conversation::Chat(chat) => apply(styles, &mut chat.messages),
        Conversation::Raw(RawText { prompt, style: Some(name), .. }) => {
            prompt.push_str(&find(styles, name)?.token);
            Ok(())
        }
        Conversation::Raw(_) => Ok(()),
    }
}

/// The style a row is of.
pub fn of_row(conversation: &Conversation) -> Option<&str> {
    match conversation {
        Conversation::Chat(chat) => chat.messages.iter().find_map(|message| message.style.as_deref()),
        Conversation::Raw(raw) => raw.style.as_deref(),
    }
}

fn find<'a>(styles: &'a [Style], name: &str) -> Result<&'a Style> {
    styles.iter().find(|style| style.name == name).ok_or_else(|| {
        let names: Vec<_> = styles.iter().map(|style| style.name.as_str()).collect();
        let hint = if names.is_empty() {
            "no adapter here has styles: leave it out".into()
        } else {
            format!("known styles: {}", names.join(", "))
        };
        Error::invalid(ErrorCode::Usage, format!("There is no style {name:?}")).hint(hint)
    })
}

/// Gives the model rows for the styles' tokens. Each begins as the mean of what the style's name is made of, so that
/// two styles differ, and in a direction that has to do with them, from the first step.
pub fn attach_fresh(model: &mut Model, text_files: &TextFiles) -> Result<()> {
    let row = |style: &Style| {
        let ids = tokenize::encode_plain(text_files, &style.name)?;
        Ok(model.embed(&ids)?.mean(0)?)
    };
    let rows = text_files.styles.iter().map(row).collect::<Result<Vec<_>>>()?;
    model.set_token_rows(text_files.style_ids()?, &Tensor::stack(&rows, 0)?)
}

/// The styles in an adapter's folder; none in one without.
pub fn read(folder: &Path) -> Result<StylesFile> {
    let path = folder.join(StylesFile::NAME);
    if path.exists() { files::read_json(&path) } else { Ok(StylesFile::default()) }
}

/// An error if the adapter's styles were trained beside an embedding table of another size.
pub fn check_base(model: &Model, folder: &Path) -> Result<()> {
    let StylesFile { base_vocab_size, styles } = read(folder)?;
    let vocab_size = model.config.vocab_size;
    if styles.is_empty() || base_vocab_size == vocab_size {
        return Ok(());
    }
    let message = format!(
        "The adapter's styles do not fit the model: they are for a vocabulary of {base_vocab_size}, it has {vocab_size}: {}",
        folder.display()
    );
    Err(Error::invalid(ErrorCode::Adapter, message).hint("it was trained on another base model"))
}

/// Writes the styles and the tokenizer that knows their tokens into an adapter's folder, as transformers reads it.
pub fn save(text_files: &TextFiles, model_path: &Path, base_vocab_size: usize, folder: &Path) -> Result<()> {
    let styles = text_files.styles.clone();
    files::write_json(&folder.join(StylesFile::NAME), &StylesFile { base_vocab_size, styles })?;
    if !model_path.is_dir() {
        let json = text_files.tokenizer.to_string(false).map_err(|error| {
            Error::invalid(ErrorCode::Internal, format!("The tokenizer cannot be written: {error}"))
        })?;
        files::write_atomically(&folder.join(TOKENIZER_FILE), json.as_bytes())?;
        return files::write_json(&folder.join(TEXT_FILES[0]), &config_of(text_files));
    }
    let mut tokenizer: Map<String, Value> = files::read_json(&model_path.join(TOKENIZER_FILE))?;
    let tokens = text_files.styles.iter().zip(text_files.style_ids()?).map(|(style, id)| {
        json!({
            "id": id, "content": style.token, "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true,
        })
    });
    let added = tokenizer.entry("added_tokens").or_insert_with(|| json!([]));
    if let Value::Array(added) = added {
        added.extend(tokens);
    }
    files::write_json(&folder.join(TOKENIZER_FILE), &tokenizer)?;
    for name in TEXT_FILES {
        let source = model_path.join(name);
        if source.exists() {
            files::write_atomically(&folder.join(name), &files::read_maybe_gzip(&source)?)?;
        }
    }
    Ok(())
}

/// A `tokenizer_config.json` for a model that has none.
fn config_of(text_files: &TextFiles) -> Value {
    let text = |token: &Option<SpecialToken>| token.as_ref().map(|token| token.text.clone());
    json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": text(&text_files.bos),
        "eos_token": text(&text_files.eos),
        "chat_template": text_files.template.as_ref().map(ChatTemplate::source),
    })
}
