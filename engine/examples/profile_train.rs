use lathe_engine::{
    tokenize::TokenizedRow,
    train::{self, Surroundings},
};
use lathe_protocol::{EventBody, RunConfig, TrainJob};
use std::{path::Path, sync::atomic::AtomicBool, time::Instant};
fn main() {
    let model = std::env::args().nth(1).unwrap();
    let rows_path = std::env::args().nth(2).unwrap();
    let steps: usize = std::env::args().nth(3).unwrap().parse().unwrap();
    let rows: Vec<TokenizedRow> = std::fs::read_to_string(rows_path)
        .unwrap()
        .lines()
        .enumerate()
        .map(|(row, line)| {
            let v: serde_json::Value = serde_json::from_str(line).unwrap();
            TokenizedRow {
                row,
                line: row + 1,
                ids: serde_json::from_value(v["ids"].clone()).unwrap(),
                loss_mask: v["mask"].as_array().unwrap().iter().map(|b| b.as_u64() == Some(1)).collect(),
            }
        })
        .collect();
    let started = Instant::now();
    let stop = AtomicBool::new(false);
    let out = std::env::temp_dir().join("profile_train");
    std::fs::remove_dir_all(&out).ok();
    let job = TrainJob {
        model,
        model_name: "m".into(),
        data: "rows".into(),
        eval_data: None,
        out_dir: out.display().to_string(),
        config: RunConfig {
            max_seq_len: 512,
            batch_size: 1,
            grad_accum: 1,
            max_steps: steps,
            save_steps: 0,
            ..RunConfig::default()
        },
        init_adapter: None,
        resume: false,
        device: "cpu".into(),
    };
    let world = Surroundings { clock: &|| started.elapsed().as_secs_f64(), stop: &stop };
    train::run_on_rows(&job, &rows, &[], &world, &mut |event| match event {
        EventBody::Step(s) => println!(
            "{:.1}s step {} loss {:.5} gn {:.4} {} tokens {} loss tokens {:.0} tok/s",
            started.elapsed().as_secs_f64(),
            s.step,
            s.loss,
            s.grad_norm,
            s.tokens,
            s.loss_tokens,
            s.tokens_per_second
        ),
        other => println!("{:.1}s {other:?}", started.elapsed().as_secs_f64()),
    })
    .unwrap();
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    println!("{}", status.lines().find(|l| l.starts_with("VmHWM")).unwrap());
    let _ = Path::new("");
}
