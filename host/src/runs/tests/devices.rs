//! Runs that wait for their device, on cards that only the host believes in.

use lathe_protocol::{Gpu, TrainRequest};

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
fn auto_takes_a_card_with_room_and_the_cpu_if_none_has() {
    for (gpus, expected) in [
        (vec![gpu(0, 1), gpu(1, 80)], "cuda:1"),
        (vec![gpu(0, 80), gpu(1, 80)], "cuda:0"),
        (vec![gpu(0, 1)], "cpu"),
        (vec![], "cpu"),
    ] {
        let bench = Bench::new();
        give_the_model_a_shape(&bench);
        let mut host = Host::start(options(&bench, gpus)).unwrap();
        queue(&mut host, &bench, "a", "auto");
        wait_for_work(&bench, &[("a", expected)]);
    }
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
    assert_eq!(chat_device(&bench, &gpus), "cpu");
}

/// Starts a chat and reads what its worker was told.
fn chat_device(bench: &Bench, gpus: &[Gpu]) -> String {
    let options = bench.shell_options(&format!("timeout 0.3 cat > {}", bench.path("chat").display()));
    let model = bench.path("model").display().to_string();
    let body = CommandBody::Chat { model, adapters: Vec::new(), device: "auto".into(), force: false };
    failure(&ask(&mut Host::start(HostOptions { gpus: gpus.to_vec(), ..options }).unwrap(), 1, body));
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
    check(vec![], "cuda:0", "computes on the CPU only");
    check(vec![gpu(0, 24)], "cuda:1", "it has cuda:0 and cpu");
    check(vec![gpu(0, 24)], "tpu", "write auto, cpu or cuda:N");
}

#[test]
fn a_queued_run_whose_device_is_gone_fails_and_says_so() {
    let bench = Bench::new();
    let without_queue = HostOptions { runs_queue: false, ..options(&bench, vec![gpu(0, 24)]) };
    queue(&mut Host::start(without_queue).unwrap(), &bench, "a", "cuda:0");
    let _host = Host::start(options(&bench, vec![])).unwrap();
    wait_for("the failure", || by_name(&bench, "a").status == RunStatus::Failed);
    assert!(by_name(&bench, "a").error.unwrap().contains("cuda:0 is not available"));
}
