use std::path::Path;

use lathe_protocol::{Gpu, Hardware, Machine};
use sysinfo::{CpuRefreshKind, Disks, MemoryRefreshKind, RefreshKind, System};

use crate::Paths;

const GIB: f64 = (1u64 << 30) as f64;

/// Why there are no GPUs: this version asks no driver; NVML comes with the CUDA build.
fn gpu_note() -> String {
    let driver = Path::new("/proc/driver/nvidia/version").exists() || nvidia_smi_exists();
    let note = if driver {
        "An NVIDIA driver is installed, but this version computes on the CPU only; GPU support comes with a later one"
    } else {
        "No NVIDIA driver found; this version computes on the CPU"
    };
    note.into()
}

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

/// This machine, as far as it matters for models.
pub(crate) fn detect(paths: &Paths, gpus: &[Gpu]) -> Hardware {
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
        gpus: gpus.to_vec(),
        gpu_note: gpus.is_empty().then(gpu_note),
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

/// Rules of thumb: f32 weights take 4 bytes a parameter, LoRA training about half again with its activations, Adam on
/// every weight 16 bytes a parameter, a Q4 chat 0.6 bytes. A quarter of the RAM stays free.
fn advice(ram_total_bytes: u64, disk_free_bytes: u64) -> Vec<String> {
    let usable = ram_total_bytes as f64 * 0.75;
    let fits = |bytes_per_parameter: f64| parameters(usable / bytes_per_parameter);
    let mut advice = vec![
        format!("LoRA on the CPU: models up to about {} parameters", fits(6.0)),
        format!("Full fine-tuning on the CPU: up to about {} parameters", fits(18.0)),
        format!("Chat on the CPU from 4-bit GGUF: up to about {} parameters", fits(0.65)),
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

fn nvidia_smi_exists() -> bool {
    let name = if cfg!(windows) { "nvidia-smi.exe" } else { "nvidia-smi" };
    std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(name).is_file()))
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
        let hardware = detect(&paths, &[]);
        assert!(hardware.logical_cores >= 1 && hardware.physical_cores <= hardware.logical_cores);
        assert!(hardware.ram_total_bytes > 1 << 28);
        assert!(hardware.ram_available_bytes <= hardware.ram_total_bytes);
        assert!(hardware.disk_free_bytes <= hardware.disk_total_bytes);
        assert!(hardware.gpus.is_empty() && hardware.gpu_note.is_some());
        assert!(hardware.advice.len() >= 3);
    }

    #[test]
    fn advice_grows_with_the_machine() {
        assert!(advice(8 << 30, 100 << 30)[0].ends_with("1.1 billion parameters"));
        assert!(advice(64 << 30, 1 << 30).last().unwrap().starts_with("Little disk"));
    }
}
