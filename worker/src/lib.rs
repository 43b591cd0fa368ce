//! The engine behind stdin and stdout: the only process of Lathe's that may die.
//!
//! stdout: one handshake line, then frames only. stdin: the job, then requests; its end means stop. stderr: logs.

mod jobs;
mod memory;

use std::{
    io::{Write as _, stdin, stdout},
    process::ExitCode,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, sync_channel},
    },
    thread,
    time::{Duration, Instant},
};

use lathe_engine::{device, foreign::panic_is_expected};
use lathe_protocol::{ErrorInfo, EventBody, Job, Request, handshake, read_frame, write_frame};

/// How long a job may take to notice that it should stop, after which the process ends itself: whoever started it is
/// gone, and nobody else would end it.
const STOP_GRACE: Duration = Duration::from_mins(2);

/// What a running job hears and says.
pub(crate) struct Channel {
    /// Set once the other side wants the job to end.
    pub stop: Arc<AtomicBool>,
    /// Set while the reply being written should end.
    pub cancel_reply: Arc<AtomicBool>,
    /// Replies asked for, in order.
    pub requests: Receiver<Request>,
    started: Instant,
}

impl Channel {
    /// Seconds since the worker started.
    pub fn clock(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }
}

/// Writes one event. A broken pipe means that the other side is gone: the job is told to stop.
pub(crate) struct Output {
    stdout: Mutex<std::io::Stdout>,
    stop: Arc<AtomicBool>,
}

impl Output {
    pub fn emit(&self, event: &EventBody) {
        let mut stdout = self.stdout.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if write_frame(&mut *stdout, event).is_err() {
            self.stop.store(true, Ordering::Relaxed);
        }
    }
}

/// Runs one job to its end. The exit code is for people; the last frame, `Done` or `Failed`, is for the host.
pub fn main() -> ExitCode {
    // A panic is a bug, and the state behind it is unknown: end the process at once, after saying where it was.
    let default_hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if panic_is_expected() {
            return;
        }
        default_hook(info);
        std::process::abort();
    }));
    let started = Instant::now();
    let greeted = stdout().write_all(handshake().as_bytes()).and_then(|()| stdout().flush());
    let job = greeted.and_then(|()| read_frame::<Job>(&mut stdin().lock()));
    let job = match job {
        Ok(Some(job)) => job,
        Ok(None) => return ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("worker: cannot read the job: {error}");
            return ExitCode::FAILURE;
        }
    };
    let stop = Arc::new(AtomicBool::new(false));
    let cancel_reply = Arc::new(AtomicBool::new(false));
    let (sender, requests) = sync_channel(16);
    let listener = {
        let (stop, cancel_reply) = (stop.clone(), cancel_reply.clone());
        thread::Builder::new().name("requests".into()).spawn(move || {
            loop {
                match read_frame::<Request>(&mut stdin().lock()) {
                    Ok(Some(Request::CancelReply)) => cancel_reply.store(true, Ordering::Relaxed),
                    Ok(Some(request @ Request::Reply { .. })) => {
                        // An earlier cancel was for the reply before.
                        cancel_reply.store(false, Ordering::Relaxed);
                        if sender.send(request).is_err() {
                            break;
                        }
                    }
                    Ok(Some(Request::Stop) | None) => break,
                    Err(error) => {
                        eprintln!("worker: cannot read a request: {error}");
                        break;
                    }
                }
            }
            drop(sender);
            cancel_reply.store(true, Ordering::Relaxed);
            stop.store(true, Ordering::Relaxed);
            thread::sleep(STOP_GRACE);
            eprintln!("worker: did not stop within {} s", STOP_GRACE.as_secs());
            std::process::exit(3);
        })
    };
    if let Err(error) = listener {
        eprintln!("worker: cannot start a thread: {error}");
        return ExitCode::FAILURE;
    }
    let channel = Channel { stop: stop.clone(), cancel_reply, requests, started };
    let output = Arc::new(Output { stdout: Mutex::new(stdout()), stop });
    if let Ok(card) = std::env::var("LATHE_CARD") {
        device::name_only_card(card);
    }
    let last_words = output.clone();
    device::on_fatal(move |error| {
        last_words.emit(&EventBody::Failed { error: error.clone() });
        // Nothing is dropped and no handler runs: the card's driver may hang in either.
        std::process::abort()
    });
    match jobs::run(job, &channel, &output) {
        Ok(()) => {
            output.emit(&EventBody::Done);
            ExitCode::SUCCESS
        }
        Err(error) => {
            output.emit(&EventBody::Failed { error: ErrorInfo::from(error) });
            ExitCode::FAILURE
        }
    }
}
