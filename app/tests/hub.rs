//! Downloads by the real program, from a server that speaks the Hub's API.

#![cfg(unix)]
#![expect(clippy::unwrap_used, reason = "a test that cannot go on panics")]

#[expect(dead_code, reason = "the host's tests use more of it")]
#[path = "../../host/src/testing/fake_hub.rs"]
mod fake_hub;

use std::{
    fs,
    path::PathBuf,
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use fake_hub::{COMMIT, FakeHub, Fault, Repo, sha256};
use serde_json::{Value, json};

const MODEL: &str = "maker/tiny";

struct Bench {
    dir: tempfile::TempDir,
    hub: FakeHub,
}

impl Bench {
    fn new(repo: Repo) -> Self {
        Self { dir: tempfile::tempdir().unwrap(), hub: FakeHub::start(&[(MODEL, repo)]) }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Without this machine's own token, proxy and cache.
    fn lathe(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_lathe"));
        for name in
            ["HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy"]
        {
            command.env_remove(name);
        }
        command
            .args(args)
            .current_dir(self.dir.path())
            .env("LATHE_DATA_DIR", self.path("data"))
            .env("HF_HOME", self.path("hf"))
            .env("HF_ENDPOINT", self.hub.endpoint())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn ok(&self, args: &[&str]) -> String {
        let Output { status, stdout, stderr } = self.lathe(args).output().unwrap();
        assert!(status.success(), "{args:?}: {}", String::from_utf8_lossy(&stderr));
        String::from_utf8(stdout).unwrap()
    }

    fn repo_dir(&self) -> PathBuf {
        self.path("hf/hub/models--maker--tiny")
    }
}

fn weights(megabytes: usize) -> Vec<u8> {
    let bytes = megabytes << 20;
    let header = json!({"a": {"dtype": "U8", "shape": [bytes], "data_offsets": [0, bytes]}}).to_string();
    let mut file = (header.len() as u64).to_le_bytes().to_vec();
    file.extend(header.bytes());
    file.extend((0..bytes).map(|index| (index % 251) as u8));
    file
}

fn repo() -> Repo {
    let config = json!({
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 256, "num_hidden_layers": 2,
        "intermediate_size": 512, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 64,
        "vocab_size": 128, "max_position_embeddings": 2048, "tie_word_embeddings": true
    });
    Repo::new(&[
        ("config.json", config.to_string().into_bytes()),
        ("tokenizer.json", b"{}".to_vec()),
        ("model.safetensors", weights(8)),
    ])
}

#[test]
fn a_download_killed_in_its_midst_goes_on_where_it_was() {
    let bench = Bench::new(repo());
    let (whole, cdn) = (weights(8), format!("/cdn/{}", sha256(&weights(8))));
    bench.hub.fail(&cdn, 1, Fault::StallAfter(3 << 20));
    let mut child = bench.lathe(&["models", "pull", MODEL]).spawn().unwrap();
    let partial = bench.repo_dir().join("blobs").join(sha256(&whole)).with_extension("incomplete");
    let length = || fs::metadata(&partial).map_or(0, |found| found.len());
    let due = Instant::now() + Duration::from_mins(1);
    while length() < 2 << 20 {
        assert!(Instant::now() < due, "nothing comes");
        std::thread::sleep(Duration::from_millis(5));
    }
    // SIGKILL.
    child.kill().unwrap();
    child.wait().unwrap();
    let left = length();
    assert!(left < whole.len() as u64);
    bench.ok(&["models", "pull", MODEL]);
    let again = &bench.hub.requests(&cdn)[1];
    assert_eq!(again.range, Some(format!("bytes={left}-")));
    assert_eq!(again.sent, whole.len() as u64 - left);
    let path = bench.repo_dir().join("snapshots").join(COMMIT).join("model.safetensors");
    assert!(fs::read(path).unwrap() == whole);
    assert!(!partial.exists());
    assert!(bench.ok(&["models", "verify", MODEL]).contains("Sound: 3 files"));
}

#[test]
fn the_environment_is_respected() {
    let mut private = repo();
    private.private_for = Some("hf_secret".into());
    let bench = Bench::new(private);
    // A proxy hears of every request, whatever the Hub's address.
    let output = bench
        .lathe(&["models", "pull", MODEL, "--json"])
        .env("HF_TOKEN", "hf_secret")
        .env("HF_ENDPOINT", "http://hub.invalid")
        .env("HTTP_PROXY", bench.hub.endpoint())
        .output()
        .unwrap();
    let (stdout, stderr) =
        (String::from_utf8(output.stdout).unwrap(), String::from_utf8(output.stderr).unwrap());
    assert!(output.status.success(), "{stderr}");
    assert!(!stdout.contains("hf_secret") && !stderr.contains("hf_secret"));
    assert!(bench.hub.requests("").iter().any(|request| request.is_proxied && request.host == "hub.invalid"));
    let lines: Vec<Value> = stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let (last, downloads) = lines.split_last().unwrap();
    assert_eq!((&last["kind"], &last["models"][0]["name"]), (&json!("models"), &json!(MODEL)));
    assert!(downloads.iter().all(|line| line["kind"] == "download"));
    assert_eq!(downloads.last().unwrap()["status"], "done");

    let output = bench.lathe(&["models", "pull", MODEL]).env("HF_HUB_OFFLINE", "1").output().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(stderr.contains("HF_HUB_OFFLINE is set"), "{stderr}");
    // No token: neither here nor, of this test, in a keyring that could let it in.
    let output = bench.lathe(&["models", "pull", MODEL, "--json"]).output().unwrap();
    let error: Value = serde_json::from_slice(
        output.stdout.split(|byte| *byte == b'\n').rfind(|line| !line.is_empty()).unwrap(),
    )
    .unwrap();
    assert_eq!((&error["kind"], &error["code"]), (&json!("error"), &json!("not_found")));
}

#[test]
fn a_model_that_is_not_here_is_found_shown_and_reckoned_with() {
    let bench = Bench::new(repo());
    assert!(bench.ok(&["models", "search", "tiny"]).contains(MODEL));
    let shown = bench.ok(&["models", "show", MODEL]);
    for part in ["Qwen3ForCausalLM", "8.4 MB", "This machine  LoRA Fits", "lathe models pull maker/tiny"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let details: Value = serde_json::from_str(&bench.ok(&["models", "show", MODEL, "--json"])).unwrap();
    assert_eq!((&details["kind"], &details["shape"]["num_layers"]), (&json!("hub_details"), &json!(2)));
    let estimate: Value = serde_json::from_str(&bench.ok(&["estimate", "--model", MODEL, "--json"])).unwrap();
    assert_eq!(estimate["fit"], "Fits");
    assert!(!bench.repo_dir().exists());
    assert!(bench.ok(&["models", "list", "--catalog"]).contains("openai/gpt-oss-20b"));
}
