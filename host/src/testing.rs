//! A host whose workers are shell scripts, and what tests of it share.

#![cfg(unix)]

pub(crate) mod fake_hub;

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use lathe_protocol::{
    Command, CommandBody, EngineLink as _, Event, EventBody, Gpu, JobId, RunConfig, StepMetrics,
    TrainRequest, TrainStart, TrainSummary, handshake, write_frame,
};

use crate::{Host, HostOptions, NetOptions, Paths, files};

/// Of a Hub at this address, and none of this machine's own tokens.
pub(crate) fn net_options(endpoint: &str) -> NetOptions {
    NetOptions {
        endpoint: Some(endpoint.into()),
        token: None,
        token_file: None,
        has_keyring: false,
        is_offline: false,
        ca_bundles: Vec::new(),
        stall: Duration::from_secs(10),
        first_pause: Duration::from_millis(10),
    }
}

pub(crate) struct Bench {
    pub dir: tempfile::TempDir,
    pub paths: Paths,
}

impl Bench {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::in_folder(dir.path());
        fs::create_dir_all(dir.path().join("model")).unwrap();
        fs::write(dir.path().join("model/config.json"), r#"{"model_type": "llama"}"#).unwrap();
        fs::write(dir.path().join("pirate.jsonl"), "{}\n").unwrap();
        Self { dir, paths }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A host whose worker shakes hands, sends `events`, then does what the shell script `then` says.
    /// `$FRAMES/NAME` are the frames of `more`.
    pub(crate) fn host(&self, events: &[EventBody], then: &str, more: &[(&str, &[EventBody])]) -> Host {
        Host::start(self.options(events, then, more)).unwrap()
    }

    pub(crate) fn options(
        &self,
        events: &[EventBody],
        then: &str,
        more: &[(&str, &[EventBody])],
    ) -> HostOptions {
        let write = |name: &str, greeting: &str, events: &[EventBody]| {
            let mut bytes = greeting.as_bytes().to_vec();
            for event in events {
                write_frame(&mut bytes, event).unwrap();
            }
            fs::write(self.path(name), bytes).unwrap();
        };
        write("first.frames", &handshake(), events);
        for (name, events) in more {
            write(name, "", events);
        }
        let frames = self.dir.path().display();
        self.shell_options(&format!("FRAMES={frames}; cat $FRAMES/first.frames; {then}"))
    }

    pub(crate) fn shell_host(&self, script: &str) -> Host {
        Host::start(self.shell_options(script)).unwrap()
    }

    pub(crate) fn shell_options(&self, script: &str) -> HostOptions {
        let mut options =
            HostOptions::new(self.paths.clone(), "/bin/sh".into(), vec!["-c".into(), script.into()]);
        options.handshake_timeout = Duration::from_secs(30);
        // This machine's own cards are no part of a test.
        (options.nvml, options.cuda_visible) = (Some("/none".into()), None);
        options.cuda_libraries = Some(vec![self.path("lib")]);
        options.cuda_worker = Some(self.program(script));
        options.net = net_options("http://127.0.0.1:9");
        options
    }

    /// A worker for cards, which does the same, and CUDA's libraries as far as they are looked at.
    fn program(&self, script: &str) -> PathBuf {
        fs::create_dir_all(self.path("lib")).unwrap();
        for library in ["libcuda.so.1", "libcublas.so.13", "libcublasLt.so.13", "libcurand.so.10"] {
            fs::write(self.path("lib").join(library), "").unwrap();
        }
        let (text, program) = (self.path("script"), self.path(&files::unique_suffix()));
        fs::write(&text, format!("#!/bin/sh\n{script}\n")).unwrap();
        // Were it written here, a child that another test starts just now could keep it from being run.
        let install = std::process::Command::new("install").arg("-m755").args([&text, &program]).status();
        assert!(install.unwrap().success());
        program
    }

    pub(crate) fn train_request(&self, out: &Path) -> TrainRequest {
        TrainRequest {
            model: self.path("model").display().to_string(),
            data: self.path("pirate.jsonl").display().to_string(),
            eval_data: None,
            config: RunConfig::default(),
            out_dir: Some(out.display().to_string()),
            name: None,
            init_adapter: None,
            force: false,
            resume: false,
            device: "auto".into(),
            start: TrainStart::Attached,
        }
    }
}

pub(crate) fn send(host: &mut Host, job: u64, body: CommandBody) {
    host.send(Command { job: JobId(job), body });
}

/// A card of so many GiB.
pub(crate) fn gpu(index: usize, gib: u64) -> Gpu {
    Gpu {
        index,
        name: "Test".into(),
        vram_total_bytes: gib << 30,
        vram_free_bytes: gib << 30,
        ..Gpu::default()
    }
}

/// The events of a job up to its end, which must come.
pub(crate) fn to_the_end(host: &mut Host, job: u64) -> Vec<EventBody> {
    let mut events = Vec::new();
    let due = Instant::now() + Duration::from_mins(1);
    loop {
        for Event { job: of, body } in host.wait(Duration::from_millis(50)) {
            if of == JobId(job) {
                let ends = is_end(&body);
                events.push(body);
                if ends {
                    // Exactly one end: nothing may follow.
                    let more = host.wait(Duration::from_millis(50));
                    assert!(!more.iter().any(|event| event.job == of && is_end(&event.body)), "{more:?}");
                    return events;
                }
            }
        }
        assert!(Instant::now() < due, "no end after {events:?}");
    }
}

/// The events of a job until `enough` of them were seen.
pub(crate) fn until(host: &mut Host, job: u64, enough: impl Fn(&[EventBody]) -> bool) -> Vec<EventBody> {
    let mut events = Vec::new();
    let due = Instant::now() + Duration::from_mins(1);
    while !enough(&events) {
        assert!(Instant::now() < due, "not enough: {events:?}");
        let more = host.wait(Duration::from_millis(50)).into_iter();
        events.extend(more.filter(|event| event.job == JobId(job)).map(|event| event.body));
    }
    events
}

fn is_end(body: &EventBody) -> bool {
    matches!(body, EventBody::Done | EventBody::Failed { .. })
}

pub(crate) fn ask(host: &mut Host, job: u64, body: CommandBody) -> Vec<EventBody> {
    send(host, job, body);
    to_the_end(host, job)
}

pub(crate) fn failure(events: &[EventBody]) -> lathe_protocol::ErrorInfo {
    match events.last() {
        Some(EventBody::Failed { error }) => error.clone(),
        other => panic!("expected a failure, got {other:?}"),
    }
}

pub(crate) fn step(step: usize) -> EventBody {
    EventBody::Step(StepMetrics {
        step,
        loss: 2.0,
        grad_norm: 1.0,
        lr: 1e-4,
        tokens_per_second: 100.0,
        tokens: 64,
        loss_tokens: 32,
        epoch: 0.5,
        memory_bytes: None,
        preference: None,
    })
}

pub(crate) fn training_started() -> EventBody {
    EventBody::TrainingStarted {
        total_steps: 2,
        first_step: 0,
        trainable_parameters: 1,
        total_parameters: 2,
        rows: 3,
        tokens_per_epoch: 4,
    }
}

pub(crate) fn training_done(completed: bool) -> EventBody {
    EventBody::TrainingDone(TrainSummary {
        steps: 2,
        completed,
        final_loss: Some(2.0),
        eval_loss: None,
        kept_step: 2,
        seconds: 1.0,
        out_dir: "/o".into(),
    })
}
