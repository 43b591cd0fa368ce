//! Graphics cards, as a driver's library tells of them that a C compiler makes here. No card is needed.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

use std::{
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use lathe_host::{Host, HostOptions, Paths};
use lathe_protocol::{
    Command as HostCommand, CommandBody, EngineLink as _, EventBody, Gpu, GpuProcess, Hardware, JobId,
    PcieLink,
};
use lathe_tests::{Lathe, program, repo};

const GIB: u64 = 1 << 30;
const CPU_ONLY: &str = "This version computes on the CPU only";

/// The library with these `-D`s; none where there is no C compiler.
fn fake_nvml(folder: &Path, defines: &[&str]) -> Option<PathBuf> {
    std::fs::create_dir_all(folder).unwrap();
    let library = folder.join(format!("fake_nvml{}.so", defines.concat()));
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-o"]).arg(&library).args(defines).arg(repo("tests/fixtures/fake_nvml.c"));
    let Ok(output) = cc.output() else {
        eprintln!("skipped: no C compiler (cc) to make a driver's library with");
        return None;
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(library)
}

fn host(lathe: &Lathe, library: &Path, gpus: Vec<Gpu>) -> Host {
    let paths = Paths {
        data_dir: lathe.path("data"),
        hf_cache: lathe.path("hub"),
        settings: lathe.path("data").join("settings.toml"),
    };
    let mut options = HostOptions::new(paths, program(), vec!["worker".into()]);
    options.nvml = Some(library.into());
    options.gpus = gpus;
    Host::start(options).unwrap()
}

/// The first answers of a command, which must come within seconds.
fn answers(host: &mut Host, job: u64, body: CommandBody, count: usize) -> Vec<EventBody> {
    host.send(HostCommand { job: JobId(job), body });
    let (mut all, due) = (Vec::new(), Instant::now() + Duration::from_secs(20));
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
    let mut host = host(&lathe, &library, Vec::new());
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

    assert!(machine.gpu_note.unwrap().starts_with(CPU_ONLY));
    assert!(machine.advice.iter().all(|line| !line.contains("gpt-oss")), "its own is the CPU's");
}

#[test]
fn cards_are_told_of_every_second_while_they_change() {
    let lathe = Lathe::new();
    let Some(library) = fake_nvml(&lathe.path("lib"), &[]) else { return };
    let mut host = host(&lathe, &library, Vec::new());
    let busy = answers(&mut host, 1, CommandBody::GpusFollow, 2).into_iter().map(|body| match body {
        EventBody::Gpus { gpus, .. } => gpus[0].utilization_percent.unwrap(),
        other => panic!("{other:?}"),
    });
    assert_eq!(busy.collect::<Vec<_>>(), [37, 38]);
    host.send(HostCommand { job: JobId(1), body: CommandBody::Stop });
    let due = Instant::now() + Duration::from_secs(5);
    while !host.wait(Duration::from_millis(50)).iter().any(|event| event.body == EventBody::Done) {
        assert!(Instant::now() < due, "it goes on");
    }
}

#[test]
fn only_what_runs_can_use_is_a_device() {
    let lathe = Lathe::new();
    let Some(library) = fake_nvml(&lathe.path("lib"), &[]) else { return };
    let machine = hardware(&mut host(&lathe, &library, Vec::new()), 1);
    assert_eq!((machine.gpus.len(), machine.devices()), (2, vec!["cpu".to_owned()]));
    // A version that computes on the second card would say so.
    let usable = Gpu { index: 1, name: "named otherwise".into(), ..Gpu::default() };
    let machine = hardware(&mut host(&lathe, &library, vec![usable]), 1);
    assert_eq!(machine.devices(), ["cuda:1", "cpu"]);
    assert_eq!((machine.gpus[1].name.as_str(), machine.gpu_note), ("NVIDIA GeForce GTX 1650", None));
}

#[test]
fn why_no_card_is_seen_is_a_plain_sentence() {
    let lathe = Lathe::new();
    let note = |library: &Path| {
        let machine = hardware(&mut host(&lathe, library, Vec::new()), 1);
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
    let machine = hardware(&mut host(&lathe, &library, Vec::new()), 1);
    assert_eq!(machine.gpus.len(), 1);
    let note = machine.gpu_note.unwrap();
    assert!(note.starts_with(CPU_ONLY) && note.contains("Card 1 does not answer: device fell off"), "{note}");
}

#[test]
fn the_program_tells_of_cards_and_refuses_to_train_on_them() {
    let lathe = Lathe::new();
    let Some(library) = fake_nvml(&lathe.path("lib"), &[]) else { return };
    let run = |args: &[&str], code: i32| {
        let output = lathe.command(args).env("LATHE_NVML", &library).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert_eq!(output.status.code(), Some(code), "{args:?}: {}", text(&output.stderr));
        (text(&output.stdout), text(&output.stderr))
    };
    let (json, _) = run(&["hardware", "--json"], 0);
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    let names = [&json["gpus"][0]["name"], &json["gpus"][1]["name"]];
    assert_eq!(names, ["NVIDIA H200", "NVIDIA GeForce GTX 1650"]);
    assert_eq!(
        (&json["gpus"][0]["power_limit_watts"], &json["gpus"][0]["is_usable"]),
        (&700.0.into(), &false.into())
    );
    assert!(json["gpus"][1]["processes"].is_null());

    let (text, _) = run(&["hardware"], 0);
    for line in [
        "GPU      0: NVIDIA H200",
        "Build    compute 9.0, PCIe 5 ×16, driver 580.82.07, CUDA up to 13.0",
        "% busy, 45 °C, 322 of 700 W, 1980 MHz, memory 3201 MHz",
        "VRAM     60.0 GiB free of 140.0 GiB",
        "Used by  python3.12 70.0 GiB, Lathe 2.0 GiB, process 99 3 MiB, chrome",
        "GPU      1: NVIDIA GeForce GTX 1650",
        "Used by  not told",
        "What it will have room for, once Lathe can use it:",
        CPU_ONLY,
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }

    let data = repo("resources/samples/pirate.jsonl").display().to_string();
    let train = ["train", "--model", "starter", "--data", &data, "--out", "run", "--device", "cuda:0"];
    for args in [&train[..], &["estimate", "--model", "starter", "--device", "cuda:0"]] {
        let (_, stderr) = run(args, 1);
        let expected = "Device cuda:0 is not available: this version computes on the CPU only";
        assert!(stderr.contains(expected), "{stderr}");
    }
    let (estimate, _) = run(&["estimate", "--model", "starter"], 0);
    assert!(estimate.contains("This machine’s cpu") && !estimate.contains("cuda:0"), "{estimate}");
}
