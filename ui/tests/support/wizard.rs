//! Data and answers for the wizard's tests.

use egui::{Key, Modifiers, Theme, Vec2};
use egui_kittest::{
    Harness,
    kittest::{NodeT as _, Queryable as _},
};
use lathe_protocol::{
    ColumnView, Command, CommandBody, DataReport, DatasetShape, EventBody, FileReport, FolderEntry,
    FolderView, LengthStats, Place, RejectedView, ReplyChannel, Role, RowPlace, RowView, SimilarRows,
    TokenView, TrainRequest,
};

use super::{Script, ScriptedLink, Window, fixtures, window_of_size};

pub const MODEL: &str = "HuggingFaceTB/SmolLM2-135M-Instruct";
pub const RUN: &str = "2026-11-21-1200-beef";
pub const FOLDER: &str = "/home/ada/data";
pub const DATA: &str = "/home/ada/data/support_chats.jsonl";

/// Answers as a fresh installation with data that is fine.
pub fn answer(command: &Command, script: &mut Script) {
    let job = command.job;
    match &command.body {
        CommandBody::Browse { .. } => script.answer(job, EventBody::Folder(folder())),
        CommandBody::DataCheck { config, .. } => {
            let mut report = report();
            report.max_seq_len = config.max_seq_len;
            report.held_out_rows = (config.eval_ratio * report.rows as f64) as usize;
            script.answer(job, EventBody::DataReport(Box::new(report)));
        }
        CommandBody::DataShow { row, count, .. } => {
            for row in *row..row + count {
                script.say(job, EventBody::Row(row_view(row)));
            }
            script.say(job, EventBody::Done);
        }
        _ => drop(fixtures::answer(command, script)),
    }
}

pub fn folder() -> FolderView {
    let entry = |name: &str, is_folder: bool, size_bytes| FolderEntry {
        name: name.into(),
        path: format!("{FOLDER}/{name}"),
        is_folder,
        size_bytes,
    };
    let place = |name: &str, path: &str| Place { name: name.into(), path: path.into() };
    FolderView {
        path: FOLDER.into(),
        parent: Some("/home/ada".into()),
        entries: vec![
            entry("archive", true, 0),
            entry("drafts", true, 0),
            entry("house_style.csv", false, 48_211),
            entry("logo.png", false, 9_114),
            entry("support_chats.jsonl", false, 1_874_302),
            entry("tiny.gguf", false, 98_400_000),
        ],
        places: vec![
            place("Home", "/home/ada"),
            place("Downloads", "/home/ada/Downloads"),
            place("Documents", "/home/ada/Documents"),
            place("Sample data", "/home/ada/.local/share/lathe/samples"),
        ],
    }
}

/// Of a file of pairs.
pub fn preference_report() -> DataReport {
    let report = report();
    DataReport {
        shape: DatasetShape::Preference,
        columns: vec![
            column("prompt", Some("prompt"), "My parcel has not arrived yet"),
            column("chosen", Some("chosen"), "I am sorry to hear that."),
            column("rejected", Some("rejected"), "Not our fault."),
        ],
        roles: ["chosen", "rejected", "prompt"].map(String::from).to_vec(),
        rejected_lengths: Some(report.lengths.clone()),
        mask_source: "what follows the prompt, on both sides".into(),
        warnings: Vec::new(),
        ..report
    }
}

/// A row with a rejected side of its own.
pub fn pair_view(row: usize) -> RowView {
    let chosen = row_view(row);
    let mut tokens: Vec<TokenView> = chosen.tokens.iter().filter(|token| !token.loss).cloned().collect();
    let answer = [" Not", " our", " fault", ":", " ask", " the", " carrier", ".", "<|im_end|>"];
    tokens.extend(answer.map(|text| TokenView {
        id: 7,
        text: text.into(),
        loss: true,
        role: Some(Role::Assistant),
        channel: None,
    }));
    RowView { rejected: Some(RejectedView { tokens, truncated_tokens: 0 }), ..chosen }
}

pub fn report() -> DataReport {
    DataReport {
        shape: DatasetShape::Messages,
        columns: vec![
            column("messages", Some("messages"), "user: My parcel has not arrived yet"),
            column("ticket", None, "48211"),
        ],
        roles: ["messages", "tools", "reasoning_effort"].map(String::from).to_vec(),
        rows: 1200,
        files: vec![FileReport { path: DATA.into(), shape: DatasetShape::Messages, rows: 1200, weight: 1.0 }],
        held_out_rows: 60,
        tokens: 402_117,
        loss_tokens: 168_930,
        lengths: LengthStats {
            min: 41,
            mean: 352.7,
            p50: 318,
            p95: 871,
            max: 1440,
            histogram: vec![
                12, 64, 131, 188, 205, 171, 128, 92, 61, 44, 31, 22, 14, 11, 8, 6, 4, 3, 2, 1, 1, 0, 0, 1,
            ],
        },
        rejected_lengths: None,
        max_seq_len: 1024,
        truncated_rows: 14,
        rows_nothing_to_learn: 2,
        rows_emptied_by_truncation: 0,
        duplicates: SimilarRows::default(),
        leaks: SimilarRows::default(),
        rows_dropped: 0,
        issues: vec![lathe_protocol::RowIssue {
            place: RowPlace { row: 311, line: 312, file: None },
            issue: "nothing to learn: no assistant turn".into(),
        }],
        template: "chat template of the model".into(),
        mask_source: "difference of renders".into(),
        sequences_per_epoch: 1140,
        steps_per_epoch: 72,
        warnings: vec!["14 rows are cut at 1024 tokens".into()],
    }
}

pub fn column(name: &str, role: Option<&str>, example: &str) -> ColumnView {
    ColumnView { name: name.into(), role: role.map(str::to_owned), example: example.into() }
}

/// A turn to and fro, with thinking.
pub fn row_view(row: usize) -> RowView {
    let mut tokens = Vec::new();
    let mut say = |role: Option<Role>, channel: Option<ReplyChannel>, loss: bool, pieces: &[&str]| {
        for text in pieces {
            let id = 100 + tokens.len() as u32;
            tokens.push(TokenView { id, text: (*text).into(), loss, role, channel });
        }
    };
    let (user, assistant) = (Some(Role::User), Some(Role::Assistant));
    say(None, None, false, &["<|im_start|>", "user", "\n"]);
    say(
        user,
        None,
        false,
        &[
            "My", " parcel", " has", " not", " arrived", " yet", ".", " Order", " ", "4", "8", "2", "1", "1",
            ".",
        ],
    );
    say(
        user,
        None,
        false,
        &["\n\n", "Can", " you", " find", " out", " where", " it", " is", "?", "<|im_end|>", "\n"],
    );
    say(None, None, false, &["<|im_start|>", "assistant", "\n"]);
    let thinking = [
        "<think>", "\n", "The", " order", " number", " is", " given", ",", " so", " I", " look", " it", " up",
    ];
    say(assistant, Some(ReplyChannel::Thinking), true, &thinking);
    say(assistant, Some(ReplyChannel::Thinking), true, &[".", "\n", "</think>", "\n\n"]);
    let call =
        ["<tool_call>", "\n", "{\"", "name", "\":", " \"", "find_order", "\"}", "\n", "</tool_call>", "\n"];
    say(assistant, Some(ReplyChannel::ToolCall), true, &call);
    let answer = [
        "I",
        "’m",
        " sorry",
        " about",
        " the",
        " wait",
        "!",
        " Your",
        " parcel",
        " left",
        " the",
        " depot",
        " in",
        " Leeds",
        " this",
        " morning",
        " and",
        " arrives",
        " tomorrow",
        " before",
        " noon",
        ".",
        "<|im_end|>",
    ];
    say(assistant, Some(ReplyChannel::Answer), true, &answer);
    say(assistant, Some(ReplyChannel::Answer), true, &[" Thanks", " for", " your", " patience", "."]);
    let place = RowPlace { row, line: row + 1, file: None };
    RowView { place, tokens, truncated_tokens: 5, rejected: None }
}

/// The wizard over a host that answers as `first` says, then as usual.
pub fn open_with(
    theme: Theme,
    size: Vec2,
    mut first: impl FnMut(&Command, &mut Script) -> bool + 'static,
) -> (Harness<'static, Window>, ScriptedLink) {
    let link = ScriptedLink::new(move |command, script| {
        if !first(command, script) {
            answer(command, script);
        }
    });
    let mut harness = window_of_size(link.clone(), theme, size);
    harness.input_mut().system_theme = Some(theme);
    enter(&mut harness);
    (harness, link)
}

pub fn enter(harness: &mut Harness<'_, Window>) {
    harness.key_press_modifiers(Modifiers::COMMAND, Key::N);
    settle(harness);
}

pub fn settle(harness: &mut Harness<'_, Window>) {
    harness.run_ok();
    harness.run_steps(4);
}

pub fn click(harness: &mut Harness<'_, Window>, label: &str) {
    harness.get_by_label(label).scroll_to_me();
    settle(harness);
    harness.get_by_label(label).click();
    settle(harness);
}

pub fn choose_data(harness: &mut Harness<'_, Window>) {
    click(harness, "Browse…");
    click(harness, "support_chats.jsonl");
    click(harness, "Choose");
}

/// From the first step to the last.
pub fn fill_in(harness: &mut Harness<'_, Window>) {
    click(harness, MODEL);
    click(harness, "Continue");
    choose_data(harness);
    click(harness, "Continue");
    click(harness, "Thorough");
    click(harness, "Continue");
}

pub fn is_enabled(harness: &Harness<'_, Window>, label: &str) -> bool {
    !harness.get_by_label(label).accesskit_node().is_disabled()
}

pub fn sent_requests(link: &ScriptedLink) -> Vec<TrainRequest> {
    let script = link.script.borrow();
    let requests = script.sent.iter().filter_map(|command| match &command.body {
        CommandBody::Train(request) => Some((**request).clone()),
        _ => None,
    });
    requests.collect()
}

pub fn train_started(command: &Command, script: &mut Script) -> bool {
    if matches!(command.body, CommandBody::Train(_)) {
        let started =
            EventBody::RunStarted { run: RUN.into(), name: "tone".into(), out_dir: "/runs/x".into() };
        script.answer(command.job, started);
        return true;
    }
    false
}
