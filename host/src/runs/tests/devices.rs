//! Runs that wait for their device, on cards that only the host believes in.

use lathe_protocol::{ErrorInfo, Gpu, TrainRequest};

use super::{
    live::{by_name, endless_options, wait_for},
    *,
};
use crate::{Host, HostOptions, testing::gpu};

/// Queues a run that goes on until it is stopped.
fn queue(host: &mut Host, bench: &Bench, name: &str, device: &str) {
    let mut request = TrainRequest { start: TrainStart::Queued, ..bench.train_request(Path::new("")) };
    (request.out_dir, request.name, request.device) = (None, Some(name.into()), device.into());
    let events = ask(host, 1, CommandBody::Train(Box::new(request)));
    assert_eq!(events.last(), Some(&EventBody::Done), "{events:?}");
}

fn options(bench: &Bench, gpus: Vec<Gpu>) -> HostOptions {
    HostOptions { runs_queue: true, gpus, ..endless_options(bench) }
}

/// What trains where.
fn at_work(bench: &Bench) -> Vec<(String, String)> {
    let running = listed(bench).into_iter().filter(|run| run.status == RunStatus::Running && run.step > 0);
    let mut found: Vec<_> = running.map(|run| (run.name, run.runs_on.unwrap())).collect();
    found.sort();
    found
}

fn wait_for_work(bench: &Bench, expected: &[(&str, &str)]) {
    let expected: Vec<_> = expected.iter().map(|(run, on)| ((*run).to_owned(), (*on).to_owned())).collect();
    wait_for(&format!("{expected:?}"), || at_work(bench) == expected);
}

fn stop(host: &mut Host, run: &str) {
    let events = ask(host, 2, CommandBody::RunsStop { run: run.into(), then: StopThen::Pause });
    assert_eq!(events.last(), Some(&EventBody::Done), "{events:?}");
}

/// A model of about 1.5 billion parameters.
fn give_the_model_a_shape(bench: &Bench) {
    let config = r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 28,
        "hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 16, "num_key_value_heads": 8,
        "vocab_size": 32000, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "rope_theta": 10000.0,
        "tie_word_embeddings": false, "hidden_act": "silu"}"#;
    fs::write(bench.path("model/config.json"), config).unwrap();
}

#[test]
fn each_device_trains_one_run_and_the_others_wait_for_their_own() {
    let bench = Bench::new();
    let mut host = Host::start(options(&bench, vec![gpu(0, 24), gpu(1, 24)])).unwrap();
    for (name, device) in
        [("a", "cuda:0"), ("b", "cuda:0"), ("c", "cuda:1"), ("d", "auto"), ("e", "cpu"), ("f", "auto")]
    {
        queue(&mut host, &bench, name, device);
    }
    wait_for_work(&bench, &[("a", "cuda:0"), ("c", "cuda:1"), ("e", "cpu")]);
    std::thread::sleep(Duration::from_millis(1200));
    wait_for_work(&bench, &[("a", "cuda:0"), ("c", "cuda:1"), ("e", "cpu")]);
    // First come first served: b waited before d did.
    stop(&mut host, "a");
    wait_for_work(&bench, &[("b", "cuda:0"), ("c", "cuda:1"), ("e", "cpu")]);
    stop(&mut host, "c");
    wait_for_work(&bench, &[("b", "cuda:0"), ("d", "cuda:1"), ("e", "cpu")]);
    // The CPU is no place for a run that fits a card.
    stop(&mut host, "e");
    std::thread::sleep(Duration::from_millis(1200));
    assert_eq!(by_name(&bench, "f").status, RunStatus::Queued);

    // Given to a device that is free, it starts.
    ask(&mut host, 3, CommandBody::RunsAssign { run: "f".into(), device: "cpu".into() });
    wait_for_work(&bench, &[("b", "cuda:0"), ("d", "cuda:1"), ("f", "cpu")]);
    let error =
        failure(&ask(&mut host, 3, CommandBody::RunsAssign { run: "f".into(), device: "auto".into() }));
    assert!(error.message.contains("it is running"), "{error}");
}

#[test]
fn auto_takes_a_card_with_room_and_the_cpu_only_where_no_card_is() {
    for (gpus, expected) in
        [(vec![gpu(0, 1), gpu(1, 80)], "cuda:1"), (vec![gpu(0, 80), gpu(1, 80)], "cuda:0"), (vec![], "cpu")]
    {
        let bench = Bench::new();
        give_the_model_a_shape(&bench);
        let mut host = Host::start(options(&bench, gpus)).unwrap();
        queue(&mut host, &bench, "a", "auto");
        wait_for_work(&bench, &[("a", expected)]);
    }
}

#[test]
fn a_run_that_fits_no_card_is_refused_with_what_would() {
    let bench = Bench::new();
    give_the_model_a_shape(&bench);
    let refused = |host: &mut Host, start| {
        let request = TrainRequest { start, ..bench.train_request(&bench.path("out")) };
        let error = failure(&ask(host, 1, CommandBody::Train(Box::new(request))));
        assert!(listed(&bench).is_empty() && !bench.path("out").exists());
        error
    };
    let mut host = Host::start(options(&bench, vec![gpu(0, 2), gpu(1, 6)])).unwrap();
    for start in [TrainStart::Attached, TrainStart::Queued] {
        let error = refused(&mut host, start);
        assert_eq!(error.code, ErrorCode::NeedsCpu);
        assert!(error.message.starts_with("The run fits no graphics card: it needs "), "{error}");
        assert!(error.message.ends_with(", cuda:1 has 6.0 GiB"), "{error}");
        let hint = error.hint.unwrap();
        assert!(hint.starts_with("It fits with ") && hint.contains("with method=qlora"), "{hint}");
        assert!(hint.contains("compute on the CPU: --device cpu"), "{hint}");
    }
    // One that waited while the larger card was there.
    let without_queue = HostOptions { runs_queue: false, ..options(&bench, vec![gpu(0, 80)]) };
    queue(&mut Host::start(without_queue).unwrap(), &bench, "a", "auto");
    wait_for("the failure", || by_name(&bench, "a").status == RunStatus::Failed);
    assert!(by_name(&bench, "a").error.unwrap().starts_with("The run fits no graphics card"));
    // Who asks for the CPU gets it.
    queue(&mut host, &bench, "b", "cpu");
    wait_for_work(&bench, &[("b", "cpu")]);
}

#[test]
fn what_is_started_at_once_and_what_chats_goes_where_nothing_trains() {
    let bench = Bench::new();
    let gpus = vec![gpu(0, 24), gpu(1, 24)];
    let options = HostOptions { runs_queue: false, ..options(&bench, gpus.clone()) };
    let mut host = Host::start(options).unwrap();
    for name in ["a", "b"] {
        let mut request = TrainRequest { start: TrainStart::Detached, ..bench.train_request(Path::new("")) };
        (request.out_dir, request.name) = (None, Some(name.into()));
        ask(&mut host, 1, CommandBody::Train(Box::new(request)));
        if name == "a" {
            assert_eq!(chat_device(&bench, &gpus), "cuda:1", "train on one, chat on the other");
        }
    }
    wait_for_work(&bench, &[("a", "cuda:0"), ("b", "cuda:1")]);
    let error = chat(&bench, &gpus);
    assert_eq!(error.message, "Every graphics card trains: cuda:0, cuda:1");
    assert!(error.hint.unwrap().ends_with("or compute on the CPU: --device cpu"));
}

/// Starts a chat with a worker that writes down what it is told, and dies.
fn chat(bench: &Bench, gpus: &[Gpu]) -> ErrorInfo {
    let options = bench.shell_options(&format!("timeout 0.3 cat > {}", bench.path("chat").display()));
    let model = bench.path("model").display().to_string();
    let body = CommandBody::Chat { model, adapters: Vec::new(), device: "auto".into(), force: false };
    failure(&ask(&mut Host::start(HostOptions { gpus: gpus.to_vec(), ..options }).unwrap(), 1, body))
}

/// What a chat's worker was told.
fn chat_device(bench: &Bench, gpus: &[Gpu]) -> String {
    chat(bench, gpus);
    let told = String::from_utf8_lossy(&fs::read(bench.path("chat")).unwrap()).into_owned();
    let (_, device) = told.split_once(r#""device":""#).unwrap();
    device.split('"').next().unwrap().to_owned()
}

#[test]
fn a_device_that_is_not_there_is_named_with_those_that_are() {
    let bench = Bench::new();
    let check = |gpus: Vec<Gpu>, device: &str, expected: &str| {
        let options = HostOptions { gpus, ..endless_options(&bench) };
        let request = TrainRequest { device: device.into(), ..bench.train_request(&bench.path("out")) };
        let error =
            failure(&ask(&mut Host::start(options).unwrap(), 1, CommandBody::Train(Box::new(request))));
        assert!(format!("{} {:?}", error.message, error.hint).contains(expected), "{error}");
        assert!(listed(&bench).is_empty());
    };
    check(vec![], "cuda:0", "This machine has no device cuda:0: LATHE_NVML names no library");
    check(vec![gpu(0, 24)], "cuda:1", "it has cuda:0, cpu");
    check(vec![gpu(0, 24)], "tpu", "write auto, cpu or cuda:N");
}

#[test]
fn a_queued_run_whose_device_is_gone_fails_and_says_so() {
    let bench = Bench::new();
    let without_queue = HostOptions { runs_queue: false, ..options(&bench, vec![gpu(0, 24)]) };
    queue(&mut Host::start(without_queue).unwrap(), &bench, "a", "cuda:0");
    let _host = Host::start(options(&bench, vec![])).unwrap();
    wait_for("the failure", || by_name(&bench, "a").status == RunStatus::Failed);
    assert!(by_name(&bench, "a").error.unwrap().starts_with("This machine has no device cuda:0"));
}

#[test]
fn a_card_whose_memory_gives_out_says_what_would_take_less() {
    let bench = Bench::new();
    give_the_model_a_shape(&bench);
    let error =
        ErrorInfo::new(ErrorCode::OutOfMemory, "The card's memory gave out: 0.5 GiB of 24.0 GiB free");
    let run = |events: &[EventBody]| {
        let failed = [events, &[EventBody::Failed { error: error.clone() }]].concat();
        let options =
            HostOptions { gpus: vec![gpu(0, 24)], ..bench.options(&failed, "cat > /dev/null", &[]) };
        let request = TrainRequest { name: Some("a".into()), ..bench.train_request(&bench.path("out")) };
        failure(&ask(&mut Host::start(options).unwrap(), 1, CommandBody::Train(Box::new(request))))
    };
    // 1. Before training, nothing of it is left.
    let early = run(&[]);
    assert_eq!((early.code, &early.message), (ErrorCode::OutOfMemory, &error.message));
    let hint = early.hint.unwrap();
    assert!(
        hint.starts_with("it was predicted to need ") && hint.contains(" of cuda:0's 24.0 GiB. It fits"),
        "{hint}"
    );
    assert!(hint.contains("method=qlora") && hint.contains("max_seq_len="), "{hint}");
    assert!(!bench.path("out").exists() && listed(&bench).is_empty());
    // 2. Under way, it can go on from its checkpoint.
    let late = run(&[training_started(), step(1)]);
    assert_eq!(late.message, format!("{} after step 1", error.message));
    let hint = late.hint.unwrap();
    assert!(hint.contains("--less-memory; it was predicted to need "), "{hint}");
    assert_eq!(by_name(&bench, "a").status, RunStatus::OutOfMemory);
}
