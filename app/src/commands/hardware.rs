use std::process::ExitCode;

use lathe_protocol::{CommandBody, EventBody, Gpu, GpuProcess, Hardware};
use lathe_ui::format::{bytes, gib};

use super::{Outcome, unexpected};
use crate::{output, session::Session};

pub fn run(session: &mut Session) -> Outcome {
    let answer = session.ask(CommandBody::Hardware)?;
    if session.out.json {
        session.out.object(&answer);
        return Ok(ExitCode::SUCCESS);
    }
    let EventBody::Hardware(machine) = answer else { return Err(unexpected()) };
    session.out.text(&describe(&machine));
    Ok(ExitCode::SUCCESS)
}

/// The machine, then a block a card.
pub fn describe(machine: &Hardware) -> String {
    let mut fields = vec![
        ("System", machine.os.clone()),
        (
            "CPU",
            format!("{}, {} cores, {} threads", machine.cpu, machine.physical_cores, machine.logical_cores),
        ),
        ("", machine.cpu_features.join(" ")),
        ("RAM", format!("{} free of {}", gib(machine.ram_available_bytes), gib(machine.ram_total_bytes))),
        ("Disk", format!("{} free of {}", bytes(machine.disk_free_bytes), bytes(machine.disk_total_bytes))),
        ("Data", machine.data_dir.clone()),
    ];
    fields.extend(machine.gpu_note.iter().map(|note| ("GPU", note.clone())));
    for (index, advice) in machine.advice.iter().enumerate() {
        fields.push((if index == 0 { "Fits" } else { "" }, advice.clone()));
    }
    let cards = machine.gpus.iter().map(|gpu| format!("\n{}", output::fields(&card(gpu))));
    output::fields(&fields) + &cards.collect::<String>()
}

fn card(gpu: &Gpu) -> Vec<(&'static str, String)> {
    let vram = match gpu.vram_total_bytes {
        0 => "not told".into(),
        total => format!("{} free of {}", gib(gpu.vram_free_bytes), gib(total)),
    };
    let mut fields = vec![
        ("GPU", format!("{}: {}", gpu.index, gpu.name)),
        ("", gpu.uuid.clone().unwrap_or_default()),
        ("Build", gpu.build().join(", ")),
        ("Load", gpu.load().join(", ")),
        ("Usable", if gpu.is_usable { format!("yes, as {}", gpu.device()) } else { "not now".into() }),
        ("VRAM", vram),
        ("Used by", gpu.processes.as_deref().map_or_else(|| "not told".into(), who)),
    ];
    fields.retain(|(_, value)| !value.is_empty());
    if !gpu.advice.is_empty() {
        fields.push(("Fits", format!("{}:", gpu.advice_title())));
        fields.extend(gpu.advice.iter().map(|advice| ("", advice.clone())));
    }
    fields
}

fn who(processes: &[GpuProcess]) -> String {
    let words = |process: &GpuProcess| {
        let held = process.bytes.map(|bytes| format!(" {}", gib(bytes))).unwrap_or_default();
        format!("{}{held}", process.words())
    };
    if processes.is_empty() {
        "nobody".into()
    } else {
        processes.iter().map(words).collect::<Vec<_>>().join(", ")
    }
}
