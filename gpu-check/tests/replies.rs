//! Replies and samples on the emulated GPU, by a tiny model of which the reference's tokenizer is there.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    path::{Path, PathBuf},
    sync::atomic::AtomicBool,
};

use lathe_engine::{
    chat::{ChatSession, ReplyRequest},
    model::{Compute, LoadFor, Model},
    text_files::TextFiles,
    train::Samples,
};
use lathe_gpu_check::twins;
use lathe_protocol::{
    ChatStats, EventBody, Message, ReplyChannel, ReplyDelta, Role, SamplingParams, Thinking,
};

/// A prompt that opens the thought, as the words of a tiny random model never would.
const THINKS: &str = "{{ messages[0].content }}<|im_end|>\n<|im_start|>assistant\n<think>\n";

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/data/tiny-qwen3")
}

/// The tiny Qwen3 with another template.
fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        std::fs::copy(golden().join(name), folder.path().join(name)).unwrap();
    }
    std::fs::write(folder.path().join("chat_template.jinja"), THINKS).unwrap();
    folder
}

fn request(sampling: SamplingParams) -> ReplyRequest {
    ReplyRequest {
        messages: vec![Message::new(Role::User, "Hi")],
        sampling,
        thinking: Thinking::Show,
        effort: None,
        now: None,
    }
}

/// The statistics, and each channel's words.
fn reply(session: &mut ChatSession, sampling: &SamplingParams) -> (ChatStats, String, String) {
    let (mut thought, mut answer) = (String::new(), String::new());
    let mut emit = |delta: ReplyDelta| match delta.channel {
        ReplyChannel::Thinking => thought.push_str(&delta.text),
        _ => answer.push_str(&delta.text),
    };
    let cancel = AtomicBool::new(false);
    let stats = session.reply(&request(sampling.clone()), &cancel, &|| 0.0, &mut emit).unwrap();
    (stats, thought, answer)
}

#[test]
fn a_chat_forces_and_forbids_tokens() {
    lathe_emulator::install();
    let folder = folder();
    let load = |adapters: &[PathBuf]| {
        ChatSession::load_on(Compute::emulated_gpu(), folder.path(), adapters, &|| 0.0).unwrap()
    };
    let drawn =
        SamplingParams { max_tokens: 24, min_tokens: 24, temperature: 1.0, ..SamplingParams::default() };
    for adapters in [vec![], vec![golden().join("adapter")]] {
        let mut session = load(&adapters);
        let (stats, thought, answer) =
            reply(&mut session, &SamplingParams { thinking_budget: Some(5), ..drawn.clone() });
        assert_eq!((stats.thinking_tokens, stats.output_tokens), (5, 24), "{thought:?} {answer:?}");
        assert!(!thought.is_empty() && !answer.is_empty(), "{thought:?} {answer:?}");
        let (stats, thought, answer) =
            reply(&mut session, &SamplingParams { thinking_budget: Some(0), ..drawn.clone() });
        assert_eq!((stats.thinking_tokens, thought.as_str()), (0, ""));
        assert!(!answer.is_empty());
        // Nothing ends it before its time, and the same seed draws the same.
        let (stats, thought, _) = reply(&mut session, &drawn);
        assert_eq!((stats.output_tokens, stats.finished), (24, false));
        let mut again = load(&adapters);
        reply(&mut again, &SamplingParams { thinking_budget: Some(5), ..drawn.clone() });
        reply(&mut again, &SamplingParams { thinking_budget: Some(0), ..drawn.clone() });
        assert_eq!(reply(&mut again, &drawn).1, thought);
    }
}

#[test]
fn samples_answered_together_are_those_answered_alone() {
    lathe_emulator::install();
    let text_files = TextFiles::open(&golden()).unwrap();
    let mut model = Model::load_on(&golden(), LoadFor::Inference, Compute::emulated_gpu()).unwrap();
    // Of an adapter's own tokens, in the tied head, too.
    let rows = twins::random(&[2, model.config.hidden_size], 1).unwrap();
    model.set_token_rows(vec![40, 320], &rows).unwrap();
    // More than are answered at a time.
    let prompts: Vec<String> = (0..9).map(|i| "Tell me more. ".repeat(i % 4 + 1) + &i.to_string()).collect();
    let answers = |prompts: &[String]| -> Vec<String> {
        let mut texts = Vec::new();
        let samples = Samples::new(&text_files, prompts).unwrap();
        let mut emit = |event| match event {
            EventBody::Sample(sample) => texts.push(sample.text),
            other => panic!("{other:?}"),
        };
        samples.answer(&model, 1, &AtomicBool::new(false), &mut emit).unwrap();
        texts
    };
    let together = answers(&prompts);
    assert_eq!(together.len(), prompts.len());
    assert!(answers(&[]).is_empty());
    // Sums in another order may turn a choice between equals, but not at once.
    let alone = &answers(&prompts[8..])[0];
    let same = alone.chars().zip(together[8].chars()).take_while(|(a, b)| a == b).count();
    assert!(same >= 4.min(alone.chars().count()), "{alone:?} {:?}", together[8]);
}
