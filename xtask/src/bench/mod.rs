//! stub
#[derive(clap::Args)]
pub struct Args {}
pub fn bench(_args: &Args) -> anyhow::Result<()> {
    Ok(())
}
