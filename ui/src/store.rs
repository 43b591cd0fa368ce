use lathe_protocol::{
    AdapterEntry, ChatLane, CommandBody, Connection, Event, EventBody, Hardware, ModelEntry, RunEntry,
    RunStatus, SettingsView, Style,
};

use crate::{Asked, Outbox};

/// What every screen may look at, as the host last told it.
#[derive(Default)]
pub struct Store {
    pub hardware: Asked<Hardware>,
    /// Followed while they are shown; what comes goes into `hardware`.
    pub(crate) gpus: Asked<()>,
    pub models: Asked<Vec<ModelEntry>>,
    pub adapters: Asked<Vec<AdapterEntry>>,
    /// Followed: always up to date.
    pub runs: Asked<Vec<RunEntry>>,
    pub settings: Asked<SettingsView>,
    /// Seconds since 1970.
    pub now_secs: f64,
    /// How the way to the host stands.
    pub connection: Connection,
}

impl Store {
    /// Asks everything once.
    pub(crate) fn open(&mut self, out: &mut Outbox) {
        self.settings.ask(out, CommandBody::SettingsShow);
        self.hardware.ask(out, CommandBody::Hardware);
        self.runs.ask(out, CommandBody::RunsFollow);
        self.models.ask(out, CommandBody::ModelsList);
        self.adapters.ask(out, CommandBody::AdaptersList);
    }

    pub(crate) fn apply(&mut self, event: &Event, out: &mut Outbox) {
        let Self { hardware, gpus, models, adapters, runs, settings, .. } = self;
        hardware.apply(event, |body| match body {
            EventBody::Hardware(hardware) => Some(hardware.clone()),
            _ => None,
        });
        gpus.apply(event, |body| {
            if let (EventBody::Gpus { gpus, gpu_note }, Some(hardware)) = (body, &mut hardware.value) {
                hardware.gpus.clone_from(gpus);
                hardware.gpu_note.clone_from(gpu_note);
            }
            None
        });
        models.apply(event, |body| match body {
            EventBody::Models { models } => Some(models.clone()),
            _ => None,
        });
        adapters.apply(event, |body| match body {
            EventBody::Adapters { adapters } => Some(adapters.clone()),
            _ => None,
        });
        settings.apply(event, |body| match body {
            EventBody::Settings(settings) => Some((**settings).clone()),
            _ => None,
        });
        let ended = |runs: &Asked<Vec<RunEntry>>| {
            let is_over = |run: &&RunEntry| matches!(run.status, RunStatus::Completed | RunStatus::Kept);
            runs.value.iter().flatten().filter(is_over).count()
        };
        let ended_before = ended(runs);
        runs.apply(event, |body| match body {
            EventBody::Runs { runs } => Some(runs.clone()),
            _ => None,
        });
        // A run that ended has put an adapter into the library.
        if ended(runs) != ended_before && !adapters.is_waiting() {
            adapters.ask(out, CommandBody::AdaptersList);
        }
    }

    pub fn runs(&self) -> &[RunEntry] {
        self.runs.value.as_deref().unwrap_or_default()
    }

    pub fn run(&self, id: &str) -> Option<&RunEntry> {
        self.runs().iter().find(|run| run.id == id)
    }

    pub fn models(&self) -> &[ModelEntry] {
        self.models.value.as_deref().unwrap_or_default()
    }

    pub fn model(&self, name: &str) -> Option<&ModelEntry> {
        self.models().iter().find(|model| model.name == name)
    }

    pub fn adapters(&self) -> &[AdapterEntry] {
        self.adapters.value.as_deref().unwrap_or_default()
    }

    /// The ways of answering that a lane's adapters know.
    pub fn styles_of<'a>(&'a self, lane: &ChatLane) -> impl Iterator<Item = &'a Style> {
        let worn = self.adapters().iter().filter(|adapter| lane.adapters.contains(&adapter.name));
        worn.flat_map(|adapter| &adapter.styles)
    }

    /// Whether there are graphics cards, be they of use or not.
    pub fn sees_gpus(&self) -> bool {
        self.hardware.value.as_ref().is_some_and(|hardware| !hardware.gpus.is_empty())
    }

    /// Bytes a job may take: the memory of the machine, or of the largest GPU that jobs can use.
    pub fn memory_bytes(&self) -> Option<u64> {
        let hardware = self.hardware.value.as_ref()?;
        Some(hardware.usable_gpus().map(|gpu| gpu.vram_total_bytes).max().unwrap_or(hardware.ram_total_bytes))
    }
}
