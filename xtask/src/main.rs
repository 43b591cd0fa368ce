mod starter;
fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.first().map(String::as_str) {
        Some("train-starter") => starter::train_starter(&args[1..]),
        _ => anyhow::bail!("unknown"),
    }
}
