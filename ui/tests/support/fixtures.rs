//! A workstation with some history, as the host would tell it.

use lathe_protocol::{
    AdapterEntry, Command, CommandBody, EventBody, Gpu, GpuProcess, Hardware, Method, ModelEntry, ModelShape,
    PcieLink, Quant, RunEntry, RunStatus, Settings, SettingsView, Style, Theme, TokenStatus,
};

use super::{NOW_SECS, Script};

const GIB: u64 = 1 << 30;
const UNUSED: &str = "Lathe's worker for graphics cards is missing: lathe-worker-cuda";

/// Answers what every screen may look at; false if the command is another.
pub fn answer(command: &Command, script: &mut Script) -> bool {
    let job = command.job;
    match command.body {
        CommandBody::Hardware => script.answer(job, EventBody::Hardware(hardware(Vec::new()))),
        CommandBody::ModelsList => script.answer(job, EventBody::Models { models: models() }),
        CommandBody::AdaptersList => script.answer(job, EventBody::Adapters { adapters: adapters() }),
        CommandBody::RunsFollow => script.say(job, EventBody::Runs { runs: runs() }),
        CommandBody::SettingsShow => script.answer(job, EventBody::Settings(Box::new(settings()))),
        _ => return false,
    }
    true
}

/// Answers as a fresh installation: the starter model and nothing else.
pub fn answer_empty(command: &Command, script: &mut Script) -> bool {
    let job = command.job;
    match command.body {
        CommandBody::ModelsList => script.answer(job, EventBody::Models { models: models()[..1].to_vec() }),
        CommandBody::AdaptersList => script.answer(job, EventBody::Adapters { adapters: Vec::new() }),
        CommandBody::RunsFollow => script.say(job, EventBody::Runs { runs: Vec::new() }),
        _ => return answer(command, script),
    }
    true
}

pub fn hardware(gpus: Vec<Gpu>) -> Hardware {
    Hardware {
        os: "Debian GNU/Linux 12".into(),
        cpu: "AMD Ryzen 9 7950X".into(),
        physical_cores: 16,
        logical_cores: 32,
        cpu_features: ["avx2", "fma", "avx512f", "avx512vnni"].map(String::from).to_vec(),
        ram_total_bytes: 64 * GIB,
        ram_available_bytes: 41 * GIB,
        data_dir: "/home/ada/.local/share/lathe".into(),
        disk_total_bytes: 2_000 * GIB,
        disk_free_bytes: 731 * GIB,
        gpu_note: match gpus.first() {
            None => Some("No NVIDIA driver found: runs compute on the CPU".into()),
            Some(gpu) if !gpu.is_usable => Some(UNUSED.into()),
            Some(_) => None,
        },
        gpus,
        advice: vec![
            "LoRA on the CPU: models up to about 8.6 billion parameters".into(),
            "Full fine-tuning on the CPU: up to about 2.9 billion parameters".into(),
            "Chat on the CPU from 4-bit GGUF: up to about 79 billion parameters".into(),
        ],
    }
}

/// A card that runs can use.
pub fn gpu(index: usize) -> Gpu {
    let process = |pid, name: &str, bytes, is_ours| GpuProcess {
        pid,
        name: Some(name.into()),
        bytes: Some(bytes),
        is_ours,
    };
    let processes = vec![
        process(4711, "lathe", 13 * GIB, true),
        process(1203, "Xorg", GIB / 2, false),
        process(2077, "firefox", GIB / 4, false),
        process(2099, "gnome-shell", GIB / 8, false),
    ];
    Gpu {
        index,
        name: "NVIDIA GeForce RTX 4090".into(),
        uuid: Some(format!("GPU-5a1c0b9e-0000-4090-8000-00000000000{index}")),
        is_usable: true,
        vram_total_bytes: 24 * GIB,
        vram_free_bytes: (9 + 8 * index as u64) * GIB,
        utilization_percent: Some(93 - 80 * index as u32),
        temperature_celsius: Some(71 - 20 * index as u32),
        power_watts: Some(388.0 - 300.0 * index as f64),
        power_limit_watts: Some(450.0),
        graphics_clock_mhz: Some(2730),
        memory_clock_mhz: Some(10_501),
        pcie: Some(PcieLink { generation: 4, width: 16, max_generation: Some(4), max_width: Some(16) }),
        driver: Some("580.82".into()),
        cuda: Some("13.0".into()),
        compute_capability: Some((8, 9)),
        processes: Some(if index == 0 { processes } else { Vec::new() }),
        advice: vec![
            "QLoRA: models up to about 33 billion parameters".into(),
            "QLoRA of Qwen/Qwen3-30B-A3B: fits, takes 20.3 GiB".into(),
        ],
    }
}

/// Seen, and of no use to a run as long as something is missing. The second tells little of itself.
pub fn seen_gpus(count: usize) -> Vec<Gpu> {
    let second = Gpu {
        index: 1,
        name: "NVIDIA GeForce GTX 1650".into(),
        vram_total_bytes: 4 * GIB,
        vram_free_bytes: 3 * GIB,
        temperature_celsius: Some(41),
        driver: Some("580.82".into()),
        cuda: Some("13.0".into()),
        compute_capability: Some((7, 5)),
        ..Gpu::default()
    };
    let mut all = vec![Gpu { is_usable: false, ..gpu(0) }, second];
    all.truncate(count);
    all
}

pub fn models() -> Vec<ModelEntry> {
    let entry = |name: &str, parameters, size_bytes, shape| ModelEntry {
        name: name.into(),
        architecture: Some("LlamaForCausalLM".into()),
        parameters: Some(parameters),
        size_bytes,
        revision: (name != "starter").then(|| "12fd25f77366fa6b3b4b768ec3050bf629380bac".into()),
        path: format!("/home/ada/.cache/huggingface/hub/models--{}", name.replace('/', "--")),
        license: Some("apache-2.0".into()),
        shape: Some(shape),
        problem: None,
    };
    let mut broken =
        entry("Qwen/Qwen3-0.6B", 596_049_920, 1_192_135_096, shape(28, 1024, 3072, 16, 8, 151_936));
    broken.problem = Some("model.safetensors is missing".into());
    vec![
        entry("starter", 4_724_992, 9_900_000, shape(6, 256, 688, 8, 4, 4096)),
        entry(
            "HuggingFaceTB/SmolLM2-135M-Instruct",
            134_515_008,
            269_060_552,
            shape(30, 576, 1536, 9, 3, 49_152),
        ),
        entry(
            "HuggingFaceTB/SmolLM2-1.7B-Instruct",
            1_711_376_384,
            3_422_777_952,
            shape(24, 2048, 8192, 32, 32, 49_152),
        ),
        broken,
    ]
}

fn shape(
    layers: usize,
    hidden: usize,
    intermediate: usize,
    heads: usize,
    kv_heads: usize,
    vocab: usize,
) -> ModelShape {
    ModelShape {
        num_layers: layers,
        hidden_size: hidden,
        intermediate_size: intermediate,
        num_attention_heads: heads,
        num_key_value_heads: kv_heads,
        head_dim: hidden / heads,
        vocab_size: vocab,
        context_length: 8192,
        tie_word_embeddings: true,
        is_gguf: false,
        linears: Quant::None,
        experts: None,
    }
}

pub fn run(name: &str, status: RunStatus, hours_ago: u64, step: usize) -> RunEntry {
    RunEntry {
        id: format!("2026-11-2{}-1200-{:04x}", hours_ago % 10, name.len()),
        name: name.into(),
        status,
        model: "HuggingFaceTB/SmolLM2-135M-Instruct".into(),
        data: "/home/ada/data/support_chats.jsonl".into(),
        method: Method::Lora,
        out_dir: format!("/home/ada/.local/share/lathe/runs/{name}"),
        created_secs: NOW_SECS as u64 - hours_ago * 3600,
        step,
        total_steps: 500,
        last_loss: (step > 0).then(|| 0.6 + 2.0 / (1.0 + step as f64 / 60.0)),
        eval_loss: (status == RunStatus::Completed).then_some(0.913),
        error: (status == RunStatus::Failed).then(|| "Loss is not finite at step 312".into()),
        divergence: None,
        tokens_per_second: (step > 0).then_some(492.0),
        doing: None,
        queue_position: (status == RunStatus::Queued).then_some(0),
        held_here: status == RunStatus::Running,
        device: "auto".into(),
        runs_on: (status == RunStatus::Running).then(|| "cpu".into()),
        sweep: None,
    }
}

pub fn runs() -> Vec<RunEntry> {
    vec![
        run("support-tone", RunStatus::Running, 1, 214),
        run("support-tone-r32", RunStatus::Queued, 1, 0),
        run("pirate", RunStatus::Completed, 26, 500),
        run("house-style", RunStatus::Stopped, 50, 320),
        run("first-try", RunStatus::Failed, 120, 311),
    ]
}

fn origins() -> serde_json::Value {
    let hash = "1f3a5c7e9b2d4f60";
    serde_json::json!({
        "lathe": "0.1.0", "template_hash": hash,
        "base": {"storage": "BF16", "weights_hash": hash, "config_hash": hash},
        "data": [{"path": "/home/ada/data/support_chats.jsonl", "sha256": hash, "size_bytes": 48_000, "rows": 120}],
        "metrics": {"step": 300, "loss": 0.727, "eval_loss": 0.81, "perplexity": 2.25, "token_accuracy": 0.79},
    })
}

pub fn adapters() -> Vec<AdapterEntry> {
    let adapter = |name: &str, r: usize, hours_ago: u64, tags: &[&str], notes: &str| AdapterEntry {
        name: name.into(),
        path: format!("/home/ada/.local/share/lathe/adapters/{name}"),
        base_model: Some("HuggingFaceTB/SmolLM2-135M-Instruct".into()),
        r,
        alpha: 2.0 * r as f64,
        targets: ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
            .map(String::from)
            .to_vec(),
        size_bytes: 1_230_000 * r as u64,
        created_secs: Some(NOW_SECS as u64 - hours_ago * 3600),
        run: Some(name.into()),
        data: Some("/home/ada/data/support_chats.jsonl".into()),
        last_loss: Some(0.727),
        notes: notes.into(),
        tags: tags.iter().map(|&tag| tag.to_owned()).collect(),
        styles: Vec::new(),
        origins: serde_json::from_value(origins()).ok(),
        problem: None,
    };
    vec![
        adapter("pirate", 8, 26, &["demo"], "Talks like a pirate; answers stay right"),
        AdapterEntry {
            styles: Style::terse_and_detailed(),
            origins: None,
            ..adapter("house-style-draft", 16, 300, &[], "")
        },
    ]
}

pub fn settings() -> SettingsView {
    SettingsView {
        settings: Settings { theme: Theme::System, ..Settings::default() },
        path: "/home/ada/.config/lathe/settings.toml".into(),
        data_dir: "/home/ada/.local/share/lathe".into(),
        hf_cache: "/home/ada/.cache/huggingface/hub".into(),
        token: TokenStatus::Absent,
        version: "0.1.0".into(),
    }
}
