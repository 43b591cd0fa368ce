//! A Debian package, made by dpkg's own tools.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, bail};

use crate::repo;

/// What goes into a package.
pub struct Package {
    pub name: &'static str,
    pub summary: &'static str,
    /// A paragraph.
    pub description: &'static str,
    /// Beyond the libraries that its programs link.
    pub depends: Vec<String>,
    pub recommends: &'static str,
    pub files: Vec<File>,
    /// From, and to where, both from the root.
    pub links: Vec<(&'static str, &'static str)>,
}

/// A file of a package.
pub struct File {
    pub from: PathBuf,
    /// From the root, without the slash.
    pub to: String,
    /// A program of ours: stripped, and asked what it links.
    pub is_program: bool,
}

/// What came of it.
pub struct Built {
    pub path: PathBuf,
    pub packed_bytes: u64,
    /// Paths from the root and their bytes.
    pub contents: Vec<(String, u64)>,
}

impl Built {
    pub fn unpacked_bytes(&self) -> u64 {
        self.contents.iter().map(|(_, bytes)| bytes).sum()
    }
}

/// Builds `NAME_VERSION_ARCH.deb` in the folder `out`.
pub fn build(package: &Package, version: &str, out: &Path) -> Result<Built> {
    let stage = out.join("stage").join(package.name);
    if stage.exists() {
        fs::remove_dir_all(&stage).with_context(|| format!("Cannot empty {}", stage.display()))?;
    }
    let mut contents = Vec::new();
    let mut programs = Vec::new();
    for File { from, to, is_program } in &package.files {
        let place = stage.join(to);
        repo::create_dir_all(place.parent().unwrap_or(&stage))?;
        fs::copy(from, &place).with_context(|| format!("Cannot copy {}", from.display()))?;
        if *is_program {
            repo::run(Command::new("strip").arg(&place))?;
            programs.push(place.clone());
        }
        set_mode(&place, if *is_program { 0o755 } else { 0o644 })?;
        contents.push((format!("/{to}"), place.metadata()?.len()));
    }
    for (link, target) in &package.links {
        let place = stage.join(link);
        repo::create_dir_all(place.parent().unwrap_or(&stage))?;
        symlink(Path::new(target), &place)?;
    }
    let mut depends = linked(&stage, &programs)?;
    depends.extend(package.depends.clone());
    let architecture = output(Command::new("dpkg").arg("--print-architecture"))?;
    let installed_kib = contents.iter().map(|(_, bytes)| bytes.div_ceil(1024)).sum::<u64>();
    let recommends = match package.recommends {
        "" => String::new(),
        recommends => format!("Recommends: {recommends}\n"),
    };
    let control = format!(
        "Package: {name}\nVersion: {version}\nArchitecture: {architecture}\nMaintainer: The Lathe authors <lathe@localhost>\n\
         Section: science\nPriority: optional\nInstalled-Size: {installed_kib}\nDepends: {depends}\n{recommends}\
         Description: {summary}\n {description}\n",
        name = package.name,
        depends = depends.join(", "),
        summary = package.summary,
        description = package.description,
    );
    repo::create_dir_all(&stage.join("DEBIAN"))?;
    repo::write(&stage.join("DEBIAN").join("control"), control)?;
    set_folders_mode(&stage)?;

    let path = out.join(format!("{}_{version}_{architecture}.deb", package.name));
    // Written aside: an interrupted build leaves no package.
    let aside = path.with_extension("partial");
    repo::run(
        Command::new("dpkg-deb").args(["--root-owner-group", "-Zxz", "--build"]).arg(&stage).arg(&aside),
    )?;
    fs::rename(&aside, &path).with_context(|| format!("Cannot write {}", path.display()))?;
    fs::remove_dir_all(&stage).with_context(|| format!("Cannot remove {}", stage.display()))?;
    Ok(Built { packed_bytes: path.metadata()?.len(), path, contents })
}

/// The packages whose libraries these programs link, with their versions.
fn linked(stage: &Path, programs: &[PathBuf]) -> Result<Vec<String>> {
    if programs.is_empty() {
        return Ok(Vec::new());
    }
    // It wants the folder of a source package around it.
    let source = stage.with_extension("source");
    repo::create_dir_all(&source.join("debian"))?;
    repo::write(
        &source.join("debian").join("control"),
        "Source: lathe\n\nPackage: lathe\nArchitecture: any\n",
    )?;
    let told = output(Command::new("dpkg-shlibdeps").arg("-O").args(programs).current_dir(&source))?;
    fs::remove_dir_all(&source).with_context(|| format!("Cannot remove {}", source.display()))?;
    let found = told.lines().find_map(|line| line.strip_prefix("shlibs:Depends="));
    Ok(found.unwrap_or_default().split(", ").filter(|name| !name.is_empty()).map(str::to_owned).collect())
}

fn output(command: &mut Command) -> Result<String> {
    let line = repo::command_line(command);
    let output = command.output().with_context(|| format!("Cannot start `{line}`: install dpkg-dev"))?;
    if !output.status.success() {
        bail!("`{line}` failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Packages have the same modes whatever this machine's umask.
fn set_folders_mode(folder: &Path) -> Result<()> {
    set_mode(folder, 0o755)?;
    for entry in fs::read_dir(folder).with_context(|| format!("Cannot read {}", folder.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            set_folders_mode(&entry.path())?;
        }
    }
    Ok(())
}

#[cfg(unix)]
fn set_mode(path: &Path, mode: u32) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .with_context(|| format!("Cannot change the mode of {}", path.display()))
}

#[cfg(not(unix))]
fn set_mode(_path: &Path, _mode: u32) -> Result<()> {
    bail!("Debian packages are made on Linux")
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> Result<()> {
    std::os::unix::fs::symlink(target, link).with_context(|| format!("Cannot link {}", link.display()))
}

#[cfg(not(unix))]
fn symlink(_target: &Path, _link: &Path) -> Result<()> {
    bail!("Debian packages are made on Linux")
}
