use std::process::ExitCode;

use lathe_protocol::{
    CommandBody, DataReport, DatasetShape, ErrorCode, ErrorInfo, EventBody, FileReport, LengthStats,
    ReplyChannel, Role, RowView, SimilarPair, TokenCache, TokenView,
};
use lathe_ui::format;

use super::{Outcome, read_config, take_data, unexpected};
use crate::{append, cli::ConfigArgs, output::fields, session::Session};

pub fn check(
    session: &mut Session,
    model: String,
    files: &[String],
    eval_data: Option<String>,
    config: &ConfigArgs,
) -> Outcome {
    let mut config = read_config(config)?;
    let data = take_data(files, &mut config);
    let file = data.clone();
    let answer = session.ask(CommandBody::DataCheck { model, data, eval_data, config })?;
    let EventBody::DataReport(report) = &answer else { return Err(unexpected()) };
    if session.out.json {
        session.out.object(&answer);
    } else {
        session.out.text(&describe(report));
    }
    if report.loss_tokens == 0 {
        return Err(ErrorInfo::new(
            ErrorCode::Data,
            format!("Nothing to learn: 0 of {} tokens are trained: {file}", report.tokens),
        )
        .hint("each row needs an assistant turn (or a completion) within max_seq_len"));
    }
    Ok(ExitCode::SUCCESS)
}

pub fn describe(report: &DataReport) -> String {
    let share = if report.tokens == 0 { 0.0 } else { report.loss_tokens as f64 / report.tokens as f64 };
    let lengths = &report.lengths;
    let spread = |lengths: &LengthStats| {
        format!(
            "{} to {}, mean {:.0}, median {}, 95 % up to {}",
            lengths.min, lengths.max, lengths.mean, lengths.p50, lengths.p95
        )
    };
    let mut lines = vec![("Shape", shape(report.shape).to_owned()), ("Rows", report.rows.to_string())];
    if report.files.len() > 1 {
        for FileReport { path, shape: of, rows, weight } in &report.files {
            let name = format::file_name(path);
            lines.push(("", format!("{rows} of {name} ({}), weight {weight}", shape(*of))));
        }
    }
    let [exact, near] = [report.duplicates.exact, report.duplicates.near];
    let leaks = report.leaks.exact + report.leaks.near;
    lines.extend([
        ("Alike", format!("{exact} rows the same as others, {near} nearly; {leaks} like held-out ones")),
        (
            "Tokens",
            format!(
                "{}, of which {} are trained ({:.0} %)",
                report.tokens,
                report.loss_tokens,
                share * 100.0
            ),
        ),
    ]);
    let sides = match &report.rejected_lengths {
        Some(rejected) => vec![("Chosen", lengths), ("Rejected", rejected)],
        None => vec![("Lengths", lengths)],
    };
    for (name, lengths) in sides {
        lines.push((name, spread(lengths)));
        if lengths.max > 0 {
            lines.push(("", format!("{}  0 to {}", sparkline(&lengths.histogram), lengths.max)));
        }
    }
    lines.extend([
        ("Cut at", format!("{} tokens: {} rows are longer", report.max_seq_len, report.truncated_rows)),
        (
            "Untrained",
            format!(
                "{} rows have nothing to learn, {} more lose it all to the cut",
                report.rows_nothing_to_learn, report.rows_emptied_by_truncation
            ),
        ),
        ("Template", report.template.clone()),
        ("Trained part", report.mask_source.clone()),
        ("An epoch", format!("{} sequences, {} steps", report.sequences_per_epoch, report.steps_per_epoch)),
    ]);
    let mut text = fields(&lines);
    for issue in &report.issues {
        append!(text, "row {}: {}\n", issue.place, issue.issue);
    }
    for (what, similar) in [("an earlier row", &report.duplicates), ("a held-out row", &report.leaks)] {
        for SimilarPair { row, like, similarity } in &similar.pairs {
            append!(text, "row {row}: like {what}, {like}, {:.0} % alike\n", similarity * 100.0);
        }
    }
    for warning in &report.warnings {
        append!(text, "warning: {warning}\n");
    }
    text
}

fn shape(shape: DatasetShape) -> &'static str {
    match shape {
        DatasetShape::Messages => "messages (OpenAI)",
        DatasetShape::ShareGpt => "conversations (ShareGPT)",
        DatasetShape::Alpaca => "instruction, input, output (Alpaca)",
        DatasetShape::PromptCompletion => "prompt and completion",
        DatasetShape::Preference => "prompt, chosen, rejected",
        DatasetShape::Text => "plain text",
    }
}

fn sparkline(counts: &[usize]) -> String {
    const BARS: [char; 9] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
    let most = counts.iter().copied().max().unwrap_or(0).max(1);
    counts.iter().map(|count| BARS[(count * 8).div_ceil(most).min(8)]).collect()
}

/// What tokenised data takes on disk.
pub fn cache(session: &mut Session) -> Outcome {
    let answer = session.ask(CommandBody::DataCache)?;
    if session.out.json {
        session.out.object(&answer);
    } else if let EventBody::TokenCache(TokenCache { folder, entries, size_bytes, limit_bytes }) = answer {
        session.out.text(&fields(&[
            ("Folder", folder),
            ("Data sets", entries.to_string()),
            ("Size", format!("{} of at most {}", format::bytes(size_bytes), format::bytes(limit_bytes))),
        ]));
    }
    Ok(ExitCode::SUCCESS)
}

pub fn show(
    session: &mut Session,
    model: String,
    files: &[String],
    row: usize,
    config: &ConfigArgs,
) -> Outcome {
    let mut config = read_config(config)?;
    let data = take_data(files, &mut config);
    let answer = session.ask(CommandBody::DataShow { model, data, row, count: 1, config })?;
    if session.out.json {
        session.out.object(&answer);
        return Ok(ExitCode::SUCCESS);
    }
    let EventBody::Row(view) = answer else { return Err(unexpected()) };
    let RowView { place, tokens, truncated_tokens, rejected } = &view;
    let place = format!("row {place}");
    let Some(rejected) = rejected else {
        session.out.text(&side(&place, tokens, *truncated_tokens));
        return Ok(ExitCode::SUCCESS);
    };
    session.out.text(&side(&format!("{place}, chosen"), tokens, *truncated_tokens));
    let text = side(&format!("{place}, rejected"), &rejected.tokens, rejected.truncated_tokens);
    session.out.text(&format!("\n{text}"));
    Ok(ExitCode::SUCCESS)
}

/// A row, or a side of a pair, token by token.
fn side(name: &str, tokens: &[TokenView], truncated_tokens: usize) -> String {
    let trained = tokens.iter().filter(|token| token.loss).count();
    let mut text =
        format!("{name}: {} tokens, {trained} trained (*), {truncated_tokens} cut off\n", tokens.len());
    let kept = tokens.len() - truncated_tokens.min(tokens.len());
    for (index, token) in tokens.iter().enumerate() {
        if index == kept {
            text.push_str("------- cut here by max_seq_len\n");
        }
        append!(
            text,
            "{:>7} {} {:<18} {}\n",
            token.id,
            if token.loss { '*' } else { ' ' },
            turn(token),
            token.text.escape_debug()
        );
    }
    text
}

/// `assistant/answer`, `user`, or nothing between turns.
fn turn(token: &TokenView) -> String {
    let role = match token.role {
        Some(Role::System) => "system",
        Some(Role::Developer) => "developer",
        Some(Role::User) => "user",
        Some(Role::Assistant) => "assistant",
        Some(Role::Tool) => "tool",
        None => "",
    };
    match token.channel {
        Some(ReplyChannel::Thinking) => format!("{role}/thinking"),
        Some(ReplyChannel::Answer) => format!("{role}/answer"),
        Some(ReplyChannel::ToolCall) => format!("{role}/tool call"),
        None => role.to_owned(),
    }
}

/// What preflight says before a run, in two lines.
pub fn brief(report: &DataReport) -> String {
    format!(
        "{} rows of {}, {} tokens, {} trained; longest {} tokens",
        report.rows,
        shape(report.shape),
        format::short_count(report.tokens),
        format::short_count(report.loss_tokens),
        report.longest_row_tokens()
    )
}
