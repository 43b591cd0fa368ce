//! `lathe serve-ui`: the window for browsers.

use std::{process::ExitCode, sync::Arc, thread};

use lathe_host::Viewers;
use lathe_protocol::ErrorInfo;
use lathe_serve::{Link, Options, Server, TlsFiles};
use serde_json::json;

use crate::{
    cli::{Global, ServeUi},
    note,
    output::Output,
    session,
};

/// Serves until Ctrl-C; then runs checkpoint and stop.
pub fn run(global: &Global, args: ServeUi) -> Result<ExitCode, ErrorInfo> {
    let ServeUi { listen, tls_cert, tls_key } = args;
    // 1. The page first: without it there is nothing to start.
    let mut host = session::host_options(global)?;
    let page = lathe_serve::find_folder(&host.worker_exe)?;
    host.runs_queue = true;
    let viewers = Arc::new(Viewers::start(host)?);
    let is_json = global.json;
    let tls = tls_cert.zip(tls_key).map(|(certificate, key)| TlsFiles { certificate, key });
    let on_link = Box::new(move |link| {
        if !is_json {
            note!("Somebody came in. For the next one:");
        }
        tell(is_json, &link);
    });
    let server = Server::start(viewers.clone(), Options { listen, page, tls, on_link })?;

    // 2. Until it is told to stop.
    let this = thread::current();
    session::on_interrupt(move || this.unpark());
    tell(is_json, &server.link());
    note!("A link works once, then another is printed. Ctrl-C ends Lathe; what trains is saved first");
    while session::interrupts() == 0 {
        thread::park();
    }

    // 3. Nobody comes in any more, and the runs end their step.
    drop(server);
    if viewers.active_runs() > 0 {
        note!("Stopping after this step and saving");
    }
    drop(viewers);
    Ok(ExitCode::SUCCESS)
}

fn tell(is_json: bool, link: &Link) {
    // Lathe goes on without a reader.
    let out = Output { json: is_json, ends_with_reader: false };
    let Link { url, token, fingerprint } = link;
    if is_json {
        return out.object(&json!({"kind": "link", "url": url, "token": token, "fingerprint": fingerprint}));
    }
    out.line(&format!("Lathe's window: {url}"));
    if let Some(fingerprint) = fingerprint {
        let pairs: Vec<&str> =
            fingerprint.as_bytes().chunks(2).filter_map(|pair| std::str::from_utf8(pair).ok()).collect();
        out.line(&format!("its certificate's SHA-256: {}", pairs.join(":").to_uppercase()));
    }
}
