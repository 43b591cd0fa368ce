//! A row of a data file into tokens: the one road that training, evaluation and preflight share.

use std::ops::Range;

use lathe_protocol::{DatasetShape, Role, RowPlace, RunConfig};
use rand::seq::SliceRandom as _;
use rayon::prelude::*;

use crate::{
    Error, Result,
    data::{Chat, Conversation, Dataset, Pair, RawExample, RawText, parse_conversation, parse_pair},
    rng,
    similar::Print,
    styles,
    template::{self, RenderOptions, Rendered},
    text_files::TextFiles,
    tokenize::{TokenizedRow, Tokens, encode, encode_with_bytes},
};

/// What the rows of one file become, in memory: those with something to learn, cut to length.
///
/// Errors: the first row, in order, that cannot be rendered.
pub fn rows(text_files: &TextFiles, dataset: &Dataset, max_seq_len: usize) -> Result<Vec<TokenizedRow>> {
    let encoder = Encoder::new(text_files, dataset);
    let cut = |example: &RawExample| {
        let encoded = encoder.encode(example)?;
        let useless = encoded.useless;
        let mut row = encoded.into_row(example.row);
        row.truncate(max_seq_len);
        Ok((!useless && row.learns()).then_some(row))
    };
    let encoded: Vec<_> = dataset.examples.par_iter().map(cut).collect();
    encoded.into_iter().filter_map(Result::transpose).collect()
}

/// Which of `num_rows` usable rows are held out for evaluation: the share `eval_ratio`, drawn by the seed; at least one
/// if there are two.
pub fn held_out(num_rows: usize, config: &RunConfig) -> Vec<bool> {
    let mut held_out = vec![false; num_rows];
    if config.eval_ratio > 0.0 && num_rows > 1 {
        let count = (config.eval_ratio * num_rows as f64).round() as usize;
        let mut order: Vec<usize> = (0..num_rows).collect();
        order.shuffle(&mut rng::stream(config.seed, "hold-out", 0));
        for row in &order[..count.clamp(1, num_rows - 1)] {
            held_out[*row] = true;
        }
    }
    held_out
}

/// One row's text, and which of it is learned.
///
/// Raw text ends in the model's end token, as TRL has it, so that the model learns to stop.
pub fn render(text_files: &TextFiles, conversation: &Conversation) -> Result<Rendered> {
    match conversation {
        Conversation::Chat(chat) => {
            template::render(text_files.chat_template(), chat, &RenderOptions::default())
        }
        Conversation::Raw(RawText { prompt, completion, .. }) => {
            let mut text = format!("{prompt}{completion}");
            if let Some(eos) = text_files.eos.as_ref().filter(|_| text_files.suffix_ids.is_empty())
                && !text.ends_with(&eos.text)
            {
                text.push_str(&eos.text);
            }
            let learned = prompt.len()..text.len();
            Ok(Rendered { text, assistant_spans: vec![learned], bare: true })
        }
    }
}

/// Parses and renders one row, its style's token in place; errors name it.
pub(crate) fn render_row(
    text_files: &TextFiles,
    dataset: &Dataset,
    example: &RawExample,
) -> Result<(Conversation, Rendered)> {
    let mut conversation = parse_conversation(example, dataset.shape, &dataset.path)?;
    let styled = match text_files.styles.as_slice() {
        [] => Ok(()),
        styles => styles::apply_to_row(styles, &mut conversation),
    };
    let rendered = styled
        .and_then(|()| render(text_files, &conversation))
        .map_err(|error| in_row(error, dataset, example))?;
    Ok((conversation, rendered))
}

fn in_row(error: Error, dataset: &Dataset, example: &RawExample) -> Error {
    match error {
        Error::Invalid { code, message, hint } => {
            let place = RowPlace { row: example.row, line: example.line, file: None };
            let path = dataset.path.display();
            Error::Invalid { code, message: format!("Row {place}: {message}: {path}"), hint }
        }
        other => other,
    }
}

/// What is a pair's: the prompt alone, and both sides, in whatever form. Errors name the row.
pub(crate) fn render_pair(
    text_files: &TextFiles,
    dataset: &Dataset,
    example: &RawExample,
) -> Result<(Pair, [Rendered; 3])> {
    let mut pair = parse_pair(example, &dataset.path)?;
    let rendered = (|| {
        for side in [&mut pair.chosen, &mut pair.rejected] {
            if !text_files.styles.is_empty() {
                styles::apply_to_row(&text_files.styles, side)?;
            }
        }
        let prompt = render_prompt(text_files, &pair.chosen)?;
        Ok([prompt, render_side(text_files, &pair.chosen)?, render_side(text_files, &pair.rejected)?])
    })();
    Ok((pair, rendered.map_err(|error| in_row(error, dataset, example))?))
}

/// The prompt of a pair, up to where the answer begins.
fn render_prompt(text_files: &TextFiles, side: &Conversation) -> Result<Rendered> {
    let (text, bare) = match side {
        Conversation::Chat(chat) => {
            let asked = Chat { messages: chat.messages[..chat.unlearned.len()].to_vec(), ..chat.clone() };
            let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
            (text_files.chat_template().prompt(&asked, &options)?, false)
        }
        Conversation::Raw(raw) => (raw.prompt.clone(), true),
    };
    Ok(Rendered { text, assistant_spans: Vec::new(), bare })
}

/// A side of a pair: the template's text as it is, whoever wrote what of it.
fn render_side(text_files: &TextFiles, side: &Conversation) -> Result<Rendered> {
    match side {
        Conversation::Chat(chat) => {
            let text = text_files.chat_template().prompt(chat, &RenderOptions::default())?;
            Ok(Rendered { text, assistant_spans: Vec::new(), bare: false })
        }
        Conversation::Raw(_) => render(text_files, side),
    }
}

/// A pair's sides as tokens with their bytes. What follows the prompt is learned, from where the tokens of both sides
/// cease to be the prompt's (TRL's convention).
pub(crate) fn encode_pair(
    text_files: &TextFiles,
    [prompt, chosen, rejected]: &[Rendered; 3],
) -> Result<[(Tokens, Vec<Range<usize>>); 2]> {
    let prompt = encode(text_files, prompt)?.ids;
    let mut sides = [encode_with_bytes(text_files, chosen)?, encode_with_bytes(text_files, rejected)?];
    let shared = |ids: &[u32]| ids.iter().zip(&prompt).take_while(|(a, b)| a == b).count();
    let num_shared = shared(&sides[0].0.ids).min(shared(&sides[1].0.ids));
    for (Tokens { loss_mask, .. }, _) in &mut sides {
        loss_mask.iter_mut().enumerate().for_each(|(t, learned)| *learned = t >= num_shared.max(1));
    }
    Ok(sides)
}

/// One row's tokens, whole, and what else there is to know of it.
pub(crate) struct EncodedRow {
    pub line: usize,
    /// Of a pair, the chosen side's.
    pub tokens: Tokens,
    pub rejected: Option<Tokens>,
    /// Something its author should know.
    pub remark: Option<String>,
    /// Whether the remark is why nothing can be learned from it.
    pub useless: bool,
    pub style: Option<String>,
    pub print: Print,
}

impl EncodedRow {
    fn into_row(self, row: usize) -> TokenizedRow {
        let Self { line, tokens: Tokens { ids, loss_mask }, rejected, .. } = self;
        TokenizedRow { row, line, ids, loss_mask, rejected }
    }
}

/// Encodes the rows of one file.
pub(crate) struct Encoder<'a> {
    text_files: &'a TextFiles,
    dataset: &'a Dataset,
    markers: ControlTokens,
}

impl<'a> Encoder<'a> {
    pub fn new(text_files: &'a TextFiles, dataset: &'a Dataset) -> Self {
        Self { text_files, dataset, markers: ControlTokens::of(text_files) }
    }

    pub fn encode(&self, example: &RawExample) -> Result<EncodedRow> {
        let Self { text_files, dataset, markers } = self;
        if dataset.shape == DatasetShape::Preference {
            return self.encode_sides(example);
        }
        let (conversation, rendered) = render_row(text_files, dataset, example)?;
        let remark = match &conversation {
            _ if text_files.styles.is_empty() && styles::of_row(&conversation).is_some() => {
                Some("its style is left out: the run has no styles".into())
            }
            Conversation::Chat(chat) => remark_on(text_files, chat, &rendered, markers),
            Conversation::Raw(_) => None,
        };
        Ok(EncodedRow {
            line: example.line,
            tokens: encode(text_files, &rendered)?,
            rejected: None,
            remark,
            useless: false,
            style: styles::of_row(&conversation).map(str::to_owned),
            print: Print::of([&conversation]),
        })
    }

    fn encode_sides(&self, example: &RawExample) -> Result<EncodedRow> {
        let (pair, rendered) = render_pair(self.text_files, self.dataset, example)?;
        let [chosen, rejected] = encode_pair(self.text_files, &rendered)?.map(|(tokens, _)| tokens);
        let problem = pair.problem();
        Ok(EncodedRow {
            line: example.line,
            tokens: chosen,
            rejected: Some(rejected),
            remark: problem.map(String::from),
            useless: problem.is_some(),
            style: styles::of_row(&pair.chosen).map(str::to_owned),
            print: Print::of([&pair.chosen, &pair.rejected]),
        })
    }
}

fn remark_on(
    text_files: &TextFiles,
    chat: &Chat,
    rendered: &Rendered,
    markers: &ControlTokens,
) -> Option<String> {
    let mut assistant =
        chat.messages.iter().enumerate().filter(|(_, message)| message.role == Role::Assistant);
    let Some((_, last)) = assistant.clone().next_back() else { return Some("no assistant turn".into()) };
    if assistant.all(|(index, _)| chat.unlearned.contains(&index)) {
        return Some("every assistant turn is context (weight 0, or part of the prompt)".into());
    }
    if last.thinking.as_ref().is_some_and(|thinking| !rendered.text.contains(thinking.trim())) {
        return Some("its thinking is left out: the template does not write it".into());
    }
    if chat.reasoning_effort.is_some() && !text_files.supports_effort() {
        return Some("its reasoning_effort is left out: the template does not write it".into());
    }
    chat.messages.iter().enumerate().find_map(|(index, message)| {
        let token = markers.find_in(&message.content)?;
        Some(format!(
            "messages[{index}].content holds the control token {token}, which the model takes as one"
        ))
    })
}

/// The texts that the tokenizer takes as special tokens wherever they stand.
struct ControlTokens {
    texts: Vec<String>,
    /// What any of them begins with: rare characters, so that a search is quick.
    first_chars: Vec<char>,
}

impl ControlTokens {
    fn of(text_files: &TextFiles) -> Self {
        let added = text_files.tokenizer.get_added_tokens_decoder();
        let is_style = |text: &String| text_files.styles.iter().any(|style| style.token == *text);
        let texts = added.into_values().filter(|token| token.special).map(|token| token.content);
        let mut texts: Vec<_> = texts.filter(|text| !is_style(text)).collect();
        texts.sort_unstable();
        let mut first_chars: Vec<_> = texts.iter().filter_map(|text| text.chars().next()).collect();
        first_chars.dedup();
        Self { texts, first_chars }
    }

    fn find_in(&self, text: &str) -> Option<&str> {
        let starts = text.match_indices(self.first_chars.as_slice());
        let mut here =
            starts.filter_map(|(at, _)| self.texts.iter().find(|token| text[at..].starts_with(*token)));
        here.next().map(String::as_str)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_seed_decides_which_share_of_the_rows_is_held_out() {
        let config = |eval_ratio, seed| RunConfig { eval_ratio, seed, ..RunConfig::default() };
        let count = |num_rows, eval_ratio| {
            held_out(num_rows, &config(eval_ratio, 1)).into_iter().filter(|held_out| *held_out).count()
        };
        assert_eq!([count(100, 0.1), count(100, 0.0), count(7, 0.01), count(2, 0.5)], [10, 0, 1, 1]);
        assert_eq!([count(1, 0.5), count(0, 0.5)], [0, 0]);
        assert_eq!(held_out(100, &config(0.1, 1)), held_out(100, &config(0.1, 1)));
        assert_ne!(held_out(100, &config(0.1, 1)), held_out(100, &config(0.1, 2)));
    }
}
