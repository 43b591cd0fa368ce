//! The graphics cards, as NVML tells of them: a library of NVIDIA's driver, loaded when it is first asked.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use lathe_protocol::{ErrorCode, ErrorInfo, EventBody, Gpu, GpuProcess, LogLevel, PcieLink};
use nvml_wrapper::{
    Device, Nvml, cuda_driver_version_major, cuda_driver_version_minor,
    enum_wrappers::device::{Clock, TemperatureSensor},
    enums::device::UsedGpuMemory,
    error::NvmlError,
};

use crate::{
    HostOptions, Shared,
    cuda::{self, Missing},
    hardware,
    job::Job,
    units::gib,
};

const FOLLOW_EVERY: Duration = Duration::from_secs(1);
/// A driver that did not answer is tried again this late: it may start a program of its own to load itself.
const RETRY_AFTER: Duration = Duration::from_secs(30);
/// There where the driver's kernel module is loaded (Linux).
const DRIVER_RUNS: &str = "/proc/driver/nvidia/version";
/// How long a card may take to get back what a worker had, and how much of it is nobody's business.
const GIVEN_BACK_WITHIN: Duration = Duration::from_secs(10);
const GIVEN_BACK_SLACK: u64 = 256 << 20;

/// What a look at the cards found.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Seen {
    pub(crate) gpus: Vec<Gpu>,
    /// Why runs use none, or some are missing.
    pub(crate) gpu_note: Option<String>,
    /// What to do about that.
    pub(crate) missing: Vec<Missing>,
    /// Whether there are cards, though the driver tells of none.
    pub(crate) hides_cards: bool,
}

impl Seen {
    pub(crate) fn usable(&self) -> impl Iterator<Item = &Gpu> {
        self.gpus.iter().filter(|gpu| gpu.is_usable)
    }

    /// Why a card that is here is not computed on, if none of them is.
    pub(crate) fn refusal(&self) -> Option<ErrorInfo> {
        if self.usable().next().is_some() || (self.gpus.is_empty() && !self.hides_cards) {
            return None;
        }
        let why = self.gpu_note.as_deref().unwrap_or("no card is usable");
        let error = ErrorInfo::new(ErrorCode::NeedsCpu, format!("The graphics card cannot be used: {why}"));
        let hints = cuda::hints(&self.missing);
        let then = if hints.is_empty() { String::new() } else { format!("{hints}; ") };
        Some(error.hint(format!("{then}or compute on the CPU: --device cpu")))
    }
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
    /// All cards as they are right now, and what runs can use of them.
    pub(crate) fn look(&self, options: &HostOptions) -> Seen {
        let mut seen = self.ask_driver(options);
        if options.gpus.is_empty() {
            tell_usable(&mut seen, options);
        }
        for usable in &options.gpus {
            match seen.gpus.iter_mut().find(|gpu| gpu.index == usable.index) {
                Some(gpu) => gpu.is_usable = true,
                None => seen.gpus.push(Gpu { is_usable: true, ..usable.clone() }),
            }
        }
        for gpu in seen.gpus.iter_mut().filter(|gpu| gpu.vram_total_bytes > 0) {
            gpu.advice = hardware::card_advice(gpu.vram_total_bytes);
        }
        seen
    }

    /// A card's free bytes, if the driver tells.
    pub(crate) fn free_bytes(&self, options: &HostOptions, index: usize) -> Option<u64> {
        self.ask_driver(options).gpus.iter().find(|gpu| gpu.index == index).map(|gpu| gpu.vram_free_bytes)
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
            Driver::Absent(why, _) => return nothing_seen(why.clone(), options),
            Driver::Unasked => return Seen::default(),
        };
        looked.unwrap_or_else(|error| {
            // It answered once: the next look opens it anew.
            *driver = Driver::Unasked;
            nothing_seen(why_absent(&error, options), options)
        })
    }
}

/// Where the driver runs there is a card, but one that is named for us is another's.
fn nothing_seen(why: String, options: &HostOptions) -> Seen {
    let hides_cards = options.nvml.is_none() && Path::new(DRIVER_RUNS).exists();
    Seen { gpu_note: Some(why), hides_cards, ..Seen::default() }
}

/// Marks the cards that runs can use, and says what stands against the others.
fn tell_usable(seen: &mut Seen, options: &HostOptions) {
    let Seen { gpus, gpu_note, missing, .. } = seen;
    if gpus.is_empty() {
        return;
    }
    let mut notes = Vec::new();
    missing.extend(cuda::driver_lacks(gpus));
    missing.extend(cuda::find(options).err().unwrap_or_default());
    if !missing.is_empty() {
        notes.push(cuda::sentences(missing));
    }
    for gpu in gpus {
        let lacks = cuda::card_lacks(gpu, options.cuda_visible.as_deref());
        gpu.is_usable = missing.is_empty() && lacks.is_none();
        notes.extend(lacks);
    }
    notes.extend(gpu_note.take());
    *gpu_note = (!notes.is_empty()).then(|| notes.join(". "));
}

/// Waits until a card has about as much free as it had before a worker took some, so that the next finds it.
pub(crate) fn await_given_back(job: &Job, index: usize, before: u64) {
    let Shared { gpus, options, .. } = &*job.host;
    let due = Instant::now() + GIVEN_BACK_WITHIN;
    while let Some(free) = gpus.free_bytes(options, index) {
        if free + GIVEN_BACK_SLACK >= before || job.host.is_closing() {
            return;
        }
        if Instant::now() >= due {
            let message = format!(
                "Card {index} has {} free, {} before the worker: something else has taken memory",
                gib(free),
                gib(before)
            );
            return job.log(LogLevel::Warn, message);
        }
        thread::sleep(Duration::from_millis(100));
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
            let Seen { gpus, gpu_note, .. } = seen.clone();
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
            None if Path::new(DRIVER_RUNS).exists() => {
                "An NVIDIA driver is loaded, but its library libnvidia-ml.so.1 is not here: \
                 a container must be started with it (--gpus all)"
                    .into()
            }
            None => "No NVIDIA driver found: runs compute on the CPU".into(),
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
    Seen { gpus, gpu_note: (!silent.is_empty()).then(|| silent.join(". ")), ..Seen::default() }
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
    let our_programs =
        [options.worker_exe.file_name().map(|name| name.to_string_lossy()), Some(cuda::worker_file().into())];
    let describe = |(pid, bytes)| {
        let command = nvml.sys_process_name(pid, 256).ok();
        let name = command.as_deref().map(program_name);
        let is_ours = pid == std::process::id()
            || (name.is_some() && our_programs.iter().any(|ours| ours.as_deref() == name));
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
