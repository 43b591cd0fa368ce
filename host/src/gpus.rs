//! The graphics cards, as NVML tells of them: a library of NVIDIA's driver, loaded when it is first asked.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use lathe_protocol::{EventBody, Gpu, GpuProcess, PcieLink};
use nvml_wrapper::{
    Device, Nvml, cuda_driver_version_major, cuda_driver_version_minor,
    enum_wrappers::device::{Clock, TemperatureSensor},
    enums::device::UsedGpuMemory,
    error::NvmlError,
};

use crate::{HostOptions, hardware, job::Job};

const FOLLOW_EVERY: Duration = Duration::from_secs(1);
/// A driver that did not answer is tried again this late: it may start a program of its own to load itself.
const RETRY_AFTER: Duration = Duration::from_secs(30);
const CPU_ONLY: &str = "This version computes on the CPU only: GPU support comes with a later one";

/// What a look at the cards found.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Seen {
    pub(crate) gpus: Vec<Gpu>,
    /// Why runs use none, or some are missing.
    pub(crate) gpu_note: Option<String>,
}

/// The driver, once it was asked.
#[derive(Default)]
pub(crate) struct Gpus(Mutex<Driver>);

#[derive(Default)]
enum Driver {
    #[default]
    Unasked,
    Open(Box<Nvml>),
    /// And since when.
    Absent(String, Instant),
}

impl Gpus {
    /// All cards as they are right now. What runs can use of them is as the options say.
    pub(crate) fn look(&self, options: &HostOptions) -> Seen {
        let Seen { mut gpus, mut gpu_note } = self.ask_driver(options);
        for usable in &options.gpus {
            match gpus.iter_mut().find(|gpu| gpu.index == usable.index) {
                Some(gpu) => gpu.is_usable = true,
                None => gpus.push(Gpu { is_usable: true, ..usable.clone() }),
            }
        }
        if !gpus.is_empty() && options.gpus.is_empty() {
            gpu_note =
                Some(gpu_note.map_or_else(|| CPU_ONLY.to_owned(), |note| format!("{CPU_ONLY}. {note}")));
        }
        for gpu in gpus.iter_mut().filter(|gpu| gpu.vram_total_bytes > 0) {
            gpu.advice = hardware::card_advice(gpu.vram_total_bytes);
        }
        Seen { gpus, gpu_note }
    }

    fn ask_driver(&self, options: &HostOptions) -> Seen {
        let mut driver = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = match &*driver {
            Driver::Unasked => true,
            Driver::Open(_) => false,
            Driver::Absent(_, since) => since.elapsed() >= RETRY_AFTER,
        };
        if is_due {
            *driver = open(options);
        }
        let looked = match &*driver {
            Driver::Open(nvml) => nvml.device_count().map(|count| sample(nvml, count, options)),
            Driver::Absent(why, _) => return Seen { gpus: Vec::new(), gpu_note: Some(why.clone()) },
            Driver::Unasked => return Seen::default(),
        };
        looked.unwrap_or_else(|error| {
            // It answered once: the next look opens it anew.
            *driver = Driver::Unasked;
            Seen { gpus: Vec::new(), gpu_note: Some(why_absent(&error, options)) }
        })
    }
}

/// Tells of the cards, now and every second that something changed, until the job is stopped.
pub(crate) fn follow(job: &Job) {
    let mut told = None;
    loop {
        let mut seen = job.host.gpus.look(&job.host.options);
        for gpu in &mut seen.gpus {
            // The tenths of a watt never rest, and each event draws a frame.
            gpu.power_watts = gpu.power_watts.map(f64::round);
        }
        if told.as_ref() != Some(&seen) {
            let Seen { gpus, gpu_note } = seen.clone();
            job.emit(EventBody::Gpus { gpus, gpu_note });
            told = Some(seen);
        }
        if !job.rest(FOLLOW_EVERY) {
            return;
        }
    }
}

fn open(options: &HostOptions) -> Driver {
    let mut builder = Nvml::builder();
    if let Some(library) = &options.nvml {
        builder.lib_path(library);
    }
    match builder.init() {
        Ok(nvml) => Driver::Open(Box::new(nvml)),
        Err(error) => Driver::Absent(why_absent(&error, options), Instant::now()),
    }
}

fn why_absent(error: &NvmlError, options: &HostOptions) -> String {
    match error {
        NvmlError::LibloadingError(_) | NvmlError::LibraryNotFound => match &options.nvml {
            Some(library) => {
                format!("LATHE_NVML names no library that can be loaded: {}", library.to_string_lossy())
            }
            None if Path::new("/proc/driver/nvidia/version").exists() => {
                "An NVIDIA driver is loaded, but its library libnvidia-ml.so.1 is not here: \
                 a container must be started with it (--gpus all)"
                    .into()
            }
            None => "No NVIDIA driver found; this version computes on the CPU".into(),
        },
        NvmlError::FailedToLoadSymbol(_) | NvmlError::FunctionNotFound => {
            "The NVIDIA driver is too old to tell of its cards: update it".into()
        }
        NvmlError::DriverNotLoaded => {
            "An NVIDIA driver is installed, but not loaded: restart the machine".into()
        }
        NvmlError::LibRmVersionMismatch => {
            "The NVIDIA driver was updated, and the old one still runs: restart the machine".into()
        }
        NvmlError::NoPermission => {
            "This user may not ask the NVIDIA driver: see who may open /dev/nvidiactl".into()
        }
        other => format!("The NVIDIA driver does not tell of its cards: {other}"),
    }
}

fn sample(nvml: &Nvml, count: u32, options: &HostOptions) -> Seen {
    let (mut gpus, mut silent) = (Vec::new(), Vec::new());
    for index in 0..count {
        match nvml.device_by_index(index) {
            Ok(device) => gpus.push(card(nvml, index as usize, &device, options)),
            Err(error) => silent.push(format!("Card {index} does not answer: {error}")),
        }
    }
    if count == 0 {
        silent.push("An NVIDIA driver is loaded, but it has no card".into());
    }
    Seen { gpus, gpu_note: (!silent.is_empty()).then(|| silent.join(". ")) }
}

/// One card. Whatever it does not tell, for any reason, is left out: a card is no worse for it.
fn card(nvml: &Nvml, index: usize, device: &Device<'_>, options: &HostOptions) -> Gpu {
    let memory = device.memory_info().ok();
    let watts = |milliwatts: u32| f64::from(milliwatts) / 1000.0;
    let limit = device.enforced_power_limit().or_else(|_| device.power_management_limit());
    let cuda = nvml.sys_cuda_driver_version().ok();
    let capability = device.cuda_compute_capability().ok();
    Gpu {
        index,
        name: device.name().unwrap_or_else(|_| "NVIDIA card".into()),
        uuid: device.uuid().ok(),
        is_usable: false,
        vram_total_bytes: memory.as_ref().map_or(0, |memory| memory.total),
        vram_free_bytes: memory.as_ref().map_or(0, |memory| memory.free),
        utilization_percent: device.utilization_rates().ok().map(|rates| rates.gpu),
        temperature_celsius: device.temperature(TemperatureSensor::Gpu).ok(),
        power_watts: device.power_usage().ok().map(watts),
        power_limit_watts: limit.ok().map(watts),
        graphics_clock_mhz: device.clock_info(Clock::Graphics).ok(),
        memory_clock_mhz: device.clock_info(Clock::Memory).ok(),
        pcie: pcie(device),
        driver: nvml.sys_driver_version().ok(),
        cuda: cuda.map(|version| {
            format!("{}.{}", cuda_driver_version_major(version), cuda_driver_version_minor(version))
        }),
        compute_capability: capability.map(|version| (version.major as u32, version.minor as u32)),
        processes: processes(nvml, device, options),
        advice: Vec::new(),
    }
}

fn pcie(device: &Device<'_>) -> Option<PcieLink> {
    Some(PcieLink {
        generation: device.current_pcie_link_gen().ok()?,
        width: device.current_pcie_link_width().ok()?,
        max_generation: device.max_pcie_link_gen().ok(),
        max_width: device.max_pcie_link_width().ok(),
    })
}

/// Who holds the card's memory, the largest first; none if it does not tell.
fn processes(nvml: &Nvml, device: &Device<'_>, options: &HostOptions) -> Option<Vec<GpuProcess>> {
    let kinds = [device.running_compute_processes(), device.running_graphics_processes()];
    if kinds.iter().all(Result::is_err) {
        return None;
    }
    let mut bytes_of: BTreeMap<u32, Option<u64>> = BTreeMap::new();
    for process in kinds.into_iter().flatten().flatten() {
        let bytes = match process.used_gpu_memory {
            UsedGpuMemory::Used(bytes) => Some(bytes),
            UsedGpuMemory::Unavailable => None,
        };
        // One that computes and draws is in both lists, with all it has in each.
        let of_both = bytes_of.entry(process.pid).or_default();
        *of_both = (*of_both).max(bytes);
    }
    let our_program = options.worker_exe.file_name().map(|name| name.to_string_lossy());
    let describe = |(pid, bytes)| {
        let command = nvml.sys_process_name(pid, 256).ok();
        let name = command.as_deref().map(program_name);
        let is_ours = pid == std::process::id() || (name.is_some() && name == our_program.as_deref());
        GpuProcess { pid, name: name.map(str::to_owned), bytes, is_ours }
    };
    let mut processes: Vec<GpuProcess> = bytes_of.into_iter().map(describe).collect();
    processes.sort_by_key(|process| std::cmp::Reverse(process.bytes));
    Some(processes)
}

/// Of a path, perhaps with arguments: browsers write theirs over the path.
fn program_name(command: &str) -> &str {
    let path = command.split(" -").next().unwrap_or(command);
    path.rsplit(['/', '\\']).next().unwrap_or(path).trim()
}
