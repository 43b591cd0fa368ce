//! `lathe estimate`: what a run takes, before it is started.

use std::process::ExitCode;

use lathe_protocol::{
    CommandBody, ErrorCode, ErrorInfo, EventBody, Gpu, Hardware, Method, ModelShape, Placement, ProbeReport,
    Quant, Remedy, RunConfig, in_catalog, training_memory,
};
use lathe_ui::{
    Fit,
    format::{count, gib, plural},
};
use serde_json::{Value, json};

use super::{Outcome, hub, read_config, unexpected};
use crate::{
    cli::ConfigArgs,
    output::{fields, table},
    session::Session,
};

/// Sizes of cards, in GiB.
const CARDS: [u64; 6] = [12, 16, 24, 48, 80, 141];
/// Lengths of rows that are told apart.
const LENGTH_STEP: usize = 256;

pub fn run(session: &mut Session, model: &str, config: &ConfigArgs, probe: bool) -> Outcome {
    let config = read_config(config)?;
    let shape = shape_of(session, model)?;
    if config.base_quant() != Quant::None && shape.refuses_nf4() {
        let message = format!("Its weights are quantised already, and NF4 would round them again: {model}");
        return Err(ErrorInfo::new(ErrorCode::Usage, message).hint("use method=lora and quant=none"));
    }
    let EventBody::Hardware(machine) = session.ask(CommandBody::Hardware)? else { return Err(unexpected()) };
    if session.device != "auto" && !machine.devices().contains(&session.device) {
        let is_seen = machine.gpus.iter().any(|gpu| gpu.device() == session.device);
        let what = if is_seen {
            format!("Device {} cannot be used", session.device)
        } else {
            format!("This machine has no device {}", session.device)
        };
        let why = machine.gpu_note.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
        return Err(ErrorInfo::new(ErrorCode::Device, what + &why)
            .hint(format!("it has {}", machine.devices().join(", "))));
    }
    let report = if probe { Some(measure(session, model, &config)?) } else { None };
    if session.out.json {
        session.out.object(&as_json(model, &shape, &config, &machine, report.as_ref()));
    } else {
        let measured = report.as_ref().map(|report| format!("\n{}", measured_text(report)));
        let predicted = as_text(model, &shape, &config, &machine, &session.device);
        session.out.text(&(predicted + &measured.unwrap_or_default()));
    }
    Ok(ExitCode::SUCCESS)
}

fn measure(session: &mut Session, model: &str, config: &RunConfig) -> Result<ProbeReport, ErrorInfo> {
    let command = CommandBody::Probe {
        model: model.to_owned(),
        config: config.clone(),
        longest_row: None,
        device: session.device.clone(),
    };
    match session.ask(command)? {
        EventBody::Probe(report) => Ok(report),
        _ => Err(unexpected()),
    }
}

fn measured_text(report: &ProbeReport) -> String {
    let row = |name: &str, predicted, measured| vec![name.to_owned(), gib(predicted), gib(measured)];
    let mut rows: Vec<Vec<String>> =
        report.phases().into_iter().map(|phase| row(phase.name, phase.predicted, phase.measured)).collect();
    rows.push(row("In all", report.predicted.total(), report.measured.peak));
    format!("{}\n{}\n", table(&["ONE STEP HERE", ">PREDICTED", ">MEASURED"], &rows), report.verdict())
}

/// From the model's own files, the catalog or the Hub: a model need not be here to be reckoned with.
fn shape_of(session: &mut Session, model: &str) -> Result<ModelShape, ErrorInfo> {
    match session.ask(CommandBody::ModelsShow { model: model.to_owned() }) {
        Ok(EventBody::ModelDetails(details)) => Ok(details.shape),
        Ok(_) => Err(unexpected()),
        Err(error) if error.code == ErrorCode::NotFound => match in_catalog(model) {
            Some(model) => Ok(model.shape),
            None if hub::is_hub_name(model) => hub::shape(session, model),
            None => Err(error),
        },
        Err(error) => Err(error),
    }
}

/// Bytes of a run with rows of up to `max_seq_len` tokens.
fn needed(shape: &ModelShape, config: &RunConfig, placement: Placement) -> u64 {
    training_memory(shape, config, config.max_seq_len, placement).total()
}

/// What makes a run that is too big fit a device.
fn remedy(shape: &ModelShape, config: &RunConfig, placement: Placement, memory_bytes: u64) -> Option<Remedy> {
    Remedy::find(shape, config, config.max_seq_len, placement, Fit::budget(memory_bytes))
}

/// The most tokens a row may have on a card; 0 if not even the shortest fit.
fn longest_row(shape: &ModelShape, config: &RunConfig, card_bytes: u64) -> usize {
    let fits = |steps: usize| {
        let config = RunConfig { max_seq_len: steps * LENGTH_STEP, ..config.clone() };
        !matches!(Fit::of(needed(shape, &config, Placement::Cuda), card_bytes), Fit::TooBig(_))
    };
    let (mut low, mut high) = (0, shape.context_length / LENGTH_STEP);
    while low < high {
        let middle = (low + high).div_ceil(2);
        if fits(middle) {
            low = middle;
        } else {
            high = middle - 1;
        }
    }
    low * LENGTH_STEP
}

/// Each card, how the run fits it, and the longest row it takes.
fn cards(shape: &ModelShape, config: &RunConfig) -> impl Iterator<Item = (u64, Fit, usize)> {
    CARDS.into_iter().map(|gigabytes| {
        let card_bytes = gigabytes << 30;
        let fit = Fit::of(needed(shape, config, Placement::Cuda), card_bytes);
        (gigabytes, fit, longest_row(shape, config, card_bytes))
    })
}

fn as_text(model: &str, shape: &ModelShape, config: &RunConfig, machine: &Hardware, device: &str) -> String {
    let [cpu, cuda] = [Placement::Cpu, Placement::Cuda]
        .map(|placement| training_memory(shape, config, config.max_seq_len, placement));
    let mut rows: Vec<Vec<String>> = cpu
        .parts()
        .into_iter()
        .zip(cuda.parts())
        .map(|((name, on_cpu), (_, on_card))| vec![name.into(), gib(on_cpu), gib(on_card)])
        .collect();
    rows.push(vec!["In all".into(), gib(cpu.total()), gib(cuda.total())]);
    let here = here(shape, config, machine, device);
    let card_rows: Vec<Vec<String>> = cards(shape, config)
        .map(|(gigabytes, fit, longest)| {
            let fit = match fit {
                Fit::TooBig(bytes) if bytes > 0 => format!("{} short", gib(bytes)),
                other => other.word().to_lowercase(),
            };
            let longest = if longest == 0 { "-".into() } else { count(longest as u64) };
            vec![format!("{gigabytes} GB"), fit, longest]
        })
        .collect();
    format!(
        "{}\n{}\n{here}\n{}",
        fields(&[("Model", model.into()), ("Run", describe(config))]),
        table(&["MEMORY", ">ON THE CPU", ">ON A GPU"], &rows),
        table(&["CARD", "FIT", ">LONGEST ROW, TOKENS"], &card_rows),
    )
}

/// How the run fits this machine's devices, or the one that was asked for, and what would.
fn here(shape: &ModelShape, config: &RunConfig, machine: &Hardware, device: &str) -> String {
    let cpu = ("cpu".to_owned(), "RAM".to_owned(), machine.ram_total_bytes, Placement::Cpu);
    let card = |gpu: &Gpu| (gpu.device(), gpu.name.clone(), gpu.vram_total_bytes, Placement::Cuda);
    let devices = machine.usable_gpus().map(card).chain([cpu]);
    let lines = devices.filter(|(name, ..)| device == "auto" || name == device).map(
        |(name, what, memory_bytes, placement)| {
            let needed = needed(shape, config, placement);
            let fit = Fit::of(needed, memory_bytes);
            let advice = match fit {
                Fit::TooBig(_) => {
                    format!("\n{}", Remedy::sentence(remedy(shape, config, placement, memory_bytes)))
                }
                Fit::Fits | Fit::Tight => String::new(),
            };
            format!("This machine’s {name}, {} of {what}: {}{advice}\n", gib(memory_bytes), fit.words(needed))
        },
    );
    lines.collect::<Vec<_>>().concat()
}

fn describe(config: &RunConfig) -> String {
    let method = match config.method {
        Method::Lora => format!("LoRA, r = {}", config.lora.r),
        Method::Qlora => format!("QLoRA, r = {}", config.lora.r),
        Method::Full => "every weight".into(),
    };
    let checkpointing = match config.recomputed_blocks() {
        None => String::new(),
        Some(1) => ", gradient checkpointing".into(),
        Some(blocks) => format!(", gradient checkpointing of {blocks} blocks at a time"),
    };
    format!(
        "{method}, {} of {} tokens a batch{checkpointing}",
        plural(config.batch_size, "row"),
        count(config.max_seq_len as u64)
    )
}

fn as_json(
    model: &str,
    shape: &ModelShape,
    config: &RunConfig,
    machine: &Hardware,
    report: Option<&ProbeReport>,
) -> Value {
    let [cpu, cuda] = [Placement::Cpu, Placement::Cuda].map(|placement| {
        let estimate = training_memory(shape, config, config.max_seq_len, placement);
        json!({ "parts": estimate, "total_bytes": estimate.total() })
    });
    let cards: Vec<Value> = cards(shape, config)
        .map(|(gigabytes, fit, longest)| {
            let short_bytes = if let Fit::TooBig(bytes) = fit { bytes } else { 0 };
            json!({
                "gigabytes": gigabytes, "fit": fit.word(), "short_bytes": short_bytes, "longest_row": longest
            })
        })
        .collect();
    let fit = Fit::of(needed(shape, config, Placement::Cpu), machine.ram_total_bytes);
    let remedy =
        matches!(fit, Fit::TooBig(_)).then(|| remedy(shape, config, Placement::Cpu, machine.ram_total_bytes));
    json!({
        "kind": "estimate", "model": model, "cpu": cpu, "cuda": cuda, "cards": cards,
        "ram_total_bytes": machine.ram_total_bytes, "fit": fit.word(),
        "advice": remedy.map(Remedy::sentence), "settings": remedy.flatten().map(Remedy::settings),
        "probe": report.map(|report| json!({
            "predicted": report.predicted, "predicted_bytes": report.predicted.total(),
            "measured": report.measured, "ratio": report.ratio(),
            "row_tokens": report.row_tokens, "seconds": report.seconds
        }))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fits(model: &str, method: Method) -> Vec<(u64, &'static str)> {
        let config =
            RunConfig { method, max_seq_len: 2048, gradient_checkpointing: true, ..RunConfig::default() };
        let shape = in_catalog(model).unwrap().shape;
        cards(&shape, &config).map(|(gigabytes, fit, _)| (gigabytes, fit.word())).collect()
    }

    #[test]
    fn cards_take_what_their_size_says() {
        for (model, method, smallest) in [
            ("openai/gpt-oss-20b", Method::Lora, 16),
            ("Qwen/Qwen3-14B", Method::Qlora, 16),
            ("Qwen/Qwen3-14B", Method::Lora, 48),
        ] {
            for (gigabytes, fit) in fits(model, method) {
                assert_eq!(fit != "Does not fit", gigabytes >= smallest, "{model} on {gigabytes} GB: {fit}");
            }
        }
    }

    #[test]
    fn the_longest_row_is_the_last_that_fits() {
        let shape = in_catalog("Qwen/Qwen3-14B").unwrap().shape;
        let config =
            RunConfig { method: Method::Qlora, gradient_checkpointing: true, ..RunConfig::default() };
        let card_bytes = 24 << 30;
        let longest = longest_row(&shape, &config, card_bytes);
        let fit = |max_seq_len| {
            let config = RunConfig { max_seq_len, ..config.clone() };
            Fit::of(needed(&shape, &config, Placement::Cuda), card_bytes)
        };
        assert!(longest > 2048 && !matches!(fit(longest), Fit::TooBig(_)), "{longest}");
        assert!(matches!(fit(longest + LENGTH_STEP), Fit::TooBig(_)));
        assert_eq!(longest_row(&shape, &config, 1 << 30), 0);
        assert_eq!(longest_row(&shape, &config, 1 << 40), shape.context_length / LENGTH_STEP * LENGTH_STEP);
    }
}
