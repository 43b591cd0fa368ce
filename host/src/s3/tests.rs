#![cfg(unix)]

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
    time::Duration,
};

use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto::Builder,
};
use lathe_protocol::{CommandBody, ErrorCode, EventBody};
use s3s::{auth::SimpleAuth, service::S3ServiceBuilder};
use s3s_fs::FileSystem;

use super::*;
use crate::{
    Host, HostOptions,
    adapters::tests::write_safetensors,
    testing::{Bench, ask, failure},
};

const KEY: &str = "AKLATHE";
const SECRET: &str = "lathe/secret+key=";

/// A real S3 server on a folder, which checks signatures. Returns its address.
fn serve(root: &Path) -> String {
    let mut builder = S3ServiceBuilder::new(FileSystem::new(root).unwrap());
    builder.set_auth(SimpleAuth::from_single(KEY, SECRET));
    let service = builder.build();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    let run = async move || {
        let listener = tokio::net::TcpListener::from_std(listener).unwrap();
        let http = Builder::new(TokioExecutor::new());
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let connection = http.serve_connection(TokioIo::new(socket), service.clone()).into_owned();
            tokio::spawn(async move { drop(connection.await) });
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    thread::Builder::new().name("s3".into()).spawn(move || runtime.block_on(run())).unwrap();
    format!("http://{address}")
}

/// Passes connections on to a server, and cuts them.
struct Cutter {
    endpoint: String,
    passed: Arc<Passed>,
}

/// Bytes of answers.
struct Passed {
    /// That one connection may bring.
    most: AtomicU64,
    /// That all together may bring.
    most_in_all: AtomicU64,
    count: AtomicU64,
}

impl Cutter {
    fn before(server: &str) -> Self {
        let server = server.trim_start_matches("http://").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let all = || AtomicU64::new(u64::MAX);
        let passed = Arc::new(Passed { most: all(), most_in_all: all(), count: AtomicU64::new(0) });
        let cutter = Self { endpoint, passed: passed.clone() };
        let accept = move || {
            for client in listener.incoming().flatten() {
                let upstream = TcpStream::connect(&server).unwrap();
                let (mut from, mut to) = (client.try_clone().unwrap(), upstream.try_clone().unwrap());
                let up = move || drop(std::io::copy(&mut from, &mut to));
                thread::Builder::new().name("up".into()).spawn(up).unwrap();
                let passed = passed.clone();
                let down = move || passed.pass(upstream, client);
                thread::Builder::new().name("down".into()).spawn(down).unwrap();
            }
        };
        thread::Builder::new().name("cutter".into()).spawn(accept).unwrap();
        cutter
    }
}

impl Passed {
    fn pass(&self, mut from: TcpStream, mut to: TcpStream) {
        let (mut piece, mut sent) = ([0; 16 << 10], 0);
        while let Ok(count @ 1..) = from.read(&mut piece) {
            let left = self.most_in_all.load(Ordering::SeqCst).saturating_sub(self.count());
            let room = self.most.load(Ordering::SeqCst).saturating_sub(sent).min(left).min(count as u64);
            if to.write_all(&piece[..room as usize]).is_err() {
                break;
            }
            sent += room;
            self.count.fetch_add(room, Ordering::SeqCst);
            if room < count as u64 {
                break;
            }
        }
        for stream in [from, to] {
            drop(stream.shutdown(std::net::Shutdown::Both));
        }
    }

    fn count(&self) -> u64 {
        self.count.load(Ordering::SeqCst)
    }

    /// Counts anew.
    fn permit(&self, most: u64, most_in_all: u64) {
        self.count.store(0, Ordering::SeqCst);
        self.most.store(most, Ordering::SeqCst);
        self.most_in_all.store(most_in_all, Ordering::SeqCst);
    }
}

/// A folder that a server serves, with a small model at `models/team a/tiny`.
fn bucket(bench: &Bench) -> String {
    let folder = bench.path("s3/models/team a/tiny");
    fs::create_dir_all(&folder).unwrap();
    fs::write(
        folder.join("config.json"),
        r#"{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}"#,
    )
    .unwrap();
    fs::write(folder.join("tokenizer.json"), "{}").unwrap();
    fs::write(folder.join("optimizer.pt"), "junk").unwrap();
    write_safetensors(&folder.join("model.safetensors"), &[("a", &[512, 1024])]);
    serve(&bench.path("s3"))
}

const NAME: &str = "s3://models/team a/tiny";

fn options(bench: &Bench, endpoint: &str, more: &[(&str, &str)]) -> HostOptions {
    let mut options = bench.shell_options("exit 1");
    options.net.first_pause = Duration::from_millis(5);
    let usual =
        [("AWS_ACCESS_KEY_ID", KEY), ("AWS_SECRET_ACCESS_KEY", SECRET), ("AWS_ENDPOINT_URL", endpoint)];
    let variables = usual.iter().chain(more).filter(|(_, value)| !value.is_empty());
    options.s3 = S3Options {
        variables: variables.map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        home: None,
    };
    for (name, _) in more.iter().filter(|(_, value)| value.is_empty()) {
        options.s3.variables.remove(*name);
    }
    options
}

fn pull(options: HostOptions, name: &str) -> Vec<EventBody> {
    ask(&mut Host::start(options).unwrap(), 1, CommandBody::ModelsPull { model: name.into(), revision: None })
}

fn weights(bench: &Bench) -> Vec<u8> {
    let folder = models::resolve(&bench.paths, NAME).unwrap().path;
    fs::read(folder.join("model.safetensors")).unwrap()
}

fn source(bench: &Bench) -> PathBuf {
    bench.path("s3/models/team a/tiny/model.safetensors")
}

#[test]
fn a_model_of_a_bucket_is_shown_pulled_listed_verified_and_removed() {
    let bench = Bench::new();
    let endpoint = bucket(&bench);
    let mut host = Host::start(options(&bench, &endpoint, &[])).unwrap();
    let events = ask(&mut host, 1, CommandBody::HubShow { model: NAME.into(), revision: None });
    let EventBody::HubDetails(details) = &events[0] else { panic!("{events:?}") };
    assert_eq!((details.parameters, details.problem.as_deref()), (Some(512 * 1024), None));
    let wanted: Vec<&str> =
        details.files.iter().filter(|file| file.is_wanted).map(|file| file.name.as_str()).collect();
    assert_eq!(wanted, ["config.json", "model.safetensors", "tokenizer.json"]);
    assert_eq!(details.missing_bytes, details.size_bytes);
    assert!(
        models::resolve(&bench.paths, NAME)
            .unwrap_err()
            .hint
            .unwrap()
            .contains("models pull s3://models/team a/tiny")
    );

    let events = pull(options(&bench, &endpoint, &[]), NAME);
    assert_eq!(events.last(), Some(&EventBody::Done), "{events:?}");
    assert_eq!(weights(&bench), fs::read(source(&bench)).unwrap());
    let listed = models::list(&bench.paths).unwrap();
    let entry = listed.iter().find(|model| model.name == NAME).unwrap();
    assert_eq!((entry.architecture.as_deref(), entry.problem.as_deref()), (Some("LlamaForCausalLM"), None));

    let verify = |host: &mut Host, job: u64| {
        let events = ask(host, job, CommandBody::ModelsVerify { model: NAME.into() });
        let found = events.iter().find_map(|event| match event {
            EventBody::ModelProblems { problems, .. } => Some(problems.clone()),
            _ => None,
        });
        found.unwrap_or_else(|| panic!("{events:?}"))
    };
    assert_eq!(verify(&mut host, 2), []);
    let blob =
        models::resolve(&bench.paths, NAME).unwrap().path.join("model.safetensors").canonicalize().unwrap();
    let mut bytes = fs::read(&blob).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&blob, bytes).unwrap();
    let problems = verify(&mut host, 3);
    assert!(problems.len() == 1 && problems[0].problem.contains("damaged"), "{problems:?}");

    let used = models::hold(&bench.paths, &blob).unwrap();
    let remove = CommandBody::ModelsRemove { model: NAME.into() };
    assert_eq!(failure(&ask(&mut host, 4, remove.clone())).code, ErrorCode::Busy);
    drop(used);
    let events = ask(&mut host, 5, remove.clone());
    assert!(
        matches!(&events[0], EventBody::Removed { freed_bytes, .. } if *freed_bytes > 2 << 20),
        "{events:?}"
    );
    assert!(!models::list(&bench.paths).unwrap().iter().any(|model| model.name == NAME));
    assert!(files::names_in(&bench.paths.s3_models()).unwrap().is_empty());
    assert_eq!(failure(&ask(&mut host, 6, remove)).code, ErrorCode::NotFound);
}

#[test]
fn a_cut_download_goes_on_where_it_was() {
    let bench = Bench::new();
    let cutter = Cutter::before(&bucket(&bench));
    cutter.passed.permit(600 << 10, u64::MAX);
    let events = pull(options(&bench, &cutter.endpoint, &[]), NAME);
    assert_eq!(events.last(), Some(&EventBody::Done), "{events:?}");
    let whole = fs::read(source(&bench)).unwrap();
    assert_eq!(weights(&bench), whole);
    let passed = cutter.passed.count();
    // Once, its header before that, and what was on its way at each cut.
    assert!(passed < whole.len() as u64 + (600 << 10), "{passed} of {}", whole.len());

    // Cut for good: what came waits for the next try.
    ask(&mut bench.shell_host("exit 1"), 1, CommandBody::ModelsRemove { model: NAME.into() });
    let pulled = pull_until_cut(&bench, &cutter);
    assert!(pulled > 100 << 10, "{pulled}");
    cutter.passed.permit(u64::MAX, u64::MAX);
    let events = pull(options(&bench, &cutter.endpoint, &[]), NAME);
    assert_eq!(events.last(), Some(&EventBody::Done), "{events:?}");
    assert_eq!(weights(&bench), whole);
    let passed = cutter.passed.count();
    assert!(passed < whole.len() as u64 - pulled + (200 << 10), "{passed} after {pulled}");
}

/// Lets through little enough that the download fails; the bytes that are here then.
fn pull_until_cut(bench: &Bench, cutter: &Cutter) -> u64 {
    cutter.passed.permit(u64::MAX, 600 << 10);
    let error = failure(&pull(options(bench, &cutter.endpoint, &[]), NAME));
    assert_eq!(error.code, ErrorCode::Network, "{error}");
    let blobs = Named::parse(NAME).unwrap().repo(&bench.paths).join("blobs");
    let names = files::names_in(&blobs).unwrap();
    let partial = names.iter().find(|name| name.ends_with(".incomplete")).unwrap();
    fs::metadata(blobs.join(partial)).unwrap().len()
}

#[test]
fn an_object_that_changed_is_fetched_anew() {
    let bench = Bench::new();
    let cutter = Cutter::before(&bucket(&bench));
    assert!(pull_until_cut(&bench, &cutter) > 0);
    cutter.passed.permit(u64::MAX, u64::MAX);
    let mut changed = fs::read(source(&bench)).unwrap();
    changed.iter_mut().rev().take(4096).for_each(|byte| *byte = 7);
    fs::write(source(&bench), &changed).unwrap();
    let events = pull(options(&bench, &cutter.endpoint, &[]), NAME);
    assert_eq!(events.last(), Some(&EventBody::Done), "{events:?}");
    assert_eq!(weights(&bench), changed);

    // What is here already is not fetched again, and what it was before is forgotten.
    fs::write(bench.path("s3/models/team a/tiny/tokenizer.json"), "{\"version\": \"1.0\"}").unwrap();
    cutter.passed.permit(u64::MAX, u64::MAX);
    assert_eq!(pull(options(&bench, &cutter.endpoint, &[]), NAME).last(), Some(&EventBody::Done));
    let repo = Named::parse(NAME).unwrap().repo(&bench.paths);
    assert_eq!(files::names_in(&repo.join("snapshots")).unwrap().len(), 1);
    assert_eq!(files::names_in(&repo.join("blobs")).unwrap().len(), 3);
    assert!(cutter.passed.count() < 200 << 10);
}

#[test]
fn what_is_wrong_with_a_bucket_is_said_in_a_sentence() {
    let bench = Bench::new();
    let endpoint = bucket(&bench);
    let check = |name: &str, more: &[(&str, &str)], code: ErrorCode, message: &str, hint: &str| {
        let error = failure(&pull(options(&bench, &endpoint, more), name));
        assert_eq!(error.code, code, "{error:?}");
        assert!(error.message.contains(message), "{error:?}");
        assert!(error.hint.as_deref().unwrap_or_default().contains(hint), "{error:?}");
    };
    check(
        "s3://nowhere/x",
        &[],
        ErrorCode::NotFound,
        "No bucket named \"nowhere\" at 127.0.0.1",
        "AWS_ENDPOINT_URL",
    );
    check("s3://models/none", &[], ErrorCode::NotFound, "Nothing lies at s3://models/none", "config.json");
    check(
        "s3://models/team a",
        &[],
        ErrorCode::Model,
        "neither safetensors nor GGUF",
        "nothing was downloaded",
    );
    check(
        NAME,
        &[("AWS_SECRET_ACCESS_KEY", "wrong")],
        ErrorCode::Access,
        "does not accept the secret key",
        "AWS_SECRET_ACCESS_KEY",
    );
    check(NAME, &[("AWS_ACCESS_KEY_ID", "wrong")], ErrorCode::Access, "127.0.0.1 does not", "");
    let nobody = [("AWS_ACCESS_KEY_ID", ""), ("AWS_SECRET_ACCESS_KEY", "")];
    check(NAME, &nobody, ErrorCode::Access, "No credentials for S3", "AWS_SKIP_SIGNATURE");
    let anonymous = [nobody[0], nobody[1], ("AWS_SKIP_SIGNATURE", "true")];
    check(
        NAME,
        &anonymous,
        ErrorCode::Access,
        "does not permit to read s3://models/team a/tiny",
        "s3:ListBucket",
    );
    check(
        NAME,
        &[("AWS_ENDPOINT_URL", "http://127.0.0.1:9")],
        ErrorCode::Network,
        "127.0.0.1 cannot be reached",
        "",
    );
    check(
        NAME,
        &[("AWS_ENDPOINT_URL", "http://s3.example")],
        ErrorCode::Usage,
        "without TLS",
        "AWS_ALLOW_HTTP",
    );
    check(NAME, &[("AWS_ENDPOINT_URL", "nonsense")], ErrorCode::Usage, "Not the address", "");
    check("s3://x", &[], ErrorCode::Usage, "Not a model in an S3 bucket", "s3://bucket/prefix");
    assert!(files::names_in(&bench.paths.s3_models()).unwrap().is_empty(), "nothing was made");
}

/// A server that gives the answer `to` a request's first line.
fn answer(to: impl Fn(&str) -> String + Send + 'static) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let serve = move || {
        for mut stream in listener.incoming().flatten() {
            let mut lines =
                BufReader::new(stream.try_clone().unwrap()).lines().map_while(std::result::Result::ok);
            let Some(first) = lines.next() else { continue };
            lines.find(String::is_empty);
            drop(stream.write_all(to(&first).as_bytes()));
        }
    };
    thread::Builder::new().name("answer".into()).spawn(serve).unwrap();
    endpoint
}

fn xml(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len())
}

#[test]
fn a_bucket_of_another_region_is_told_as_amazon_tells_it() {
    let bench = Bench::new();
    let malformed = "<Error><Code>AuthorizationHeaderMalformed</Code><Message>The authorization header is malformed; the \
                     region 'us-east-1' is wrong; expecting 'eu-central-1'</Message><Region>eu-central-1</Region></Error>";
    let moved = "<Error><Code>PermanentRedirect</Code><Message>The bucket you are attempting to access must be addressed \
                 using the specified endpoint.</Message><Bucket>models</Bucket></Error>";
    for (status, body, hint) in [
        ("400 Bad Request", malformed, "set AWS_REGION=eu-central-1"),
        ("301 Moved Permanently", moved, "set AWS_REGION to the bucket's"),
    ] {
        let endpoint = answer(move |_| xml(status, body));
        let error = failure(&pull(options(&bench, &endpoint, &[]), NAME));
        assert_eq!(error.message, "The bucket \"models\" is of another region than us-east-1");
        assert_eq!(error.hint.as_deref(), Some(hint));
    }
}

#[test]
fn an_object_that_is_not_what_was_listed_is_told() {
    let bench = Bench::new();
    let object = |name: &str| {
        format!(
            "<Contents><Key>models/{name}</Key><LastModified>2026-01-01T00:00:00.000Z</LastModified>\
             <ETag>&quot;1&quot;</ETag><Size>100</Size></Contents>"
        )
    };
    let listed = format!(
        "<ListBucketResult><IsTruncated>false</IsTruncated>{}{}</ListBucketResult>",
        object("config.json"),
        object("model.safetensors")
    );
    let endpoint = answer(move |request| {
        if request.contains("list-type=2") {
            xml("200 OK", &listed)
        } else {
            xml("412 Precondition Failed", "")
        }
    });
    let error = failure(&pull(options(&bench, &endpoint, &[]), "s3://models/models"));
    assert_eq!(error.message, "s3://models/models changed while it was fetched");
    assert_eq!(error.hint.as_deref(), Some("pull it again"));
}

#[test]
fn a_broken_model_is_refused_before_it_is_fetched() {
    let bench = Bench::new();
    let endpoint = bucket(&bench);
    let whole = fs::read(source(&bench)).unwrap();
    fs::write(source(&bench), &whole[..whole.len() - 100]).unwrap();
    let error = failure(&pull(options(&bench, &endpoint, &[]), NAME));
    assert!(error.message.contains("model.safetensors is truncated"), "{error}");
    assert!(files::names_in(&bench.paths.s3_models()).unwrap().is_empty());
}
