//! What a data file is worth to a model, before any training.

use std::{ops::Range, path::Path};

use lathe_protocol::{
    DataFile, DataReport, DatasetShape, Dedupe, FileReport, LengthStats, Objective, RejectedView,
    ReplyChannel, Role, RowPlace, RowView, RunConfig, SimilarRows, TokenView,
};

use crate::{
    Error, Result, batch,
    corpus::{self, Corpus, Rows},
    data::{self, Chat, Conversation, Dataset, RawExample, parse_conversation},
    prepare,
    store::Reading,
    template::{RenderOptions, Rendered, turns},
    text_files::TextFiles,
    tokenize::{Tokens, encode_with_bytes},
    train::Plan,
};

const NUM_BINS: usize = 24;
/// So many rows are rendered as a chat would render them.
const CHAT_ROWS: usize = 32;

/// The findings about a run's data files.
pub fn check(
    text_files: &TextFiles,
    files: &[DataFile],
    eval_data: Option<&str>,
    config: &RunConfig,
    reading: &mut Reading<'_>,
) -> Result<DataReport> {
    let corpus = corpus::read(text_files, files, eval_data, config, reading)?;
    report(text_files, files, &corpus, eval_data.is_some(), config)
}

/// The findings about data that is read already.
pub fn report(
    text_files: &TextFiles,
    files: &[DataFile],
    corpus: &Corpus,
    has_eval_data: bool,
    config: &RunConfig,
) -> Result<DataReport> {
    let Corpus { datasets, rows, held_out, findings } = corpus;
    let dataset = &datasets[0];
    // What an epoch sees, in the files' order: packing depends a little on the order, which is another in each.
    let stored = Rows::Stored(rows.clone());
    let lengths = stored.lengths();
    let order = Plan::drawn(&stored.shares(), config.seed, 0);
    let sequences_per_epoch =
        batch::count_sequences(&lengths, &order, config.sequence_tokens(), config.packing);
    let sequences_per_step = (config.batch_size * config.grad_accum).max(1);
    let first = dataset.examples.first();
    let conversation =
        first.map(|example| parse_conversation(example, dataset.shape, &dataset.path)).transpose()?;
    let (template, mut mask_source) = sources(text_files, conversation.as_ref());
    if dataset.shape == DatasetShape::Preference {
        mask_source = "what follows the prompt, on both sides".into();
    }
    let file_reports = files.iter().zip(datasets).zip(rows.rows_of_files());
    let mut report = DataReport {
        shape: dataset.shape,
        columns: dataset.columns.clone(),
        roles: data::roles_of(dataset.shape),
        rows: findings.lengths.len(),
        files: file_reports
            .map(|((file, dataset), rows)| FileReport {
                path: file.path.clone(),
                shape: dataset.shape,
                rows,
                weight: file.weight,
            })
            .collect(),
        held_out_rows: if has_eval_data { 0 } else { held_out.len() },
        tokens: order.iter().map(|row| lengths[*row] as u64).sum(),
        loss_tokens: order.iter().map(|row| rows.num_learned(*row) as u64).sum(),
        lengths: length_stats(&findings.lengths),
        rejected_lengths: (dataset.shape == DatasetShape::Preference)
            .then(|| length_stats(&findings.rejected_lengths)),
        max_seq_len: config.max_seq_len,
        truncated_rows: findings.truncated_rows,
        rows_nothing_to_learn: findings.rows_nothing_to_learn,
        rows_emptied_by_truncation: findings.rows_emptied_by_truncation,
        duplicates: findings.duplicates.clone(),
        leaks: findings.leaks.clone(),
        rows_dropped: findings.rows_dropped,
        issues: findings.issues.clone(),
        template,
        mask_source,
        sequences_per_epoch,
        steps_per_epoch: sequences_per_epoch.div_ceil(sequences_per_step),
        warnings: Vec::new(),
    };
    let uses_template = matches!(conversation, Some(Conversation::Chat(_)));
    report.warnings = warnings(&report, uses_template && text_files.template.is_none());
    report.warnings.extend(similarity_warnings(&report, config.dedupe));
    for dataset in datasets {
        if let Err(Error::Invalid { message, hint, .. }) =
            refuse_mismatch(dataset.shape, config.objective, &dataset.path)
        {
            report.warnings.push(format!("{message}; {}", hint.unwrap_or_default()));
        }
        if dataset.shape != DatasetShape::Preference {
            report.warnings.extend(chat_difference(text_files, dataset)?);
        }
    }
    for style in text_files.styles.iter().filter(|style| !findings.styles.contains(&style.name)) {
        report.warnings.push(format!("No row is of style {:?}: nothing of it is learned", style.name));
    }
    Ok(report)
}

/// What rows that resemble others mean, as far as they stay.
fn similarity_warnings(report: &DataReport, dedupe: Dedupe) -> Vec<String> {
    let stay = |SimilarRows { exact, near, .. }: &SimilarRows| match dedupe {
        Dedupe::None => (*exact, *near),
        Dedupe::Exact => (0, *near),
        Dedupe::Near => (0, 0),
    };
    let mut warnings = Vec::new();
    let (exact, near) = stay(&report.leaks);
    if exact + near > 0 {
        warnings.push(format!(
            "{} to learn from also held out ({exact} the same, {near} nearly): the held-out loss says too little",
            count(exact + near)
        ));
    }
    let (exact, near) = stay(&report.duplicates);
    if exact + near > 0 {
        let rows = count(exact + near);
        warnings.push(format!(
            "{rows} like an earlier one ({exact} the same, {near} nearly): learned more often"
        ));
    }
    if report.rows_dropped > 0 {
        warnings.push(format!("{} like others: left out", count(report.rows_dropped)));
    }
    warnings
}

fn count(num_rows: usize) -> String {
    if num_rows == 1 { "1 row".into() } else { format!("{num_rows} rows") }
}

/// A warning if a chat would put something else before a learned turn than training does, so that the model is asked
/// in words it was not trained on.
fn chat_difference(text_files: &TextFiles, dataset: &Dataset) -> Result<Option<String>> {
    let options = RenderOptions { add_generation_prompt: true, ..RenderOptions::default() };
    for example in dataset.examples.iter().take(CHAT_ROWS) {
        let (Conversation::Chat(chat), rendered) = prepare::render_row(text_files, dataset, example)? else {
            continue;
        };
        let turns = chat.messages.iter().enumerate().filter(|(_, message)| message.role == Role::Assistant);
        for (turn, _) in turns.filter(|(turn, _)| *turn > 0 && !chat.unlearned.contains(turn)) {
            let asked = Chat { messages: chat.messages[..turn].to_vec(), ..chat.clone() };
            // A template that refuses the beginning of a conversation has no chat to differ from.
            let Ok(prompt) = text_files.chat_template().prompt(&asked, &options) else { continue };
            if !rendered.text.starts_with(&prompt) {
                let row = example.row;
                return Ok(Some(format!(
                    "Row {row}, messages[{turn}]: in chat, the template writes what stands before this turn otherwise"
                )));
            }
        }
    }
    Ok(None)
}

/// Where the text's form and the loss mask come from, in words.
fn sources(text_files: &TextFiles, conversation: Option<&Conversation>) -> (String, String) {
    let template = text_files.chat_template();
    let (template, mask_source) = match conversation {
        Some(Conversation::Raw(raw)) if raw.prompt.is_empty() => ("none (plain text)", "the whole text"),
        Some(Conversation::Raw(_)) => ("none (prompt and completion as text)", "the completion"),
        _ if template.has_generation_tags() => (template.origin.as_str(), "generation tags"),
        _ if template.has_twin() => (template.origin.as_str(), "generation tags of Lathe's training twin"),
        _ => (template.origin.as_str(), "difference of renders"),
    };
    (template.into(), mask_source.into())
}

fn length_stats(lengths: &[u32]) -> LengthStats {
    let mut sorted = lengths.to_vec();
    sorted.sort_unstable();
    let (Some(&min), Some(&max)) = (sorted.first(), sorted.last()) else { return LengthStats::default() };
    let mut histogram = vec![0; NUM_BINS];
    for length in &sorted {
        histogram[*length as usize * NUM_BINS / (max as usize + 1)] += 1;
    }
    // The nearest rank: a length that occurs.
    let percentile = |percent: usize| sorted[(sorted.len() * percent).div_ceil(100) - 1] as usize;
    let mean = sorted.iter().map(|length| f64::from(*length)).sum::<f64>() / sorted.len() as f64;
    let (min, max) = (min as usize, max as usize);
    LengthStats { min, mean, p50: percentile(50), p95: percentile(95), max, histogram }
}

fn warnings(report: &DataReport, lacks_template: bool) -> Vec<String> {
    let mut warnings = Vec::new();
    let percent = |part: f64, whole: f64| 100.0 * part / whole.max(1.0);
    if report.truncated_rows > 0 {
        let share = percent(report.truncated_rows as f64, report.rows as f64);
        let rows = count(report.truncated_rows);
        warnings.push(format!(
            "{rows} ({share:.0} %) longer than {} tokens: the end is cut off",
            report.max_seq_len
        ));
        if report.shape == DatasetShape::Text {
            warnings.push("Text is cut, not continued: split long texts into rows of {\"text\": …}".into());
        }
    }
    if report.rows_nothing_to_learn > 0 {
        warnings.push(format!("{} with nothing to learn: left out", count(report.rows_nothing_to_learn)));
    }
    if report.rows_emptied_by_truncation > 0 {
        let rows = count(report.rows_emptied_by_truncation);
        warnings.push(format!("{rows} with nothing left to learn after the cut: left out"));
    }
    let share = percent(report.loss_tokens as f64, report.tokens as f64);
    if report.loss_tokens > 0 && share < 5.0 {
        warnings
            .push(format!("Only {share:.1} % of the tokens are trained: most of the time goes into prompts"));
    }
    if lacks_template {
        warnings.push("The model brings no chat template: ChatML is used, in training and in chat".into());
    }
    warnings
}

/// An error if no token would be trained.
pub fn refuse_nothing(report: &DataReport, path: &Path) -> Result<()> {
    if report.loss_tokens > 0 {
        return Ok(());
    }
    let DataReport { rows, rows_nothing_to_learn, rows_emptied_by_truncation, max_seq_len, .. } = report;
    let error = Error::data(format!(
        "Nothing to learn: 0 trained tokens in {rows} rows ({rows_nothing_to_learn} without trained text, \
         {rows_emptied_by_truncation} cut off before it at {max_seq_len} tokens): {}",
        path.display()
    ));
    Err(error.hint(if *rows_emptied_by_truncation > 0 {
        format!("raise max_seq_len: the longest row has {} tokens", report.longest_row_tokens())
    } else {
        need_of_rows(report.shape == DatasetShape::Preference).into()
    }))
}

/// What is missing in rows with nothing to learn.
pub fn need_of_rows(are_pairs: bool) -> &'static str {
    if are_pairs {
        "give each row two answers that differ"
    } else {
        "training learns what the assistant says: give each row at least one assistant turn"
    }
}

/// An error if the objective and the rows' shape are not made for each other.
pub fn refuse_mismatch(shape: DatasetShape, objective: Objective, path: &Path) -> Result<()> {
    let error = match (objective, shape) {
        (Objective::Sft, DatasetShape::Preference) => {
            Error::data(format!("Rows of chosen and rejected answers are not for objective = \"sft\": {}", path.display()))
                .hint("set objective=dpo or objective=orpo; or columns=completion=chosen, to learn the chosen answers alone")
        }
        (Objective::Dpo | Objective::Orpo, shape) if shape != DatasetShape::Preference => {
            let name = if objective == Objective::Dpo { "dpo" } else { "orpo" };
            Error::data(format!(
                "objective = {name:?} learns from pairs of answers: the rows are {}, without the columns chosen and rejected: {}",
                data::shape_name(shape),
                path.display()
            ))
            .hint("set objective=sft; or name the columns, e.g. columns=prompt=question,chosen=good,rejected=bad")
        }
        _ => return Ok(()),
    };
    Err(error)
}

/// One row, token by token; of a pair, both sides.
pub fn show_row(
    text_files: &TextFiles,
    dataset: &Dataset,
    example: &RawExample,
    max_seq_len: usize,
) -> Result<RowView> {
    let cut = |tokens: &[TokenView]| tokens.len().saturating_sub(max_seq_len);
    let (tokens, rejected) = if dataset.shape == DatasetShape::Preference {
        let (pair, rendered) = prepare::render_pair(text_files, dataset, example)?;
        let [chosen, rejected] = prepare::encode_pair(text_files, &rendered)?;
        let tokens = view_tokens(text_files, &pair.rejected, &rendered[2], &rejected);
        let rejected = RejectedView { truncated_tokens: cut(&tokens), tokens };
        (view_tokens(text_files, &pair.chosen, &rendered[1], &chosen), Some(rejected))
    } else {
        let (conversation, rendered) = prepare::render_row(text_files, dataset, example)?;
        let encoded = encode_with_bytes(text_files, &rendered)?;
        (view_tokens(text_files, &conversation, &rendered, &encoded), None)
    };
    let truncated_tokens = cut(&tokens);
    let place = RowPlace { row: example.row, line: example.line, file: None };
    Ok(RowView { place, tokens, truncated_tokens, rejected })
}

/// Whose each token is, and whether it is learned.
fn view_tokens(
    text_files: &TextFiles,
    conversation: &Conversation,
    rendered: &Rendered,
    (tokens, bytes): &(Tokens, Vec<Range<usize>>),
) -> Vec<TokenView> {
    let whose = match conversation {
        Conversation::Chat(chat) => {
            turns(text_files.chat_template(), chat, &RenderOptions::default(), &rendered.text)
        }
        Conversation::Raw(_) => Vec::new(),
    };
    let channels: Vec<_> =
        rendered.assistant_spans.iter().flat_map(|span| channel_spans(&rendered.text, span)).collect();
    let view = |((&id, &loss), bytes): ((&u32, &bool), &Range<usize>)| {
        let turn = whose.iter().find(|turn| turn.bytes.contains(&bytes.start));
        let role = turn.map(|turn| turn.role);
        let channel =
            channels.iter().find(|(_, span)| span.contains(&bytes.start)).map(|(channel, _)| *channel);
        let channel = channel.filter(|_| role == Some(Role::Assistant));
        // An id past the vocabulary has no text, and says so by its emptiness.
        let text = text_files.tokenizer.decode(&[id], false).unwrap_or_default();
        TokenView { id, text, loss, role, channel }
    };
    tokens.ids.iter().zip(&tokens.loss_mask).zip(bytes).map(view).collect()
}

/// Cuts what an assistant wrote into thinking, tool calls and the answer. Markers belong to what they mark.
fn channel_spans(text: &str, span: &Range<usize>) -> Vec<(ReplyChannel, Range<usize>)> {
    const MARKERS: [(&str, &str, ReplyChannel); 4] = [
        ("<|channel|>analysis", "<|end|>", ReplyChannel::Thinking),
        (" to=functions.", "<|call|>", ReplyChannel::ToolCall),
        ("<think>", "</think>", ReplyChannel::Thinking),
        ("<tool_call>", "</tool_call>", ReplyChannel::ToolCall),
    ];
    let mut channels = Vec::new();
    let mut at = span.start;
    while at < span.end {
        let rest = &text[at..span.end];
        let found =
            MARKERS.iter().filter_map(|(open, close, channel)| Some((rest.find(open)?, close, *channel)));
        let Some((start, close, channel)) = found.min_by_key(|(start, ..)| *start) else { break };
        let end = rest[start..].find(close).map_or(rest.len(), |length| start + length + close.len());
        channels.push((ReplyChannel::Answer, at..at + start));
        channels.push((channel, at + start..at + end));
        at += end;
    }
    channels.push((ReplyChannel::Answer, at..span.end));
    channels
}

#[cfg(test)]
mod tests {
    use std::{collections::BTreeMap, sync::atomic::AtomicBool};

    use super::*;
    use crate::data::read_examples;

    fn tiny() -> TextFiles {
        TextFiles::open(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/data/tiny-qwen3"))
            .unwrap()
    }

    /// A data file in a folder that lives as long.
    struct Data {
        folder: tempfile::TempDir,
        rows: Dataset,
    }

    fn dataset(rows: &[&str]) -> Data {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.jsonl");
        std::fs::write(&path, rows.join("\n")).unwrap();
        Data { rows: read_examples(&path, &BTreeMap::new()).unwrap(), folder }
    }

    fn check(text_files: &TextFiles, data: &Data, config: &RunConfig) -> Result<DataReport> {
        let (cache, stop) = (data.folder.path().join("cache"), AtomicBool::new(false));
        let mut reading = Reading { cache: &cache, stop: &stop, emit: &mut drop };
        let files = [DataFile::new(data.rows.path.display().to_string())];
        super::check(text_files, &files, None, config, &mut reading)
    }

    fn show_row(text_files: &TextFiles, data: &Data, row: usize, max_seq_len: usize) -> RowView {
        super::show_row(text_files, &data.rows, &data.rows.examples[row], max_seq_len).unwrap()
    }

    fn row(question: &str, answer: &str) -> String {
        serde_json::json!({"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]})
            .to_string()
    }

    fn config(max_seq_len: usize) -> RunConfig {
        RunConfig { max_seq_len, batch_size: 1, grad_accum: 2, ..RunConfig::default() }
    }

    #[test]
    fn the_report_counts_what_is_cut_and_what_is_left_out() {
        let long = "x".repeat(100);
        let rows = [
            row("Hi", "Ho"),
            row(&long, "Ho"),
            row("Hi", &long),
            r#"{"messages": [{"role": "user", "content": "Hi"}]}"#.into(),
        ];
        let dataset = dataset(&rows.each_ref().map(String::as_str));
        let report = check(&tiny(), &dataset, &config(40)).unwrap();
        assert_eq!((report.rows, report.truncated_rows), (4, 2));
        assert_eq!((report.rows_nothing_to_learn, report.rows_emptied_by_truncation), (1, 1));
        // "Hi", "Ho" is 14 tokens, then H, o and the end token, then a line break. The long answer is cut at 40.
        assert_eq!((report.tokens, report.loss_tokens), (18 + 40, 3 + 26));
        assert_eq!((report.sequences_per_epoch, report.steps_per_epoch), (2, 1));
        assert_eq!(report.lengths.histogram.iter().sum::<usize>(), 4);
        assert_eq!(
            (report.template.as_str(), report.mask_source.as_str()),
            ("tokenizer_config.json of the model", "generation tags")
        );
        let issues: Vec<_> = report
            .issues
            .iter()
            .map(|issue| (issue.place.row, issue.place.line, issue.issue.as_str()))
            .collect();
        assert_eq!(
            issues,
            [
                (1, 2, "cut from 116 to 40 tokens"),
                (1, 2, "nothing left to learn: all its trained tokens lie past the cut at 40 tokens"),
                (2, 3, "cut from 116 to 40 tokens"),
                (3, 4, "nothing to learn: no assistant turn"),
            ]
        );
        assert!(refuse_nothing(&report, &dataset.rows.path).is_ok());
    }

    #[test]
    fn nothing_to_learn_is_refused_with_its_reason() {
        let path = Path::new("rows.jsonl");
        let silent = dataset(&[r#"{"messages": [{"role": "user", "content": "Hi"}]}"#]);
        let report = check(&tiny(), &silent, &config(40)).unwrap();
        let error = refuse_nothing(&report, path).unwrap_err();
        assert_eq!(
            error.to_string(),
            "Nothing to learn: 0 trained tokens in 1 rows (1 without trained text, 0 cut off before it at 40 tokens): rows.jsonl"
        );
        let report = check(&tiny(), &dataset(&[&row(&"x".repeat(100), "Ho")]), &config(40)).unwrap();
        let Error::Invalid { hint, .. } = refuse_nothing(&report, path).unwrap_err() else { panic!() };
        assert_eq!(hint.unwrap(), "raise max_seq_len: the longest row has 116 tokens");
    }

    #[test]
    fn control_tokens_in_the_data_and_lost_thoughts_are_pointed_out() {
        let thought = r#"{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho", "thinking": "Hm"}]}"#;
        let report = check(&tiny(), &dataset(&[&row("a <|im_end|> b", "Ho"), thought]), &config(40)).unwrap();
        let issues: Vec<_> = report.issues.iter().map(|issue| issue.issue.as_str()).collect();
        assert_eq!(
            issues,
            [
                "messages[0].content holds the control token <|im_end|>, which the model takes as one",
                "its thinking is left out: the template does not write it",
            ]
        );
    }

    #[test]
    fn a_chat_that_asks_otherwise_than_training_is_pointed_out() {
        let folder = tempfile::tempdir().unwrap();
        let tokenizer =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/data/tiny-qwen3/tokenizer.json");
        std::fs::copy(tokenizer, folder.path().join("tokenizer.json")).unwrap();
        let check_template = |source: &str, rows: &[&str]| {
            std::fs::write(folder.path().join("chat_template.jinja"), source).unwrap();
            check(&TextFiles::open(folder.path()).unwrap(), &dataset(rows), &config(8192)).unwrap().warnings
        };
        let call = r#"{"role": "assistant", "thinking": "Hm", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}"#;
        let tool = format!(
            r#"{{"messages": [{{"role": "user", "content": "Hi"}}, {call}, {{"role": "tool", "content": "1"}}, {{"role": "assistant", "content": "Ho"}}]}}"#
        );
        // gpt-oss keeps a call's thought only until it is answered.
        let gptoss = include_str!("../../chat_templates/gptoss.jinja");
        let expected =
            "Row 1, messages[3]: in chat, the template writes what stands before this turn otherwise";
        assert_eq!(check_template(gptoss, &[&row("Hi", "Ho"), &tool]).last().unwrap(), expected);
        let qwen3 = include_str!("../../chat_templates/qwen3.jinja");
        assert!(check_template(qwen3, &[&row("Hi", "Ho"), &tool]).iter().all(|warning| warning != expected));
    }

    #[test]
    fn the_rows_effort_is_in_its_text_or_pointed_out() {
        let folder = tempfile::tempdir().unwrap();
        let golden =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/data/tiny-qwen3/tokenizer.json");
        std::fs::copy(golden, folder.path().join("tokenizer.json")).unwrap();
        let gptoss = include_str!("../../chat_templates/gptoss.jinja");
        std::fs::write(folder.path().join("chat_template.jinja"), gptoss).unwrap();
        let text_files = TextFiles::open(folder.path()).unwrap();
        let with_effort = row("Hi", "Ho").replacen('{', r#"{"reasoning_effort": "low", "#, 1);
        let rows = dataset(&[&with_effort, &row("Hi", "Ho")]);
        let text = |index: usize| {
            prepare::render_row(&text_files, &rows.rows, &rows.rows.examples[index]).unwrap().1.text
        };
        assert!(text(0).contains("\nReasoning: low\n") && text(1).contains("\nReasoning: medium\n"));
        let report = check(&tiny(), &rows, &config(8192)).unwrap();
        assert_eq!(
            report.issues[0].issue,
            "its reasoning_effort is left out: the template does not write it"
        );
    }

    #[test]
    fn raw_rows_learn_the_completion_and_the_end_token() {
        let text_files = tiny();
        let dataset = dataset(&[r#"{"prompt": "1 + 1 =", "completion": " 2"}"#]);
        let report = check(&text_files, &dataset, &config(40)).unwrap();
        assert_eq!(report.mask_source, "the completion");
        let view = show_row(&text_files, &dataset, 0, 40);
        let learned: Vec<_> =
            view.tokens.iter().filter(|token| token.loss).map(|token| token.text.as_str()).collect();
        assert_eq!(learned.concat(), " 2<|im_end|>");
        assert!(view.tokens.iter().all(|token| token.role.is_none() && token.channel.is_none()));
    }

    #[test]
    fn a_row_shows_whose_tokens_are_whose() {
        let text_files = tiny();
        let dataset = dataset(&[&row("Hi", "<think>a</think>b")]);
        let view = show_row(&text_files, &dataset, 0, 10);
        assert_eq!(view.truncated_tokens, view.tokens.len() - 10);
        let text_of = |wanted: &dyn Fn(&TokenView) -> bool| {
            view.tokens
                .iter()
                .filter(|token| wanted(token))
                .map(|token| token.text.as_str())
                .collect::<String>()
        };
        assert_eq!(text_of(&|token| token.role == Some(Role::User)), "<|im_start|>user\nHi<|im_end|>");
        assert_eq!(text_of(&|token| token.channel == Some(ReplyChannel::Thinking)), "<think>a</think>");
        assert_eq!(text_of(&|token| token.channel == Some(ReplyChannel::Answer)), "b<|im_end|>");
        assert_eq!(text_of(&|token| token.loss), "<think>a</think>b<|im_end|>");
        assert_eq!(text_of(&|token| token.role.is_none()), "\n\n");
    }

    #[test]
    fn harmonys_messages_are_shown_in_their_channels() {
        let text = "<|channel|>analysis<|message|>Hm.<|end|><|start|>assistant to=functions.f<|channel|>commentary json\
                    <|message|>{}<|call|><|start|>assistant<|channel|>final<|message|>So.<|return|>";
        let shown: Vec<_> = channel_spans(text, &(0..text.len()))
            .into_iter()
            .filter(|(_, span)| !span.is_empty())
            .map(|(channel, span)| (channel, &text[span]))
            .collect();
        assert_eq!(
            shown,
            [
                (ReplyChannel::Thinking, "<|channel|>analysis<|message|>Hm.<|end|>"),
                (ReplyChannel::Answer, "<|start|>assistant"),
                (ReplyChannel::ToolCall, " to=functions.f<|channel|>commentary json<|message|>{}<|call|>"),
                (ReplyChannel::Answer, "<|start|>assistant<|channel|>final<|message|>So.<|return|>"),
            ]
        );
    }

    #[test]
    fn percentiles_are_lengths_that_occur() {
        let stats = length_stats(&[4, 1, 3, 2, 100]);
        assert_eq!((stats.min, stats.p50, stats.p95, stats.max), (1, 3, 100, 100));
        assert_eq!((stats.histogram[0], stats.histogram[1], stats.histogram[23]), (4, 0, 1));
    }
}
