//! Graphics cards, as a driver's library tells of them that a C compiler makes here. No card is needed.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use lathe_host::{Host, HostOptions, Paths};
use lathe_protocol::{
    Command as HostCommand, CommandBody, EngineLink as _, ErrorCode, ErrorInfo, EventBody, Gpu, GpuProcess,
    Hardware, JobId, PcieLink, handshake, write_frame,
};
use lathe_tests::{Lathe, program, repo};

const GIB: u64 = 1 << 30;
/// All that a run on a card takes beside it.
const LIBRARIES: [&str; 4] = ["libcuda.so.1", "libcublas.so.13", "libcublasLt.so.13", "libcurand.so.10"];

/// The library with these `-D`s; none where there is no C compiler.
fn fake_nvml(folder: &Path, defines: &[&str]) -> Option<PathBuf> {
    std::fs::create_dir_all(folder).unwrap();
    let name = defines.concat().replace(['/', '"'], "-");
    let library = folder.join(format!("fake_nvml{name}.so"));
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-o"]).arg(&library).args(defines).arg(repo("tests/fixtures/fake_nvml.c"));
    let Ok(output) = cc.output() else {
        eprintln!("skipped: no C compiler (cc) to make a driver's library with");
        return None;
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(library)
}

fn host(lathe: &Lathe, library: &Path) -> Host {
    let paths = Paths {
        data_dir: lathe.path("data"),
        hf_cache: lathe.path("hub"),
        settings: lathe.path("data").join("settings.toml"),
    };
    let mut options = HostOptions::new(paths, program(), vec!["worker".into()]);
    options.nvml = Some(library.into());
    // What this machine has is no part of a test.
    options.cuda_worker = Some(lathe.path("cuda-worker"));
    (options.cuda_libraries, options.cuda_visible) = (Some(vec![lathe.path("data/cuda")]), None);
    Host::start(options).unwrap()
}

/// The first answers of a command, which must come within seconds.
fn answers(host: &mut Host, job: u64, body: CommandBody, count: usize) -> Vec<EventBody> {
    host.send(HostCommand { job: JobId(job), body });
    let (mut all, due) = (Vec::new(), Instant::now() + Duration::from_mins(1));
    while all.len() < count {
        assert!(Instant::now() < due, "only {all:?}");
        let events = host.wait(Duration::from_millis(50)).into_iter().map(|event| event.body);
        all.extend(events.filter(|body| *body != EventBody::Done));
    }
    all
}

fn hardware(host: &mut Host, job: u64) -> Hardware {
    match answers(host, job, CommandBody::Hardware, 1).remove(0) {
        EventBody::Hardware(hardware) => hardware,
        other => panic!("{other:?}"),
    }
}

#[test]
fn every_fact_of_a_card_is_read_and_what_it_does_not_tell_is_left_out() {
    let lathe = Lathe::new();
    let Some(library) = fake_nvml(&lathe.path("lib"), &[]) else { return };
    let mut host = host(&lathe, &library);
    let machine = hardware(&mut host, 1);
    let [first, second] = &machine.gpus[..] else { panic!("{:?}", machine.gpus) };

    let process = |pid, name: Option<&str>, bytes, is_ours| GpuProcess {
        pid,
        name: name.map(str::to_owned),
        bytes,
        is_ours,
    };
    let expected = Gpu {
        index: 0,
        name: "NVIDIA H200".into(),
        uuid: Some("GPU-00000000-1111-2222-3333-444444444444".into()),
        is_usable: false,
        vram_total_bytes: 140 * GIB,
        vram_free_bytes: 60 * GIB,
        utilization_percent: Some(37),
        temperature_celsius: Some(45),
        power_watts: Some(321.5),
        power_limit_watts: Some(700.0),
        graphics_clock_mhz: Some(1980),
        memory_clock_mhz: Some(3201),
        pcie: Some(PcieLink { generation: 5, width: 16, max_generation: Some(5), max_width: Some(16) }),
        driver: Some("580.82.07".into()),
        cuda: Some("13.0".into()),
        compute_capability: Some((9, 0)),
        processes: Some(vec![
            process(4711, Some("python3.12"), Some(70 * GIB), false),
            process(std::process::id(), None, Some(2 * GIB), true),
            process(99, None, Some(3 << 20), false),
            process(815, Some("chrome"), None, false),
        ]),
        advice: first.advice.clone(),
    };
    assert_eq!(*first, expected);
    assert!(first.advice.iter().any(|line| line.starts_with("LoRA of openai/gpt-oss-20b: fits")));

    let expected = Gpu {
        index: 1,
        name: "NVIDIA GeForce GTX 1650".into(),
        uuid: Some("GPU-55555555-6666-7777-8888-999999999999".into()),
        vram_total_bytes: 4 * GIB,
        vram_free_bytes: 3 * GIB,
        temperature_celsius: Some(41),
        driver: Some("580.82.07".into()),
        cuda: Some("13.0".into()),
        compute_capability: Some((7, 5)),
        advice: second.advice.clone(),
        ..Gpu::default()
    };
    assert_eq!(*second, expected);
    assert!(second.advice.iter().any(|line| line.starts_with("LoRA of openai/gpt-oss-20b: does not fit")));

    assert!(machine.gpu_note.unwrap().starts_with("LATHE_WORKER_CUDA names no file: "));
    assert!(machine.advice.iter().all(|line| !line.contains("gpt-oss")), "its own is the CPU's");
}

#[test]
fn cards_are_told_of_every_second_while_they_change() {
    let lathe = Lathe::new();
    let Some(library) = fake_nvml(&lathe.path("lib"), &[]) else { return };
    let mut host = host(&lathe, &library);
    let busy = answers(&mut host, 1, CommandBody::GpusFollow, 2).into_iter().map(|body| match body {
        EventBody::Gpus { gpus, .. } => gpus[0].utilization_percent.unwrap(),
        other => panic!("{other:?}"),
    });
    assert_eq!(busy.collect::<Vec<_>>(), [37, 38]);
    host.send(HostCommand { job: JobId(1), body: CommandBody::Stop });
    let due = Instant::now() + Duration::from_mins(1);
    while !host.wait(Duration::from_millis(50)).iter().any(|event| event.body == EventBody::Done) {
        assert!(Instant::now() < due, "it goes on");
    }
}

#[test]
fn a_card_is_a_device_once_nothing_is_missing() {
    let lathe = Lathe::new();
    let Some(library) = fake_nvml(&lathe.path("lib"), &[]) else { return };
    let look = || hardware(&mut host(&lathe, &library), 1);
    let machine = look();
    assert_eq!((machine.gpus.len(), machine.devices()), (2, vec!["cpu".to_owned()]));
    let note = machine.gpu_note.unwrap();
    let old = "Card 1 (NVIDIA GeForce GTX 1650) is too old: it has compute 7.5, 8.0 is needed";
    for lack in [
        "LATHE_WORKER_CUDA names no file: ",
        "The NVIDIA driver's CUDA library is missing: libcuda.so.1",
        "CUDA's libraries libcublas.so.13, libcublasLt.so.13 and libcurand.so.10 are missing",
        old,
    ] {
        assert!(note.contains(lack), "{note}");
    }
    install(&lathe, "exit 1");
    let machine = look();
    assert_eq!(
        (machine.devices(), machine.gpu_note.as_deref()),
        (vec!["cuda:0".into(), "cpu".into()], Some(old))
    );

    let Some(library) = fake_nvml(&lathe.path("lib"), &["-DCOMPUTE=8"]) else { return };
    let machine = hardware(&mut host(&lathe, &library), 1);
    assert_eq!((machine.devices().len(), machine.gpu_note), (3, None));
    let Some(library) = fake_nvml(&lathe.path("lib"), &["-DCUDA=12040"]) else { return };
    let machine = hardware(&mut host(&lathe, &library), 1);
    assert_eq!(machine.devices(), ["cpu"]);
    let note = machine.gpu_note.unwrap();
    let expected = "The NVIDIA driver 580.82.07 is too old: it runs CUDA up to 12.4, 13.0 is needed";
    assert!(note.starts_with(expected), "{note}");
}

/// Libraries by name, and a worker for cards that is this shell script.
fn install(lathe: &Lathe, script: &str) {
    let folder = lathe.path("data/cuda");
    std::fs::create_dir_all(&folder).unwrap();
    for library in LIBRARIES {
        std::fs::write(folder.join(library), "").unwrap();
    }
    let (text, worker) = (lathe.path("script"), lathe.path("cuda-worker"));
    std::fs::write(&text, format!("#!/bin/sh\n{script}\n")).unwrap();
    // Were it written here, a child that another test starts just now could keep it from being run.
    assert!(Command::new("install").arg("-m755").args([&text, &worker]).status().unwrap().success());
}

/// What a worker says: the handshake, then these.
fn frames(lathe: &Lathe, events: &[EventBody]) -> String {
    let mut bytes = handshake().as_bytes().to_vec();
    for event in events {
        write_frame(&mut bytes, event).unwrap();
    }
    let path = lathe.path("frames");
    std::fs::write(&path, bytes).unwrap();
    path.display().to_string()
}

#[test]
fn why_no_card_is_seen_is_a_plain_sentence() {
    let lathe = Lathe::new();
    let note = |library: &Path| {
        let machine = hardware(&mut host(&lathe, library), 1);
        assert!(machine.gpus.is_empty(), "{library:?}");
        machine.gpu_note.unwrap()
    };
    let missing = lathe.path("missing.so");
    assert_eq!(
        note(&missing),
        format!("LATHE_NVML names no library that can be loaded: {}", missing.display())
    );
    for (define, expected) in [
        ("-DINIT=9", "An NVIDIA driver is installed, but not loaded: restart the machine"),
        ("-DINIT=18", "The NVIDIA driver was updated, and the old one still runs: restart the machine"),
        ("-DINIT=4", "This user may not ask the NVIDIA driver: see who may open /dev/nvidiactl"),
        ("-DINIT=999", "The NVIDIA driver does not tell of its cards: an internal driver error occurred"),
        ("-DOLD", "The NVIDIA driver is too old to tell of its cards: update it"),
        ("-DCARDS=0", "An NVIDIA driver is loaded, but it has no card"),
    ] {
        let Some(library) = fake_nvml(&lathe.path("lib"), &[define]) else { return };
        assert_eq!(note(&library), expected, "{define}");
    }
}

#[test]
fn a_card_that_does_not_answer_hides_no_other() {
    let lathe = Lathe::new();
    let Some(library) = fake_nvml(&lathe.path("lib"), &["-DLOST=1"]) else { return };
    let machine = hardware(&mut host(&lathe, &library), 1);
    assert_eq!(machine.gpus.len(), 1);
    let note = machine.gpu_note.unwrap();
    assert!(note.contains("Card 1 does not answer: device fell off"), "{note}");
}

/// Runs the program on a driver's library: its stdout and stderr.
fn run(lathe: &Lathe, library: &Path, args: &[&str], code: i32) -> (String, String) {
    let mut command = lathe.command(args);
    command.env("LATHE_NVML", library).env("LATHE_WORKER_CUDA", lathe.path("cuda-worker"));
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    assert_eq!(output.status.code(), Some(code), "{args:?}: {}", text(&output.stderr));
    (text(&output.stdout), text(&output.stderr))
}

#[test]
fn the_program_tells_of_cards_and_what_they_lack() {
    let lathe = Lathe::new();
    let Some(library) = fake_nvml(&lathe.path("lib"), &[]) else { return };
    let run = |args: &[&str], code: i32| run(&lathe, &library, args, code);
    let (json, _) = run(&["hardware", "--json"], 0);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let names = [&json["gpus"][0]["name"], &json["gpus"][1]["name"]];
    assert_eq!(names, ["NVIDIA H200", "NVIDIA GeForce GTX 1650"]);
    assert_eq!(
        (&json["gpus"][0]["power_limit_watts"], &json["gpus"][0]["is_usable"]),
        (&700.0.into(), &false.into())
    );
    assert!(json["gpus"][1]["processes"].is_null());
    assert!(json["gpu_note"].as_str().unwrap().starts_with("LATHE_WORKER_CUDA names no file: "));

    let (text, _) = run(&["hardware"], 0);
    for line in [
        "GPU      0: NVIDIA H200",
        "Build    compute 9.0, PCIe 5 ×16, driver 580.82.07, CUDA up to 13.0",
        "% busy, 45 °C, 322 of 700 W, 1980 MHz, memory 3201 MHz",
        "Usable   not now",
        "VRAM     60.0 GiB free of 140.0 GiB",
        "Used by  python3.12 70.0 GiB, Lathe 2.0 GiB, process 99 3 MiB, chrome",
        "GPU      1: NVIDIA GeForce GTX 1650",
        "Used by  not told",
        "What it will have room for, once Lathe can use it:",
        "LATHE_WORKER_CUDA names no file: ",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    let (text, _) = run(&["doctor"], 0);
    for line in [
        "warn  cuda:0         Cannot be used yet: NVIDIA H200",
        "warn  cuda:1         Card 1",
        "hint: build it with: cargo xtask cuda",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
    install(&lathe, &format!("cat {}; cat > /dev/null", frames(&lathe, &[])));
    let (text, _) = run(&["doctor"], 0);
    for line in
        ["ok    cuda:0         Can be used: NVIDIA H200", "ok    cuda worker    Starts and answers in "]
    {
        assert!(text.contains(line), "{line}\n{text}");
    }
    let (text, _) = run(&["hardware"], 0);
    assert!(text.contains("Usable   yes, as cuda:0"), "{text}");
}

#[test]
fn a_card_that_cannot_be_used_is_never_passed_over_in_silence() {
    let lathe = Lathe::new();
    let Some(library) = fake_nvml(&lathe.path("lib"), &[]) else { return };
    let run = |args: &[&str], code: i32| run(&lathe, &library, args, code);
    let data = repo("resources/samples/pirate.jsonl").display().to_string();
    let train =
        ["train", "--model", "starter", "--data", &data, "--max-steps", "1", "--set", "max_seq_len=64"];
    let queue = [&train[..], &["--queue"]].concat();
    let chat = ["chat", "--model", "starter", "-p", "Hello", "--max-tokens", "2"];
    let probe = ["estimate", "--model", "starter", "--probe"];
    for args in [&train[..], &queue, &chat, &probe, &["quickstart"]] {
        let (_, stderr) = run(args, 1);
        let expected = "error: The graphics card cannot be used: LATHE_WORKER_CUDA names no file: ";
        assert!(stderr.contains(expected), "{args:?}: {stderr}");
        let hint = "hint: build it with: cargo xtask cuda; ";
        assert!(stderr.contains(hint) && stderr.contains("or compute on the CPU: --device cpu"), "{stderr}");
    }
    let (json, _) = run(&[&train[..], &["--json"]].concat(), 1);
    let error: serde_json::Value = serde_json::from_str(json.lines().last().unwrap()).unwrap();
    assert_eq!((&error["kind"], &error["code"]), (&"error".into(), &"needs_cpu".into()));
    for args in [&train[..], &["estimate", "--model", "starter"]] {
        let (_, stderr) = run(&[args, &["--device", "cuda:0"]].concat(), 1);
        assert!(stderr.contains("LATHE_WORKER_CUDA names no file: "), "{stderr}");
        let (_, stderr) = run(&[args, &["--device", "cuda:7"]].concat(), 1);
        assert!(stderr.contains("This machine has no device cuda:7"), "{stderr}");
    }
    assert!(
        !lathe.path("data/runs").exists() || std::fs::read_dir(lathe.path("data/runs")).unwrap().count() == 0
    );
    // Who asks for the CPU gets it, and who only reckons needs no card.
    run(&[&train[..], &["--device", "cpu"]].concat(), 0);
    run(&[&chat[..], &["--device", "cpu"]].concat(), 0);
    let (estimate, _) = run(&["estimate", "--model", "starter"], 0);
    assert!(estimate.contains("This machine’s cpu") && !estimate.contains("cuda:0"), "{estimate}");
}

#[test]
fn a_job_sees_its_card_alone_and_its_memory_that_gives_out_is_an_answer() {
    let lathe = Lathe::new();
    let Some(library) = fake_nvml(&lathe.path("lib"), &["-DCOMPUTE=8"]) else { return };
    let message = "The card's memory gave out: 0.5 GiB of 4.0 GiB free";
    let error = ErrorInfo::new(ErrorCode::OutOfMemory, message);
    let said = frames(&lathe, &[EventBody::Failed { error }]);
    let environment = lathe.path("environment");
    install(&lathe, &format!("env > {}; cat {said}; cat > /dev/null", environment.display()));
    let data = repo("resources/samples/pirate.jsonl").display().to_string();
    let train = ["train", "--model", "starter", "--data", &data, "--device", "cuda:1"];
    let (_, stderr) = run(&lathe, &library, &train, 1);
    assert!(stderr.contains(&format!("error: {message}")), "{stderr}");
    let (_, hint) = stderr.split_once("hint: it was predicted to need ").unwrap();
    assert!(
        hint.contains("of cuda:1's 4.0 GiB, of which other programs hold 1.0 GiB. It should fit: close "),
        "{hint}"
    );

    let environment = std::fs::read_to_string(environment).unwrap();
    let folder = lathe.path("data");
    let links = folder.join("workers/lib");
    for line in [
        "CUDA_VISIBLE_DEVICES=GPU-55555555-6666-7777-8888-999999999999".to_owned(),
        "CUDA_DEVICE_ORDER=PCI_BUS_ID".to_owned(),
        "LATHE_CARD=cuda:1".to_owned(),
        format!("CUDA_CACHE_PATH={}", folder.join("cache/cuda").display()),
    ] {
        assert!(environment.lines().any(|found| found == line), "{line}\n{environment}");
    }
    let search = format!("LD_LIBRARY_PATH={}:{}", links.display(), folder.join("cuda").display());
    assert!(environment.contains(&search), "{environment}");
    // auto takes the first card, and the CPU's worker is none of this.
    let chat = ["chat", "--model", "starter", "-p", "Hello"];
    let (_, stderr) = run(&lathe, &library, &chat, 1);
    assert!(stderr.contains(message) && stderr.contains("hint: close other programs"), "{stderr}");
    let environment = std::fs::read_to_string(lathe.path("environment")).unwrap();
    assert!(environment.contains("LATHE_CARD=cuda:0"), "{environment}");
}

#[test]
fn a_card_is_free_again_before_the_next_job_has_it() {
    let lathe = Lathe::new();
    let free = lathe.path("free");
    let Some(library) = fake_nvml(&lathe.path("lib"), &[&format!("-DFREE=\"{}\"", free.display())]) else {
        return;
    };
    std::fs::write(&free, "60").unwrap();
    // The driver gives it back two seconds after the worker has ended.
    let done = EventBody::LogitsWritten { path: "o".into(), num_tokens: 1, vocab_size: 1 };
    let said = frames(&lathe, &[done, EventBody::Done]);
    let file = free.display();
    install(&lathe, &format!("echo 20 > {file}; (sleep 2; echo 60 > {file}) > /dev/null 2>&1 & cat {said}"));
    let mut host = host(&lathe, &library);
    let started = Instant::now();
    let logits = CommandBody::Logits {
        model: "starter".into(),
        adapter: None,
        ids: vec![1],
        out: "o".into(),
        device: "cuda:0".into(),
        force: false,
    };
    host.send(HostCommand { job: JobId(1), body: logits });
    let mut ended = Vec::new();
    while ended.is_empty() {
        assert!(started.elapsed() < Duration::from_mins(1), "no end");
        let events = host.wait(Duration::from_millis(50)).into_iter().map(|event| event.body);
        ended.extend(events.filter(|body| matches!(body, EventBody::Done | EventBody::Failed { .. })));
    }
    assert_eq!(ended, [EventBody::Done]);
    assert!(started.elapsed() >= Duration::from_millis(1900), "it did not wait: {:?}", started.elapsed());
    assert_eq!(hardware(&mut host, 2).gpus[0].vram_free_bytes, 60 * GIB);
}
