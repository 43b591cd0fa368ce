//! A Hub, a list of downloads and a cache, as the host would tell them.

use lathe_protocol::{
    CacheFile, CachePlan, CacheRepo, CacheReport, CacheRevision, CacheTarget, Command, CommandBody, Download,
    DownloadStatus, ErrorCode, ErrorInfo, EventBody, FolderView, Gate, HubDetails, HubFile, HubModel, Place,
    RepoKind, in_catalog,
};

use super::{NOW_SECS, Script, fixtures};

pub const QWEN: &str = "Qwen/Qwen3-1.7B";
pub const LLAMA: &str = "meta-llama/Llama-3.2-1B-Instruct";
pub const CACHE: &str = "/home/ada/.cache/huggingface/hub";
const DAY: u64 = 24 * 3600;

/// Answers as a machine with a network and a well-used cache.
pub fn answer(command: &Command, script: &mut Script) {
    let job = command.job;
    match &command.body {
        CommandBody::HubSearch { .. } => script.answer(job, EventBody::HubModels { models: found() }),
        CommandBody::HubShow { model, .. } => {
            script.answer(job, EventBody::HubDetails(Box::new(details(model))));
        }
        CommandBody::DownloadsFollow => {
            script.say(job, EventBody::Downloads { downloads: Vec::new() });
        }
        CommandBody::DownloadsAdd { .. } | CommandBody::DownloadsAct { .. } => {
            script.say(job, EventBody::Done);
        }
        CommandBody::CacheShow => script.answer(job, EventBody::Cache(Box::new(cache()))),
        CommandBody::CachePlan { targets } => script.answer(job, EventBody::CachePlan(plan(targets))),
        CommandBody::Browse { .. } => {
            let folder = FolderView {
                path: "/mnt/big".into(),
                parent: Some("/mnt".into()),
                entries: Vec::new(),
                places: vec![Place { name: "Home".into(), path: "/home/ada".into() }],
            };
            script.answer(job, EventBody::Folder(folder));
        }
        _ => drop(fixtures::answer(command, script)),
    }
}

pub fn found() -> Vec<HubModel> {
    let model = |name: &str, license: &str, downloads, parameters, days_ago: u64| HubModel {
        name: name.into(),
        downloads,
        likes: downloads / 4000,
        license: Some(license.into()),
        gate: Gate::Open,
        is_private: false,
        architecture: Some("Qwen3ForCausalLM".into()),
        parameters: Some(parameters),
        updated_secs: Some(NOW_SECS as u64 - days_ago * DAY),
        problem: None,
    };
    vec![
        model(QWEN, "apache-2.0", 1_240_331, 1_720_574_976, 120),
        model("unsloth/Qwen3-1.7B-Base", "apache-2.0", 84_120, 1_720_574_976, 30),
        HubModel {
            gate: Gate::Agree,
            ..model("acme-research/Qwen3-1.7B-Medical-Instruct", "other", 9_114, 1_720_574_976, 4)
        },
        HubModel { is_private: true, ..model("ada/qwen3-house-style", "mit", 3, 1_720_574_976, 1) },
        HubModel {
            architecture: Some("MambaForCausalLM".into()),
            problem: Some("Not supported: MambaForCausalLM".into()),
            ..model("state-spaces/qwen-distilled-mamba", "apache-2.0", 412, 790_000_000, 400)
        },
    ]
}

pub fn details(model: &str) -> HubDetails {
    let known = in_catalog(model);
    let file = |name: &str, size_bytes, is_wanted, is_here| HubFile {
        name: name.into(),
        size_bytes,
        is_wanted,
        is_here,
    };
    let weights = known.map_or(3_440_000_000, |known| known.download_bytes);
    HubDetails {
        name: model.into(),
        revision: "70d244cc86ccca08cf5af4e1e306ecf908b1ad5e".into(),
        license: known.map(|known| known.license.clone()),
        gate: if model == LLAMA { Gate::Agree } else { Gate::Open },
        architecture: Some("Qwen3ForCausalLM".into()),
        parameters: Some(known.map_or(1_720_574_976, |known| known.parameters)),
        shape: known.or(in_catalog(QWEN)).map(|known| known.shape),
        files: vec![
            file("config.json", 726, true, true),
            file("model.safetensors", weights, true, false),
            file("onnx/model.onnx", 6_880_000_000, false, false),
            file("tokenizer.json", 11_422_654, true, true),
        ],
        size_bytes: weights + 11_423_380,
        missing_bytes: weights,
        disk_free_bytes: 731 << 30,
        problem: None,
    }
}

pub fn download(model: &str, status: DownloadStatus, done_percent: u64) -> Download {
    let total_bytes = in_catalog(model).map_or(3_440_000_000, |known| known.download_bytes);
    let is_running = status == DownloadStatus::Running;
    Download {
        model: model.into(),
        revision: None,
        status,
        held_here: false,
        done_bytes: total_bytes / 100 * done_percent,
        total_bytes,
        done_files: if done_percent == 100 { 9 } else { 6 },
        total_files: 9,
        bytes_per_second: if is_running { 48_300_000.0 } else { 0.0 },
        eta_seconds: is_running.then_some(52.0),
        note: None,
        error: None,
    }
}

/// One of each kind.
pub fn downloads() -> Vec<Download> {
    let gated = ErrorInfo::new(ErrorCode::Access, format!("{LLAMA} is gated, and there is no token"))
        .hint("open its page and agree to its terms, then keep an access token in Settings");
    vec![
        download(QWEN, DownloadStatus::Running, 38),
        Download {
            note: Some("Connection lost; trying again in 4 s (2 of 8)".into()),
            ..download("Qwen/Qwen3-4B", DownloadStatus::Queued, 12)
        },
        Download {
            total_bytes: 0,
            done_bytes: 0,
            ..download("s3://acme-models/house/support-llama-3.2-1b-instruct", DownloadStatus::Queued, 0)
        },
        download("Qwen/Qwen3-8B", DownloadStatus::Paused, 61),
        Download { error: Some(gated), ..download(LLAMA, DownloadStatus::Failed, 0) },
        download("HuggingFaceTB/SmolLM2-135M-Instruct", DownloadStatus::Done, 100),
    ]
}

pub fn cache() -> CacheReport {
    let revision = |commit: &str, refs: &[&str], size_bytes, own_bytes, days_ago: u64| CacheRevision {
        commit: commit.repeat(5),
        refs: refs.iter().map(|&name| name.to_owned()).collect(),
        size_bytes,
        own_bytes,
        num_files: 9,
        modified_secs: NOW_SECS as u64 - days_ago * DAY,
    };
    let repo = |kind, id: &str, size_bytes, days_ago: u64, revisions: Vec<CacheRevision>| CacheRepo {
        kind,
        id: id.into(),
        path: format!("{CACHE}/models--{}", id.replace('/', "--")),
        target: None,
        size_bytes,
        num_files: 9 + 4 * (revisions.len() - 1),
        accessed_secs: NOW_SECS as u64 - days_ago * DAY,
        modified_secs: NOW_SECS as u64 - days_ago * DAY,
        revisions,
        unreferenced: Vec::new(),
        incomplete: Vec::new(),
    };
    let file = |name: &str, size_bytes| CacheFile { path: format!("{CACHE}/{name}"), size_bytes };
    CacheReport {
        path: CACHE.into(),
        target: None,
        size_bytes: 24_390_000_000,
        unreferenced_bytes: 1_503_000_000,
        incomplete_bytes: 9_990_000_000,
        disk_free_bytes: 731 << 30,
        repos: vec![
            CacheRepo {
                incomplete: vec![file("blobs/8d3c1f.incomplete", 9_990_000_000)],
                unreferenced: vec![file("blobs/47a1c09e", 1_503_000_000)],
                ..repo(
                    RepoKind::Model,
                    "Qwen/Qwen3-8B",
                    16_400_000_000,
                    3,
                    vec![
                        revision("b968826d", &["main"], 16_390_000_000, 4_100_000_000, 3),
                        revision("9c925d64", &[], 16_380_000_000, 4_090_000_000, 90),
                    ],
                )
            },
            repo(
                RepoKind::Model,
                "HuggingFaceTB/SmolLM2-1.7B-Instruct",
                3_422_777_952,
                0,
                vec![revision("31b70e2e", &["main"], 3_422_777_952, 3_422_777_952, 200)],
            ),
            CacheRepo {
                target: Some("/mnt/big/datasets--HuggingFaceH4--ultrachat_200k".into()),
                ..repo(
                    RepoKind::Dataset,
                    "HuggingFaceH4/ultrachat_200k",
                    3_240_000_000,
                    41,
                    vec![revision("8049631c", &["main"], 3_240_000_000, 3_240_000_000, 41)],
                )
            },
            repo(
                RepoKind::Model,
                "an-organisation-with-a-long-name/a-model-whose-name-is-longer-than-anybody-would-want-to-read-v0.3",
                1_190_000_000,
                400,
                vec![revision("12fd25f7", &["main", "v0.3"], 1_190_000_000, 1_190_000_000, 400)],
            ),
        ],
        leftovers: Vec::new(),
        warnings: vec![format!("{CACHE}/models--broken has no snapshots folder: it is not counted")],
    }
}

pub fn plan(targets: &[CacheTarget]) -> CachePlan {
    let line = |target: &CacheTarget| match target {
        CacheTarget::Repo { id, .. } => format!("model {id}, all 2 revisions"),
        CacheTarget::Revision { id, commit, .. } => format!("model {id}, revision {commit}"),
        CacheTarget::Detached => "model Qwen/Qwen3-8B, revision 9c925d64".into(),
        CacheTarget::Unreferenced => "model Qwen/Qwen3-8B, blob 47a1c09e".into(),
        CacheTarget::Incomplete => "model Qwen/Qwen3-8B, unfinished blob 8d3c1f".into(),
    };
    CachePlan {
        targets: targets.to_vec(),
        freed_bytes: 4_000_000_000 * targets.len() as u64,
        besides_bytes: 90_000_000 * targets.len() as u64,
        lines: targets.iter().map(line).collect(),
        num_files: 4 * targets.len(),
    }
}
