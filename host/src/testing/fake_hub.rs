//! A server that speaks the Hub's API as far as downloads go, and misbehaves on demand.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    io::{self, BufRead as _, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Barrier, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
};

use serde_json::{Value, json};
use sha1::Sha1;
use sha2::{Digest as _, Sha256};

pub const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// Entries of a tree that are told at a time.
const PAGE: usize = 5;

/// A model that the server has.
#[derive(Clone)]
pub struct Repo {
    pub files: BTreeMap<String, Vec<u8>>,
    /// What else `/api/models/…` tells.
    pub info: Value,
    /// The files are for this token only.
    pub gated_for: Option<String>,
    /// Nothing is told without this token.
    pub private_for: Option<String>,
    /// What the tree says instead of the truth, by file.
    pub claimed_sizes: BTreeMap<String, u64>,
}

impl Repo {
    pub fn new(files: &[(&str, Vec<u8>)]) -> Self {
        let files = files.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.clone())).collect();
        Self { files, info: json!({}), gated_for: None, private_for: None, claimed_sizes: BTreeMap::new() }
    }
}

/// As the Hub has it: large and binary files are LFS.
pub fn is_lfs(name: &str) -> bool {
    [".safetensors", ".gguf", ".bin", "tokenizer.json"].iter().any(|end| name.ends_with(end))
}

pub fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

pub fn git_sha1(bytes: &[u8]) -> String {
    hex(&Sha1::new().chain_update(format!("blob {}\0", bytes.len())).chain_update(bytes).finalize())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

/// What goes wrong at a request.
#[derive(Clone, Debug)]
pub enum Fault {
    /// Status, headers.
    Answer(u16, Vec<(String, String)>),
    /// The connection ends after so many bytes of the body.
    CutAfter(usize),
    /// After so many bytes of the body nothing more comes.
    StallAfter(usize),
    /// The bytes are others.
    WrongBytes,
    /// Ranges are passed over.
    NoRanges,
    /// The body waits until others are asked for too.
    Meet(Arc<Barrier>),
}

struct Rule {
    path_part: String,
    times: usize,
    fault: Fault,
}

#[derive(Clone, Debug, Default)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub host: String,
    pub range: Option<String>,
    pub authorization: Option<String>,
    /// Whether it came as to a proxy.
    pub is_proxied: bool,
    /// Bytes of the body that were sent.
    pub sent: u64,
}

struct State {
    repos: BTreeMap<String, Repo>,
    rules: Vec<Rule>,
    log: Vec<Request>,
}

#[derive(Clone)]
pub struct FakeHub {
    pub address: SocketAddr,
    pub scheme: &'static str,
    state: Arc<Mutex<State>>,
    is_closed: Arc<AtomicBool>,
    /// Bytes of bodies of files.
    pub served: Arc<AtomicU64>,
}

pub type Wrap = Arc<dyn Fn(TcpStream) -> io::Result<Box<dyn ReadWrite>> + Send + Sync>;

pub trait ReadWrite: Read + Write {}
impl<T: Read + Write> ReadWrite for T {}

impl FakeHub {
    pub fn start(repos: &[(&str, Repo)]) -> Self {
        Self::start_with("http", Arc::new(|stream| Ok(Box::new(stream))), repos)
    }

    pub fn start_with(scheme: &'static str, wrap: Wrap, repos: &[(&str, Repo)]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let repos = repos.iter().map(|(id, repo)| ((*id).to_owned(), repo.clone())).collect();
        let hub = Self {
            address: listener.local_addr().unwrap(),
            scheme,
            state: Arc::new(Mutex::new(State { repos, rules: Vec::new(), log: Vec::new() })),
            is_closed: Arc::new(AtomicBool::new(false)),
            served: Arc::default(),
        };
        let server = hub.clone();
        thread::Builder::new()
            .name("hub".into())
            .spawn(move || {
                for stream in listener.incoming().flatten() {
                    if server.is_closed.load(Ordering::SeqCst) {
                        return;
                    }
                    let (server, wrap) = (server.clone(), wrap.clone());
                    let answer = move || wrap(stream).and_then(|mut stream| server.answer(&mut *stream));
                    // A client that goes away is no failure.
                    thread::Builder::new().name("hub-request".into()).spawn(|| drop(answer())).unwrap();
                }
            })
            .unwrap();
        hub
    }

    /// From now on nobody listens.
    pub fn close(&self) {
        self.is_closed.store(true, Ordering::SeqCst);
        drop(TcpStream::connect(self.address));
    }

    pub fn endpoint(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// The next `times` requests whose path has `path_part` go wrong.
    pub fn fail(&self, path_part: &str, times: usize, fault: Fault) {
        self.state().rules.push(Rule { path_part: path_part.into(), times, fault });
    }

    pub fn heal(&self) {
        self.state().rules.clear();
    }

    pub fn requests(&self, path_part: &str) -> Vec<Request> {
        self.state().log.iter().filter(|request| request.path.contains(path_part)).cloned().collect()
    }

    fn answer(&self, stream: &mut dyn ReadWrite) -> io::Result<()> {
        let Ok(request) = read_request(stream) else { return head(stream, 400, &[], 0) };
        let fault = {
            let mut state = self.state();
            let rule =
                state.rules.iter_mut().find(|rule| rule.times > 0 && request.path.contains(&rule.path_part));
            rule.map(|rule| {
                rule.times -= 1;
                rule.fault.clone()
            })
        };
        let index = {
            let mut state = self.state();
            state.log.push(request.clone());
            state.log.len() - 1
        };
        if let Some(Fault::Answer(status, headers)) = &fault {
            let headers: Vec<(&str, String)> =
                headers.iter().map(|(name, value)| (name.as_str(), value.clone())).collect();
            return head(stream, *status, &headers, 0);
        }
        let path = request.path.split('?').next().unwrap_or_default();
        let token = request.authorization.as_deref().and_then(|value| value.strip_prefix("Bearer "));
        if let Some(api) = path.strip_prefix("/api/models") {
            return match self.api(api.trim_start_matches('/'), &request.path, token) {
                Ok(body) => {
                    let mut headers = vec![("Content-Type", "application/json".to_owned())];
                    let mut body = body;
                    if let (true, Value::Array(entries)) = (path.contains("/tree/"), &mut body) {
                        let from = query(&request.path, "cursor").map_or(0, |from| from.parse().unwrap());
                        if from + PAGE < entries.len() {
                            let next =
                                format!("{}{path}?recursive=true&cursor={}", self.endpoint(), from + PAGE);
                            headers.push(("Link", format!("<{next}>; rel=\"next\"")));
                        }
                        *entries = entries.iter().skip(from).take(PAGE).cloned().collect();
                    }
                    let body = body.to_string();
                    head(stream, 200, &headers, body.len())?;
                    stream.write_all(body.as_bytes())
                }
                Err((status, code)) => head(stream, status, &[("X-Error-Code", code.into())], 0),
            };
        }
        if let Some(sha) = path.strip_prefix("/cdn/") {
            let bytes = self.by_sha(sha);
            return match bytes {
                Some(bytes) => self.body(stream, index, &request, fault.as_ref(), &bytes, &[]),
                None => head(stream, 404, &[], 0),
            };
        }
        let parts: Vec<&str> = path.trim_start_matches('/').splitn(5, '/').collect();
        let [owner, name, "resolve", revision, file] = parts.as_slice() else {
            return head(stream, 404, &[], 0);
        };
        let repo = self.state().repos.get(&format!("{owner}/{name}")).cloned();
        let Some(repo) = repo else {
            return head(stream, 404, &[("X-Error-Code", "RepoNotFound".into())], 0);
        };
        if !["main", COMMIT].contains(revision) {
            return head(stream, 404, &[("X-Error-Code", "RevisionNotFound".into())], 0);
        }
        if repo.gated_for.as_deref().is_some_and(|wanted| token != Some(wanted)) {
            let status = if token.is_some() { 403 } else { 401 };
            return head(stream, status, &[("X-Error-Code", "GatedRepo".into())], 0);
        }
        let Some(bytes) = repo.files.get(*file) else {
            return head(stream, 404, &[("X-Error-Code", "EntryNotFound".into())], 0);
        };
        let commit = ("X-Repo-Commit", COMMIT.to_owned());
        if !is_lfs(file) {
            let headers = [commit, ("ETag", format!("\"{}\"", git_sha1(bytes)))];
            return self.body(stream, index, &request, fault.as_ref(), bytes, &headers);
        }
        let sha = sha256(bytes);
        // Another name for the same server, so a token must not follow.
        let location = format!("{}://localhost:{}/cdn/{sha}", self.scheme, self.address.port());
        head(
            stream,
            302,
            &[
                commit,
                ("X-Linked-Etag", format!("\"{sha}\"")),
                ("X-Linked-Size", bytes.len().to_string()),
                ("Location", location),
            ],
            0,
        )
    }

    fn by_sha(&self, sha: &str) -> Option<Vec<u8>> {
        let state = self.state();
        let mut files = state.repos.values().flat_map(|repo| repo.files.values());
        files.find(|bytes| sha256(bytes) == sha).cloned()
    }

    fn api(&self, rest: &str, path: &str, token: Option<&str>) -> Result<Value, (u16, &'static str)> {
        let state = self.state();
        if rest.is_empty() {
            let words = query(path, "search").unwrap_or_default().to_lowercase();
            let limit = query(path, "limit").and_then(|limit| limit.parse().ok()).unwrap_or(1000);
            let found = state.repos.iter().filter(|(id, _)| id.to_lowercase().contains(&words)).take(limit);
            return Ok(found.map(|(id, repo)| info(id, repo)).collect());
        }
        let mut parts = rest.splitn(4, '/');
        let id = [parts.next().unwrap_or_default(), parts.next().unwrap_or_default()].join("/");
        let repo = state.repos.get(&id).ok_or((if token.is_some() { 404 } else { 401 }, "RepoNotFound"))?;
        if repo.private_for.as_deref().is_some_and(|wanted| token != Some(wanted)) {
            return Err((if token.is_some() { 404 } else { 401 }, "RepoNotFound"));
        }
        let (kind, revision) = (parts.next(), parts.next().unwrap_or("main"));
        if !["main", COMMIT].contains(&revision) {
            return Err((404, "RevisionNotFound"));
        }
        if kind != Some("tree") {
            return Ok(info(&id, repo));
        }
        let entries = repo.files.iter().map(|(name, bytes)| {
            let size = repo.claimed_sizes.get(name).copied().unwrap_or(bytes.len() as u64);
            let mut entry = json!({"type": "file", "path": name, "size": size, "oid": git_sha1(bytes)});
            if is_lfs(name) {
                entry["lfs"] = json!({"oid": sha256(bytes), "size": size, "pointerSize": 134});
            }
            entry
        });
        Ok(entries.collect())
    }

    fn body(
        &self,
        stream: &mut dyn ReadWrite,
        index: usize,
        request: &Request,
        fault: Option<&Fault>,
        bytes: &[u8],
        headers: &[(&str, String)],
    ) -> io::Result<()> {
        let range = request.range.as_deref().filter(|_| !matches!(fault, Some(Fault::NoRanges)));
        let range = range.and_then(|range| range.strip_prefix("bytes=")?.split_once('-'));
        let (status, from, to) = match range {
            Some((from, to)) => {
                let last = to.parse().unwrap_or(usize::MAX).min(bytes.len().saturating_sub(1));
                (206, from.parse().unwrap_or(0), last + 1)
            }
            None => (200, 0, bytes.len()),
        };
        if from >= to && !bytes.is_empty() {
            return head(stream, 416, &[], 0);
        }
        let mut headers = headers.to_vec();
        headers.push(("Accept-Ranges", "bytes".into()));
        if status == 206 {
            headers.push(("Content-Range", format!("bytes {from}-{}/{}", to - 1, bytes.len())));
        }
        head(stream, status, &headers, to - from)?;
        if request.method == "HEAD" {
            return Ok(());
        }
        if let Some(Fault::Meet(others)) = fault {
            others.wait();
        }
        let mut body = bytes[from..to].to_vec();
        if let (Some(Fault::WrongBytes), Some(byte)) = (fault, body.last_mut()) {
            *byte ^= 1;
        }
        let length = match fault {
            Some(Fault::CutAfter(count) | Fault::StallAfter(count)) => body.len().min(*count),
            _ => body.len(),
        };
        for piece in body[..length].chunks(1 << 16) {
            stream.write_all(piece)?;
            stream.flush()?;
            self.served.fetch_add(piece.len() as u64, Ordering::SeqCst);
            self.state().log[index].sent += piece.len() as u64;
        }
        if matches!(fault, Some(Fault::StallAfter(_))) {
            // Until the client gives up.
            drop(stream.read(&mut [0; 1]));
        }
        Ok(())
    }
}

fn info(id: &str, repo: &Repo) -> Value {
    let siblings: Vec<Value> = repo.files.keys().map(|name| json!({"rfilename": name})).collect();
    let mut info = json!({
        "id": id, "_id": "1", "sha": COMMIT, "private": repo.private_for.is_some(), "gated": false,
        "downloads": 7, "likes": 3, "tags": [], "siblings": siblings, "lastModified": "2025-08-05T17:00:00.000Z"
    });
    if let (Value::Object(info), Value::Object(more)) = (&mut info, &repo.info) {
        info.extend(more.clone());
    }
    info
}

fn query(path: &str, name: &str) -> Option<String> {
    let pairs = path.split_once('?')?.1.split('&').filter_map(|pair| pair.split_once('='));
    pairs
        .into_iter()
        .find(|(key, _)| *key == name)
        .map(|(_, value)| value.replace('+', " ").replace("%2F", "/"))
}

fn read_request(stream: &mut dyn ReadWrite) -> io::Result<Request> {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split_whitespace();
    let method = words.next().ok_or(io::ErrorKind::UnexpectedEof)?.to_owned();
    let target = words.next().unwrap_or_default();
    let mut request = Request { method, path: target.into(), ..Request::default() };
    if let Some(rest) = target.strip_prefix("http://") {
        request.is_proxied = true;
        request.path = format!("/{}", rest.split_once('/').map_or("", |(_, path)| path));
    }
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { return Ok(request) };
        match name.to_lowercase().as_str() {
            "range" => request.range = Some(value.into()),
            "authorization" => request.authorization = Some(value.into()),
            "host" => request.host = value.into(),
            _ => {}
        }
    }
}

fn head(
    stream: &mut dyn ReadWrite,
    status: u16,
    headers: &[(&str, String)],
    length: usize,
) -> io::Result<()> {
    let mut text = format!("HTTP/1.1 {status} Status\r\nConnection: close\r\nContent-Length: {length}\r\n");
    for (name, value) in headers {
        write!(text, "{name}: {value}\r\n").map_err(io::Error::other)?;
    }
    stream.write_all((text + "\r\n").as_bytes())?;
    stream.flush()
}
