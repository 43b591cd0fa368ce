use serde::{Deserialize, Serialize};

/// This machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Hardware {
    pub os: String,
    pub cpu: String,
    pub physical_cores: usize,
    pub logical_cores: usize,
    /// Instruction sets that matter for speed, e.g. `avx2`, `avx512f`.
    pub cpu_features: Vec<String>,
    pub ram_total_bytes: u64,
    pub ram_available_bytes: u64,
    /// Where Lathe keeps its data.
    pub data_dir: String,
    pub disk_total_bytes: u64,
    pub disk_free_bytes: u64,
    /// All that are seen, whether runs can use them or not.
    pub gpus: Vec<Gpu>,
    /// Why runs use none of `gpus`, or some are missing there, in a sentence.
    pub gpu_note: Option<String>,
    /// What this machine can run and fine-tune on its CPU, in words.
    pub advice: Vec<String>,
}

impl Hardware {
    /// The cards that a run can be computed on.
    pub fn usable_gpus(&self) -> impl Iterator<Item = &Gpu> {
        self.gpus.iter().filter(|gpu| gpu.is_usable)
    }

    /// What a run can run on: the GPUs, then the CPU.
    pub fn devices(&self) -> Vec<String> {
        self.usable_gpus().map(Gpu::device).chain(["cpu".to_owned()]).collect()
    }
}

/// A graphics card, as its driver tells of it. None is what this card does not tell.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Gpu {
    /// In the driver's order, which is that of the slots; CUDA's own may be another.
    pub index: usize,
    pub name: String,
    /// What it is known by whatever the order, e.g. `GPU-7e6b0c9a-…`.
    pub uuid: Option<String>,
    /// Whether runs can be computed on it: of a card that is merely seen, nothing may be planned.
    pub is_usable: bool,
    /// 0 if unknown.
    pub vram_total_bytes: u64,
    pub vram_free_bytes: u64,
    pub utilization_percent: Option<u32>,
    pub temperature_celsius: Option<u32>,
    pub power_watts: Option<f64>,
    pub power_limit_watts: Option<f64>,
    pub graphics_clock_mhz: Option<u32>,
    pub memory_clock_mhz: Option<u32>,
    pub pcie: Option<PcieLink>,
    pub driver: Option<String>,
    /// The newest CUDA that the driver can run, e.g. `13.0`.
    pub cuda: Option<String>,
    pub compute_capability: Option<(u32, u32)>,
    /// Who holds its memory, the largest first.
    pub processes: Option<Vec<GpuProcess>>,
    /// What it has room to fine-tune and run, in words.
    pub advice: Vec<String>,
}

impl Gpu {
    /// As a run names it, e.g. `cuda:0`.
    pub fn device(&self) -> String {
        format!("cuda:{}", self.index)
    }

    pub fn vram_used_bytes(&self) -> u64 {
        self.vram_total_bytes.saturating_sub(self.vram_free_bytes)
    }

    /// What [`Self::advice`] is: a promise, of a card that cannot be used yet.
    pub fn advice_title(&self) -> &'static str {
        if self.is_usable {
            "What it has room for"
        } else {
            "What it will have room for, once Lathe can use it"
        }
    }

    /// The facts that change by the second, each in words, e.g. `93 % busy`.
    pub fn load(&self) -> Vec<String> {
        let power = self.power_watts.map(|watts| match self.power_limit_watts {
            Some(limit) => format!("{watts:.0} of {limit:.0} W"),
            None => format!("{watts:.0} W"),
        });
        let clocks = match (self.graphics_clock_mhz, self.memory_clock_mhz) {
            (Some(graphics), Some(memory)) => Some(format!("{graphics} MHz, memory {memory} MHz")),
            (Some(graphics), None) => Some(format!("{graphics} MHz")),
            (None, Some(memory)) => Some(format!("memory {memory} MHz")),
            (None, None) => None,
        };
        let facts = [
            self.utilization_percent.map(|percent| format!("{percent} % busy")),
            self.temperature_celsius.map(|celsius| format!("{celsius} °C")),
            power,
            clocks,
        ];
        facts.into_iter().flatten().collect()
    }

    /// The facts that stay, each in words, e.g. `compute 9.0`. The link's speed is among them, though it idles slower.
    pub fn build(&self) -> Vec<String> {
        let facts = [
            self.compute_capability.map(|(major, minor)| format!("compute {major}.{minor}")),
            self.pcie.map(PcieLink::words),
            self.driver.as_ref().map(|driver| format!("driver {driver}")),
            self.cuda.as_ref().map(|cuda| format!("CUDA up to {cuda}")),
        ];
        facts.into_iter().flatten().collect()
    }
}

/// How a card is connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PcieLink {
    /// Now: an idle card takes its link down.
    pub generation: u32,
    pub width: u32,
    /// What card and slot can do together.
    pub max_generation: Option<u32>,
    pub max_width: Option<u32>,
}

impl PcieLink {
    /// E.g. `PCIe 1 ×16 of 4 ×16`.
    fn words(self) -> String {
        let Self { generation, width, max_generation, max_width } = self;
        let now = format!("PCIe {generation} ×{width}");
        match (max_generation, max_width) {
            (Some(most), Some(widest)) if (most, widest) != (generation, width) => {
                format!("{now} of {most} ×{widest}")
            }
            _ => now,
        }
    }
}

/// A program with memory on a card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GpuProcess {
    pub pid: u32,
    /// Of its program file; none of another's process, if the system keeps that to itself.
    pub name: Option<String>,
    /// None where the system, not the driver, gives out the memory (Windows).
    pub bytes: Option<u64>,
    /// Whether it is a Lathe.
    pub is_ours: bool,
}

impl GpuProcess {
    /// E.g. `Lathe`, `Xorg`, `process 4711`.
    pub fn words(&self) -> String {
        match &self.name {
            _ if self.is_ours => "Lathe".into(),
            Some(name) => name.clone(),
            None => format!("process {}", self.pid),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_that_is_seen_is_no_device() {
        let (seen, usable) =
            (Gpu::default(), Gpu { index: 1, is_usable: true, vram_total_bytes: 7, ..Gpu::default() });
        let machine = Hardware {
            os: String::new(),
            cpu: String::new(),
            physical_cores: 1,
            logical_cores: 1,
            cpu_features: Vec::new(),
            ram_total_bytes: 0,
            ram_available_bytes: 0,
            data_dir: String::new(),
            disk_total_bytes: 0,
            disk_free_bytes: 0,
            gpus: vec![seen, usable],
            gpu_note: None,
            advice: Vec::new(),
        };
        assert_eq!(machine.devices(), ["cuda:1", "cpu"]);
    }

    #[test]
    fn a_card_is_told_as_far_as_it_tells() {
        assert!(Gpu::default().load().is_empty() && Gpu::default().build().is_empty());
        let link = PcieLink { generation: 1, width: 16, max_generation: Some(4), max_width: Some(16) };
        assert_eq!(link.words(), "PCIe 1 ×16 of 4 ×16");
        assert_eq!(PcieLink { generation: 4, ..link }.words(), "PCIe 4 ×16");
        let gpu = Gpu { power_watts: Some(71.4), memory_clock_mhz: Some(405), ..Gpu::default() };
        assert_eq!(gpu.load(), ["71 W", "memory 405 MHz"]);
        let older: Gpu =
            serde_json::from_str(r#"{"index": 0, "name": "T4"}"#).expect("fields may be missing");
        assert_eq!(older, Gpu { name: "T4".into(), ..Gpu::default() });
    }
}
