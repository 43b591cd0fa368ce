//! Talking to a model while it trains.
#![expect(clippy::unwrap_used, reason = "a test may panic")]

use std::{
    cell::{Cell, RefCell},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
};

use lathe_engine::{
    adapter,
    chat::{ChatSession, ReplyRequest},
    lora,
    model::{LoadFor, Model},
    train::{self, Audience, Question, Surroundings},
};
use lathe_protocol::{
    AnsweredBy, ErrorInfo, EventBody, LoraConfig, Message, Method, Role, RunConfig, RunVoice, SamplingParams,
    Style, Thinking, TrainJob, TrainSummary,
};

const QUESTION: &str = "What is the capital of France?";

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/data").join(name)
}

fn model() -> PathBuf {
    golden("tiny-qwen3")
}

fn config(method: Method) -> RunConfig {
    let mut config = RunConfig {
        method,
        max_seq_len: 128,
        grad_accum: 2,
        max_steps: 4,
        save_steps: 1,
        ..RunConfig::default()
    };
    (config.learning_rate, config.neftune_alpha) = (1e-2, 5.0);
    (config.lora.r, config.lora.dropout) = (4, 0.1);
    config
}

fn request(style: Option<&str>) -> ReplyRequest {
    ReplyRequest {
        messages: vec![Message { style: style.map(Into::into), ..Message::new(Role::User, QUESTION) }],
        sampling: SamplingParams { max_tokens: 24, ..SamplingParams::default() },
        thinking: Thinking::Show,
        effort: None,
        now: None,
    }
}

/// An answer, and whose it is.
#[derive(Debug, Clone, PartialEq)]
struct Answer {
    by: AnsweredBy,
    text: String,
    finished: bool,
}

#[derive(Default)]
struct Heard {
    losses: Vec<u64>,
    answers: Vec<Answer>,
    refusals: Vec<ErrorInfo>,
}

impl Heard {
    fn texts(&self, voice: RunVoice) -> Vec<String> {
        let of_voice = self.answers.iter().filter(|answer| answer.by.voice == voice);
        of_voice.map(|answer| answer.text.clone()).collect()
    }
}

/// A run in which before every step `ask` is asked for questions, until it has none.
fn run(
    config: RunConfig,
    out_dir: &Path,
    ask: &dyn Fn(usize) -> Option<Question>,
    each: &dyn Fn(&EventBody, [&AtomicBool; 2]),
) -> (TrainSummary, Heard) {
    let job = TrainJob {
        model: model().display().to_string(),
        model_name: "tiny".into(),
        data: model().join("rows.jsonl").display().to_string(),
        eval_data: None,
        out_dir: out_dir.display().to_string(),
        init_adapter: None,
        config,
        resume: false,
        device: "cpu".into(),
        force: false,
        machine: lathe_protocol::Machine::default(),
        cache: out_dir.join("cache").display().to_string(),
    };
    let (stop, cancel) = (AtomicBool::new(false), AtomicBool::new(false));
    let asked = Cell::new(0);
    let next_question = || {
        let question = ask(asked.get());
        asked.set(if question.is_some() { asked.get() + 1 } else { 0 });
        question
    };
    let audience = Audience { next_question: &next_question, cancel: &cancel };
    let world = Surroundings { clock: &|| 0.0, stop: &stop, audience: Some(audience) };
    let heard = RefCell::new(Heard::default());
    let summary = train::run(&job, &world, &mut |event| {
        each(&event, [&stop, &cancel]);
        let mut heard = heard.borrow_mut();
        match event {
            EventBody::Step(step) => heard.losses.push(step.loss.to_bits()),
            EventBody::ReplyStarted(by) => {
                heard.answers.push(Answer { by, text: String::new(), finished: false });
            }
            EventBody::Reply(delta) => heard.answers.last_mut().unwrap().text.push_str(&delta.text),
            EventBody::ReplyDone(stats) => heard.answers.last_mut().unwrap().finished = stats.finished,
            EventBody::ReplyFailed { error } => heard.refusals.push(error),
            _ => {}
        }
    })
    .unwrap();
    (summary, heard.into_inner())
}

/// With the adapter, then without.
fn ask_both(asked: usize) -> Option<Question> {
    (asked < 2).then(|| Question { request: request(None), base: asked == 1 })
}

/// What the model says with these adapters, in a chat of its own.
fn says(adapters: &[PathBuf]) -> String {
    let mut session = ChatSession::load(&model(), adapters, &|| 0.0).unwrap();
    let mut said = String::new();
    let mut emit = |delta: lathe_protocol::ReplyDelta| said.push_str(&delta.text);
    session.reply(&request(None), &AtomicBool::new(false), &|| 0.0, &mut emit).unwrap();
    said
}

#[test]
fn talking_changes_no_loss_and_the_base_stays_what_it_was() {
    let untrained = says(&[]);
    for (method, gradient_checkpointing, use_dora) in [
        (Method::Lora, false, false),
        (Method::Lora, true, false),
        (Method::Lora, false, true),
        (Method::Qlora, false, false),
    ] {
        let mut config = RunConfig { gradient_checkpointing, ..config(method) };
        config.lora.use_dora = use_dora;
        let folder = tempfile::tempdir().unwrap();
        let (_, silent) = run(config.clone(), folder.path(), &|_| None, &|_, _| {});
        let folder = tempfile::tempdir().unwrap();
        let (summary, heard) = run(config, folder.path(), &ask_both, &|_, _| {});
        assert_eq!((heard.losses.len(), &heard.losses), (4, &silent.losses), "{method:?}");
        assert!(summary.completed && heard.refusals.is_empty());

        let by = |voice| (0..4).map(move |step| AnsweredBy { step, total_steps: 4, voice });
        let expected: Vec<_> =
            by(RunVoice::Adapter).zip(by(RunVoice::Base)).flat_map(|(a, b)| [a, b]).collect();
        assert_eq!(heard.answers.iter().map(|answer| answer.by).collect::<Vec<_>>(), expected);
        let (adapter, base) = (heard.texts(RunVoice::Adapter), heard.texts(RunVoice::Base));
        assert!(base.iter().all(|text| *text == base[0]) && adapter[0] == base[0], "{base:?}");
        assert_ne!(adapter[3], adapter[0]);
        // In NF4 the base is not the one in the folder.
        if method == Method::Lora {
            let checkpoint = folder.path().join("checkpoints/step-00000003");
            assert_eq!((&base[0], &adapter[3]), (&untrained, &says(&[checkpoint])));
        }
    }
}

#[test]
fn a_whole_model_answers_as_it_is_and_has_no_base() {
    let folder = tempfile::tempdir().unwrap();
    let (_, silent) = run(config(Method::Full), folder.path(), &|_| None, &|_, _| {});
    let folder = tempfile::tempdir().unwrap();
    let (_, heard) = run(config(Method::Full), folder.path(), &ask_both, &|_, _| {});
    assert_eq!(heard.losses, silent.losses);
    let texts = heard.texts(RunVoice::Model);
    assert_eq!((texts.len(), heard.answers.len(), heard.refusals.len()), (4, 4, 4));
    assert_eq!(texts[0], says(&[]));
    assert_ne!(texts[3], texts[0]);
    let refusal = &heard.refusals[0];
    assert!(refusal.message.contains("its base is no longer in memory"), "{refusal}");

    let mut config = config(Method::Lora);
    config.lora.modules_to_save = vec!["lm_head".into()];
    let folder = tempfile::tempdir().unwrap();
    let (_, heard) = run(config, folder.path(), &ask_both, &|_, _| {});
    assert_eq!((heard.texts(RunVoice::Adapter).len(), heard.refusals.len()), (4, 4));
}

#[test]
fn a_style_is_heard_by_the_adapter_and_left_out_for_the_base() {
    let mut config = config(Method::Lora);
    config.styles = vec![Style::new("brief")];
    let ask = |asked: usize| {
        (asked < 3).then(|| Question { request: request((asked > 0).then_some("brief")), base: asked == 2 })
    };
    let folder = tempfile::tempdir().unwrap();
    let (_, heard) = run(config, folder.path(), &ask, &|_, _| {});
    assert_eq!((heard.answers.len(), heard.refusals.len()), (12, 0));
    assert!(heard.texts(RunVoice::Base).iter().all(|text| *text == says(&[])));
}

#[test]
fn a_cancel_ends_the_answer_and_a_stop_ends_the_run_with_it() {
    let ask = |asked: usize| (asked < 1).then(|| Question { request: request(None), base: false });
    let folder = tempfile::tempdir().unwrap();
    let (summary, heard) = run(config(Method::Lora), folder.path(), &ask, &|event, [_, cancel]| {
        // As the worker does it: set while a reply is written, cleared for the next.
        cancel.store(matches!(event, EventBody::Reply(_)), Ordering::Relaxed);
    });
    let whole = says(&[]);
    assert_eq!((summary.steps, heard.losses.len(), heard.answers.len()), (4, 4, 4));
    let cut = &heard.answers[0];
    assert!(!cut.finished && cut.text.len() < whole.len() && whole.starts_with(&cut.text), "{cut:?}");

    let folder = tempfile::tempdir().unwrap();
    let (summary, heard) = run(config(Method::Lora), folder.path(), &ask, &|event, [stop, cancel]| {
        if matches!(event, EventBody::Reply(_)) && folder.path().join("checkpoints/step-00000002").exists() {
            stop.store(true, Ordering::Relaxed);
            cancel.store(true, Ordering::Relaxed);
        }
    });
    assert_eq!((summary.completed, summary.steps), (false, 2));
    assert_eq!((heard.losses.len(), heard.answers.len()), (2, 3));
    assert!(heard.answers[2].text.len() < heard.answers[1].text.len());
}

#[test]
fn adapters_are_taken_off_whatever_they_are_on() {
    let names = |names: &[&str]| names.iter().map(ToString::to_string).collect::<Vec<_>>();
    let experts = names(&["experts.gate_up_proj", "experts.down_proj"]);
    let check = |name: &str, config: &LoraConfig| {
        let logits = |model: &Model| -> Vec<f32> {
            model.all_logits(&[1, 2, 3]).unwrap().flatten_all().unwrap().to_vec1().unwrap()
        };
        let mut model = Model::load(&golden(name), LoadFor::Lora).unwrap();
        let base = logits(&model);
        lora::attach_fresh(&mut model, config, 1).unwrap();
        for learns in adapter::trainables(&model) {
            learns.var.set(&learns.var.rand_like(-0.5, 0.5).unwrap()).unwrap();
        }
        let adapted = logits(&model);
        assert_ne!(adapted, base, "{name}");
        assert_eq!(model.without_adapters(logits).unwrap(), base, "{name}");
        assert_eq!(logits(&model), adapted, "{name}");
    };
    check("tiny-qwen3", &LoraConfig { r: 4, use_dora: true, ..LoraConfig::default() });
    check("tiny-gpt-oss", &LoraConfig { r: 2, target_parameters: experts.clone(), ..LoraConfig::default() });
    let router = [experts, names(&["mlp.gate.weight"])].concat();
    check("tiny-qwen3-moe", &LoraConfig { r: 2, target_parameters: router, ..LoraConfig::default() });
}
