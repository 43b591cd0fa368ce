use lathe_protocol::{
    AdapterEntry, ChatLane, CommandBody, Connection, Download, DownloadStatus, Event, EventBody, Hardware,
    ModelEntry, RunEntry, RunStatus, SettingsView, Shell, Style,
};

use crate::{Asked, Outbox, theme::Tone};

const HUB: &str = "https://huggingface.co";

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
    /// Followed, too.
    pub downloads: Asked<Vec<Download>>,
    pub settings: Asked<SettingsView>,
    /// What surrounds the window.
    pub shell: Asked<Shell>,
    /// Seconds since 1970.
    pub now_secs: f64,
    /// How the way to the host stands.
    pub connection: Connection,
}

impl Store {
    /// Asks everything once.
    pub(crate) fn open(&mut self, out: &mut Outbox) {
        self.settings.ask(out, CommandBody::SettingsShow);
        self.shell.ask(out, CommandBody::ShellShow);
        self.hardware.ask(out, CommandBody::Hardware);
        self.runs.ask(out, CommandBody::RunsFollow);
        self.downloads.ask(out, CommandBody::DownloadsFollow);
        self.models.ask(out, CommandBody::ModelsList);
        self.adapters.ask(out, CommandBody::AdaptersList);
    }

    pub(crate) fn apply(&mut self, event: &Event, out: &mut Outbox) {
        self.apply_downloads(event, out);
        let Self { hardware, gpus, models, adapters, runs, settings, shell, .. } = self;
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
        shell.apply(event, |body| match body {
            EventBody::Shell(shell) => {
                out.has_dialogs = shell.has_dialogs;
                Some(shell.clone())
            }
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

    /// A download that ends is told wherever the window is, and its model is there to be chosen.
    fn apply_downloads(&mut self, event: &Event, out: &mut Outbox) {
        let Self { downloads, models, .. } = self;
        if downloads.job() == Some(event.job)
            && let (EventBody::Downloads { downloads: now }, Some(before)) = (&event.body, &downloads.value)
        {
            let was = |now: &Download| before.iter().find(|before| before.model == now.model);
            let changed = |now: &&Download| was(now).is_some_and(|before| before.status != now.status);
            for download in now.iter().filter(changed) {
                match download.status {
                    DownloadStatus::Done => {
                        out.toast(Tone::Success, format!("{} is on this machine now", download.model));
                        models.ask(out, CommandBody::ModelsList);
                    }
                    DownloadStatus::Failed => {
                        out.toast(Tone::Error, format!("{} could not be downloaded", download.model));
                    }
                    DownloadStatus::Queued | DownloadStatus::Running | DownloadStatus::Paused => {}
                }
            }
        }
        downloads.apply(event, |body| match body {
            EventBody::Downloads { downloads } => Some(downloads.clone()),
            _ => None,
        });
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

    pub fn downloads(&self) -> &[Download] {
        self.downloads.value.as_deref().unwrap_or_default()
    }

    pub fn download(&self, model: &str) -> Option<&Download> {
        self.downloads().iter().find(|download| download.model == model)
    }

    /// The entry that a model of that name has here, if it can be used; one GGUF file of a repository
    /// (`owner/name/file.gguf`) may be listed by its quantisation, or be all there is of it.
    pub fn usable_model(&self, name: &str) -> Option<&ModelEntry> {
        let usable = || self.models().iter().filter(|model| model.problem.is_none());
        let file = name.splitn(3, '/').nth(2);
        let is_it = |model: &&ModelEntry| {
            let is_alone = model.name == repo_of(name) && model.shape.is_some_and(|shape| shape.is_gguf);
            is_alone || file.is_some_and(|file| model.path.ends_with(file))
        };
        usable().find(|model| model.name == name).or_else(|| usable().find(is_it))
    }

    /// A model's page on the Hub.
    pub fn page_of(&self, model: &str) -> String {
        let settings = self.settings.value.as_ref().map(|view| view.settings.endpoint.as_str());
        let hub = settings.map(|endpoint| endpoint.trim_end_matches('/')).filter(|url| !url.is_empty());
        format!("{}/{}", hub.unwrap_or(HUB), repo_of(model))
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

/// `owner/name` of a model of the Hub, or of one file of it: `owner/name:Q4_K_M`, `owner/name/file.gguf`.
pub fn repo_of(model: &str) -> &str {
    let model = model.split(':').next().unwrap_or(model);
    model.match_indices('/').nth(1).map_or(model, |(end, _)| &model[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_a_repository_is_known_by_it() {
        for name in ["a/b", "a/b:Q4_K_M", "a/b/c-Q4.gguf", "a/b/sub/c.gguf"] {
            assert_eq!(repo_of(name), "a/b");
        }
        assert_eq!(repo_of("starter"), "starter");
        assert_eq!(Store::default().page_of("a/b:Q8_0"), "https://huggingface.co/a/b");
    }
}
