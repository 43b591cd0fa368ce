//! A server whose runs are shell scripts, and a line that can be cut.

mod proxy;

use std::{
    fs,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::PathBuf,
    sync::{
        Arc, Mutex,
        mpsc::{Receiver, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use lathe_host::{HostOptions, Paths, Viewers};
use lathe_protocol::{
    Command, CommandBody, EngineLink as _, ErrorInfo, Event, EventBody, JobId, Method, RunConfig,
    StepMetrics, TrainRequest, TrainStart, TrainSummary, handshake, write_frame,
};
use lathe_serve::{Link, Options, Remote, Server};

pub use proxy::Proxy;

/// Of a run.
pub const STEPS: usize = 60;

pub struct Bench {
    dir: tempfile::TempDir,
    pub viewers: Arc<Viewers>,
    pub links: Mutex<Receiver<Link>>,
    on_link: std::sync::mpsc::SyncSender<Link>,
}

impl Bench {
    pub fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::create_dir_all(path("model")).unwrap();
        fs::write(path("model/config.json"), r#"{"model_type": "llama"}"#).unwrap();
        fs::write(path("pirate.jsonl"), "{}\n").unwrap();
        fs::create_dir_all(path("page")).unwrap();
        for name in [
            "index.html",
            "lathe.css",
            "start.js",
            "lathe.js",
            "lathe_bg.wasm",
            "lathe_bg.wasm.gz",
            "icon.png",
        ] {
            fs::write(path("page").join(name), name).unwrap();
        }
        let frames = |name: &str, greeting: &str, events: &[EventBody]| {
            let mut bytes = greeting.as_bytes().to_vec();
            for event in events {
                write_frame(&mut bytes, event).unwrap();
            }
            fs::write(path(name), bytes).unwrap();
        };
        frames("first", &handshake(), &[started()]);
        for number in 1..=STEPS {
            frames(&format!("step{number}"), "", &[step(number)]);
        }
        frames("end", "", &[done(), EventBody::Done]);
        let script = format!(
            "cd {}; cat first; for i in $(seq {STEPS}); do cat step$i; sleep 0.05; done; cat end",
            dir.path().display()
        );
        let paths = Paths { data_dir: path("data"), hf_cache: path("hub"), settings: path("settings.toml") };
        let mut options = HostOptions::new(paths, "/bin/sh".into(), vec!["-c".into(), script]);
        (options.nvml, options.cuda_visible) = (Some("/none".into()), None);
        let viewers = Arc::new(Viewers::start(options).unwrap());
        let (on_link, links) = sync_channel(16);
        Self { dir, viewers, links: Mutex::new(links), on_link }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn serve(&self, listen: &str) -> Server {
        self.try_serve(listen).unwrap()
    }

    pub fn try_serve(&self, listen: &str) -> Result<Server, ErrorInfo> {
        let on_link = self.on_link.clone();
        let options = Options {
            listen: listen.parse().unwrap(),
            page: self.path("page"),
            tls: None,
            on_link: Box::new(move |link| on_link.send(link).unwrap()),
        };
        Server::start(self.viewers.clone(), options)
    }

    pub fn train(&self, start: TrainStart) -> CommandBody {
        CommandBody::Train(Box::new(TrainRequest {
            model: self.path("model").display().to_string(),
            data: self.path("pirate.jsonl").display().to_string(),
            eval_data: None,
            // Its result is no adapter, so that the worker need not write one.
            config: RunConfig { method: Method::Full, ..RunConfig::default() },
            out_dir: None,
            name: None,
            init_adapter: None,
            force: false,
            resume: false,
            device: "cpu".into(),
            start,
        }))
    }
}

fn started() -> EventBody {
    EventBody::TrainingStarted {
        total_steps: STEPS,
        first_step: 0,
        trainable_parameters: 1,
        total_parameters: 2,
        rows: 3,
        tokens_per_epoch: 4,
    }
}

fn step(step: usize) -> EventBody {
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

fn done() -> EventBody {
    EventBody::TrainingDone(TrainSummary {
        steps: STEPS,
        completed: true,
        final_loss: Some(2.0),
        eval_loss: None,
        kept_step: STEPS,
        seconds: 1.0,
        out_dir: "/o".into(),
    })
}

pub fn quiet() -> Box<dyn Fn() + Send + Sync> {
    Box::new(|| {})
}

pub fn say(remote: &mut Remote, job: u64, body: CommandBody) {
    remote.send(Command { job: JobId(job), body });
}

/// What comes until `enough`, which may be followed by more of the same batch.
pub fn hear(remote: &mut Remote, mut enough: impl FnMut(&Event) -> bool) -> Vec<Event> {
    let (mut events, due) = (Vec::new(), Instant::now() + Duration::from_mins(1));
    loop {
        let more = remote.drain();
        let is_enough = more.iter().any(&mut enough);
        events.extend(more);
        if is_enough {
            return events;
        }
        assert!(Instant::now() < due, "not enough: {events:?}");
        thread::sleep(Duration::from_millis(10));
    }
}

pub fn ask(remote: &mut Remote, job: u64, body: CommandBody) -> Vec<EventBody> {
    say(remote, job, body);
    let events = hear(remote, |event| event.job.0 == job && event.body == EventBody::Done);
    events.into_iter().filter(|event| event.job.0 == job).map(|event| event.body).collect()
}

pub fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) {
    let due = Instant::now() + Duration::from_mins(1);
    while !is_so() {
        assert!(Instant::now() < due, "waited in vain: {what}");
        thread::sleep(Duration::from_millis(5));
    }
}

/// Asks for something at a port and gives what comes back; the request says that nothing follows it.
pub fn exchange(address: &str, text: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(Duration::from_mins(1))).unwrap();
    stream.write_all(text.as_bytes()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}
