use std::{path::Path, sync::LazyLock};

use lathe_protocol::{
    CatalogModel, ErrorCode, ErrorInfo, Hardware, Machine, Method, Placement, RunConfig, catalog,
    training_memory,
};
use sysinfo::{CpuRefreshKind, Disks, MemoryRefreshKind, RefreshKind, System};

use crate::{Paths, devices, error::Result, gpus::Seen, units::gb};

const GIB: f64 = (1u64 << 30) as f64;
/// A parameter of a 4-bit GGUF, with what a chat takes beside it.
const GGUF_BYTES: f64 = 0.65;
/// Of a row, in the advice on cards.
const ADVISED_TOKENS: usize = 2048;

/// What a run is computed on.
pub(crate) fn machine() -> Machine {
    let system = System::new_with_specifics(RefreshKind::nothing().with_cpu(CpuRefreshKind::nothing()));
    Machine { os: os(), cpu: cpu(system.ok().as_ref()) }
}

fn os() -> String {
    let os = [System::name(), System::os_version()].into_iter().flatten().collect::<Vec<_>>().join(" ");
    if os.is_empty() { std::env::consts::OS.into() } else { os }
}

fn cpu(system: Option<&System>) -> String {
    let cpu = system.and_then(|system| Some(system.cpus().first()?.brand().trim().to_owned()));
    cpu.filter(|cpu| !cpu.is_empty()).unwrap_or_else(|| std::env::consts::ARCH.into())
}

/// This machine, as far as it matters for models, with the cards that were seen.
pub(crate) fn detect(paths: &Paths, Seen { gpus, gpu_note, .. }: Seen) -> Hardware {
    let system = System::new_with_specifics(
        RefreshKind::nothing()
            .with_cpu(CpuRefreshKind::nothing())
            .with_memory(MemoryRefreshKind::nothing().with_ram()),
    );
    // A system that cannot be asked has unknown sizes, which read as zeros.
    let system = system.ok();
    let (ram_total_bytes, ram_available_bytes) = system.as_ref().map_or((0, 0), memory);
    let logical_cores = std::thread::available_parallelism().map_or(1, usize::from);
    let (disk_total_bytes, disk_free_bytes) = disk_of(&paths.data_dir);
    Hardware {
        os: os(),
        cpu: cpu(system.as_ref()),
        physical_cores: System::physical_core_count().unwrap_or(logical_cores).min(logical_cores),
        logical_cores,
        cpu_features: cpu_features(),
        ram_total_bytes,
        ram_available_bytes,
        data_dir: paths.data_dir.display().to_string(),
        disk_total_bytes,
        disk_free_bytes,
        gpus,
        gpu_note,
        advice: advice(ram_total_bytes, disk_free_bytes),
    }
}

/// Total and available bytes; a container may have less than the machine.
fn memory(system: &System) -> (u64, u64) {
    match system.cgroup_limits() {
        Some(limits) if limits.total_memory > 0 && limits.total_memory < system.total_memory() => {
            (limits.total_memory, limits.free_memory)
        }
        _ => (system.total_memory(), system.available_memory()),
    }
}

/// Total and free bytes of the disk that holds `path`; zeros if unknown.
pub(crate) fn disk_of(path: &Path) -> (u64, u64) {
    let existing = path.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(path);
    let existing = existing.canonicalize().unwrap_or_else(|_| existing.to_path_buf());
    let Ok(disks) = Disks::new_with_refreshed_list() else { return (0, 0) };
    disks
        .iter()
        .filter(|disk| existing.starts_with(disk.mount_point()))
        .max_by_key(|disk| disk.mount_point().components().count())
        .map_or((0, 0), |disk| (disk.total_space(), disk.available_space()))
}

/// For [`check_room`] of what is on its way into the cache.
pub(crate) const HAVE_CACHE_ELSEWHERE: &str =
    "free some space, or have the cache elsewhere: HF_HUB_CACHE, or Settings";

/// An error, with the hint, if the disk of `folder` has no room for so many bytes more.
pub(crate) fn check_room(folder: &Path, needed_bytes: u64, what: &str, hint: &str) -> Result<()> {
    let (disk_bytes, free_bytes) = disk_of(folder);
    if disk_bytes == 0 || needed_bytes <= free_bytes {
        return Ok(());
    }
    let (needed, free, folder) = (gb(needed_bytes), gb(free_bytes), folder.display());
    let message = format!("{what} does not fit on the disk: needs {needed}, {free} free: {folder}");
    Err(ErrorInfo::new(ErrorCode::Io, message).hint(hint))
}

/// Rules of thumb: f32 weights take 4 bytes a parameter, LoRA training about half again with its activations, Adam on
/// every weight 16 bytes a parameter, a Q4 chat 0.65 bytes. A quarter of the RAM stays free.
fn advice(ram_total_bytes: u64, disk_free_bytes: u64) -> Vec<String> {
    let usable = ram_total_bytes as f64 * 0.75;
    let fits = |bytes_per_parameter: f64| parameters(usable / bytes_per_parameter);
    let mut advice = vec![
        format!("LoRA on the CPU: models up to about {} parameters", fits(6.0)),
        format!("Full fine-tuning on the CPU: up to about {} parameters", fits(18.0)),
        format!("Chat on the CPU from 4-bit GGUF: up to about {} parameters", fits(GGUF_BYTES)),
    ];
    if disk_free_bytes > 0 && (disk_free_bytes as f64) < 5.0 * GIB {
        advice.push(format!(
            "Little disk is free ({:.1} GiB): models and checkpoints need room",
            disk_free_bytes as f64 / GIB
        ));
    }
    advice
}

fn parameters(count: f64) -> String {
    let (value, unit) = if count >= 1e9 { (count / 1e9, "billion") } else { (count / 1e6, "million") };
    if value >= 10.0 { format!("{value:.0} {unit}") } else { format!("{value:.1} {unit}") }
}

/// What training takes of a card, reckoned once: it takes half a millisecond, and cards are looked at every second.
struct CardNeeds {
    /// Each method, with bytes and parameters of the dense models of one family, from small to large.
    dense: Vec<(&'static str, Vec<(f64, f64)>)>,
    /// Bytes of the catalog's mixtures, e.g. `LoRA of openai/gpt-oss-20b`.
    mixtures: Vec<(String, f64)>,
}

static CARD_NEEDS: LazyLock<CardNeeds> = LazyLock::new(|| {
    let bytes = |model: &CatalogModel, method| {
        let config = RunConfig {
            method,
            batch_size: 1,
            max_seq_len: ADVISED_TOKENS,
            gradient_checkpointing: true,
            ..RunConfig::default()
        };
        training_memory(&model.shape, &config, ADVISED_TOKENS, Placement::Cuda).total() as f64
    };
    let (mut mixtures, dense): (Vec<_>, Vec<_>) =
        catalog().iter().partition(|model| model.shape.experts.is_some());
    // Copies follow what they are copies of.
    mixtures.dedup_by_key(|model| model.shape);
    let sizes = |method| {
        let family = dense.iter().filter(|model| model.family == "Qwen3");
        family.map(|model| (bytes(model, method), model.parameters as f64)).collect()
    };
    let methods = [("QLoRA", Method::Qlora), ("LoRA", Method::Lora), ("Full fine-tuning", Method::Full)];
    let mixture = |model: &CatalogModel| {
        let (name, method) =
            if model.shape.refuses_nf4() { ("LoRA", Method::Lora) } else { ("QLoRA", Method::Qlora) };
        (format!("{name} of {}", model.name), bytes(model, method))
    };
    CardNeeds {
        dense: methods.into_iter().map(|(name, method)| (name, sizes(method))).collect(),
        mixtures: mixtures.into_iter().map(mixture).collect(),
    }
});

/// What a card has room for: dense models up to a size with each method, the catalog's mixtures by name. Training as
/// [`training_memory`] reckons it, a row of 2,048 tokens at a time; a chat by the rule of thumb of the CPU.
pub(crate) fn card_advice(vram_total_bytes: u64) -> Vec<String> {
    let usable = vram_total_bytes as f64 * devices::USABLE;
    let most = |what: &str, count: f64| {
        // Nobody trains less, and so near to nothing the line through the sizes means nothing.
        (count > 1e8).then(|| format!("{what}: models up to about {} parameters", parameters(count)))
    };
    let CardNeeds { dense, mixtures } = &*CARD_NEEDS;
    let dense = dense.iter().filter_map(|(name, sizes)| most(name, largest(sizes, usable)));
    let chat = most("Chat from 4-bit GGUF", usable / GGUF_BYTES);
    let mixtures = mixtures.iter().map(|(name, bytes)| {
        let word = if *bytes <= usable { "fits, takes" } else { "does not fit, needs" };
        format!("{name}: {word} {:.1} GiB", bytes / GIB)
    });
    dense.chain(chat).chain(mixtures).collect()
}

/// Parameters of the largest model in so many bytes, on a line through the sizes: beyond the last one it goes on, as
/// does the first one's below it.
fn largest(sizes: &[(f64, f64)], usable: f64) -> f64 {
    let spans = || sizes.windows(2).map(|pair| (pair[0], pair[1]));
    let span = spans().rfind(|((bytes, _), _)| *bytes <= usable).or_else(|| spans().next());
    span.map_or(0.0, |((bytes, count), (more_bytes, more))| {
        count + (usable - bytes) * (more - count) / (more_bytes - bytes)
    })
}

#[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
fn cpu_features() -> Vec<String> {
    let mut features = Vec::new();
    macro_rules! detect {
        ($($name:tt)*) => { $(if std::is_x86_feature_detected!($name) { features.push($name.to_owned()); })* };
    }
    detect!("avx" "avx2" "fma" "f16c" "avx512f" "avx512bw" "avx512vl" "avx512vnni" "avx512bf16");
    features
}

#[cfg(not(any(target_arch = "x86", target_arch = "x86_64")))]
fn cpu_features() -> Vec<String> {
    if cfg!(target_arch = "aarch64") { vec!["neon".into()] } else { Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_is_described() {
        let dir = tempfile::tempdir().unwrap();
        let paths = Paths::in_folder(&dir.path().join("not/yet/there"));
        let hardware = detect(&paths, Seen::default());
        assert!(hardware.logical_cores >= 1 && hardware.physical_cores <= hardware.logical_cores);
        assert!(hardware.ram_total_bytes > 1 << 28);
        assert!(hardware.ram_available_bytes <= hardware.ram_total_bytes);
        assert!(hardware.disk_free_bytes <= hardware.disk_total_bytes);
        assert!(hardware.advice.len() >= 3);
    }

    #[test]
    fn a_card_with_just_room_for_a_model_is_advised_it() {
        for (method, sizes) in &CARD_NEEDS.dense {
            assert!(sizes.len() > 2 && sizes.is_sorted_by(|a, b| a.0 < b.0), "{method}: {sizes:?}");
            for (bytes, parameters) in sizes {
                assert!((largest(sizes, *bytes) / parameters - 1.0).abs() < 1e-6, "{method}: {parameters}");
            }
        }
        let has = |gib: u64, start: &str| card_advice(gib << 30).iter().any(|line| line.starts_with(start));
        assert!(has(141, "LoRA of openai/gpt-oss-120b: fits"));
        assert!(has(16, "LoRA of openai/gpt-oss-20b: fits"));
        assert!(has(12, "LoRA of openai/gpt-oss-20b: does not fit"));
        assert!(has(24, "Full fine-tuning") && !has(2, "Full fine-tuning"));
    }

    #[test]
    fn advice_grows_with_the_machine() {
        assert!(advice(8 << 30, 100 << 30)[0].ends_with("1.1 billion parameters"));
        assert!(advice(64 << 30, 1 << 30).last().unwrap().starts_with("Little disk"));
    }
}
