fn main() -> Result<(), Box<dyn std::error::Error>> {
    // A permission each, which `capabilities/main.json` grants; nothing else can be called from the page.
    let commands = tauri_build::AppManifest::new().commands(&["connect", "command"]);
    tauri_build::try_build(tauri_build::Attributes::new().app_manifest(commands))?;
    Ok(())
}
