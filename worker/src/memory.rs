//! The memory of this process.

use lathe_engine::train::ProcessMemory;

/// As the kernel counts it: no peak is missed.
#[cfg(target_os = "linux")]
pub(crate) struct Meter;

#[cfg(target_os = "linux")]
impl Meter {
    pub fn start() -> Self {
        Self
    }

    /// None if the system does not tell.
    #[expect(clippy::unused_self, reason = "elsewhere a thread looks")]
    pub fn read(&self) -> Option<ProcessMemory> {
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        let bytes = |key: &str| {
            let kib = status.lines().find_map(|line| line.strip_prefix(key))?.trim().strip_suffix(" kB")?;
            Some(kib.parse::<u64>().ok()? * 1024)
        };
        Some(ProcessMemory { now: bytes("VmRSS:")?, peak: bytes("VmHWM:")? })
    }
}

#[cfg(not(target_os = "linux"))]
pub(crate) use sampled::Meter;

/// Where no peak is kept: looked at again and again.
#[cfg(any(test, not(target_os = "linux")))]
mod sampled {
    use std::{
        sync::{
            Arc,
            atomic::{AtomicU64, Ordering},
        },
        thread,
        time::Duration,
    };

    use lathe_engine::train::ProcessMemory;
    use sysinfo::{Pid, ProcessRefreshKind, ProcessesToUpdate, System};

    const EVERY: Duration = Duration::from_millis(5);

    pub(crate) struct Meter {
        peak: Arc<AtomicU64>,
    }

    impl Meter {
        pub fn start() -> Self {
            let peak = Arc::new(AtomicU64::new(0));
            let seen = Arc::downgrade(&peak);
            let watch = move || {
                let Ok(mut system) = System::new() else { return };
                while let Some(peak) = seen.upgrade() {
                    peak.fetch_max(resident(&mut system).unwrap_or(0), Ordering::Relaxed);
                    drop(peak);
                    thread::sleep(EVERY);
                }
            };
            // Without it the peak is the most of what `read` sees.
            thread::Builder::new().name("memory".into()).spawn(watch).ok();
            Self { peak }
        }

        /// None if the system does not tell.
        pub fn read(&self) -> Option<ProcessMemory> {
            let now = resident(&mut System::new().ok()?)?;
            Some(ProcessMemory { now, peak: self.peak.fetch_max(now, Ordering::Relaxed).max(now) })
        }
    }

    fn resident(system: &mut System) -> Option<u64> {
        let pid = Pid::from_u32(std::process::id());
        let kind = ProcessRefreshKind::nothing().with_memory();
        system.refresh_processes_specifics(ProcessesToUpdate::Some(&[pid]), true, kind);
        system.process(pid).map(sysinfo::Process::memory)
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::{thread, time::Duration};

    use super::*;

    #[test]
    fn a_peak_is_remembered_by_the_kernel_and_by_the_sampler() {
        const BYTES: u64 = 64 << 20;
        let (kernel, sampler) = (Meter::start(), sampled::Meter::start());
        let before = kernel.read().unwrap().now;
        let filled = vec![1u8; BYTES as usize];
        thread::sleep(Duration::from_millis(200));
        assert_eq!(std::hint::black_box(&filled).len() as u64, BYTES);
        drop(filled);
        for memory in [kernel.read().unwrap(), sampler.read().unwrap()] {
            assert!(memory.now < before + BYTES / 2, "{memory:?}, {before} before");
            assert!(memory.peak >= before + BYTES * 9 / 10, "{memory:?}, {before} before");
        }
    }
}
