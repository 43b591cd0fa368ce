//! Who may depend on whom.

use std::{collections::HashMap, path::Path};

use anyhow::{Context as _, Result};
use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, PackageId};

/// A folder, and the folders its crate may depend on: the table of DESIGN.
const ALLOWED: [(&str, &[&str]); 12] = [
    ("protocol", &[]),
    ("kernels", &[]),
    ("emulator", &["kernels"]),
    ("engine", &["protocol", "kernels"]),
    ("gpu-check", &["engine", "kernels", "protocol", "emulator"]),
    ("worker", &["engine", "protocol"]),
    ("host", &["protocol"]),
    ("serve", &["host", "protocol"]),
    ("ui", &["protocol"]),
    ("web", &["ui", "protocol"]),
    ("app", &["ui", "host", "serve", "worker", "protocol"]),
    ("src-tauri", &["host", "serve", "protocol", "tests"]),
];
/// These may use anything, and only these may use them.
const FREE: [&str; 3] = ["xtask", "lab", "tests"];
/// Crates that are not to be in these folders' programs, however far down.
const WITHOUT_TENSORS: [&str; 6] = ["protocol", "host", "serve", "ui", "web", "src-tauri"];
/// `protocol` is plain data and the rules of LoRA targets: it builds for wasm.
const PROTOCOL_USES: [&str; 3] = ["fancy-regex", "serde", "serde_json"];

/// Every folder of the workspace.
pub fn folders() -> impl Iterator<Item = &'static str> {
    ALLOWED.into_iter().map(|(folder, _)| folder).chain(FREE)
}

pub fn check(root: &Path) -> Result<Vec<String>> {
    let metadata = metadata(root)?;
    let mut problems = Vec::new();
    for package in metadata.workspace_packages() {
        let folder = folder_of(root, package.manifest_path.as_std_path());
        let ours: Vec<String> = package
            .dependencies
            .iter()
            .filter_map(|dependency| dependency.path.as_ref())
            .map(|path| folder_of(root, &path.as_std_path().join("Cargo.toml")))
            .collect();
        problems.extend(check_folder(&folder, &ours));
        if folder == "protocol" {
            for dependency in &package.dependencies {
                if dependency.kind != DependencyKind::Development
                    && !PROTOCOL_USES.contains(&dependency.name.as_str())
                {
                    problems.push(format!("protocol depends on {}: protocol/Cargo.toml", dependency.name));
                }
            }
        }
        if WITHOUT_TENSORS.contains(&folder.as_str()) {
            let graph = graph(&metadata);
            if let Some(way) = way_to(&graph, &package.id, |name| name.starts_with("candle")) {
                problems.push(format!("{folder} links candle ({}): {folder}/Cargo.toml", way.join(" -> ")));
            }
        }
    }
    Ok(problems)
}

fn metadata(root: &Path) -> Result<Metadata> {
    MetadataCommand::new()
        .manifest_path(root.join("Cargo.toml"))
        // What this platform builds is downloaded already.
        .other_options(["--locked".to_owned(), "--filter-platform".to_owned(), host_triple()?])
        .exec()
        .context("Cannot read the workspace's metadata")
}

fn host_triple() -> Result<String> {
    let output = std::process::Command::new("rustc").arg("-vV").output().context("Cannot start rustc")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let host = text.lines().find_map(|line| line.strip_prefix("host: "));
    Ok(host.context("`rustc -vV` names no host")?.to_owned())
}

fn folder_of(root: &Path, manifest: &Path) -> String {
    let folder = manifest.parent().unwrap_or(manifest);
    folder.strip_prefix(root).unwrap_or(folder).to_string_lossy().into_owned()
}

fn check_folder(folder: &str, depends_on: &[String]) -> Vec<String> {
    if FREE.contains(&folder) {
        return Vec::new();
    }
    let Some((_, allowed)) = ALLOWED.iter().find(|(name, _)| *name == folder) else {
        return vec![format!(
            "{folder} is not in the table of xtask/src/tidy/crates.rs: {folder}/Cargo.toml"
        )];
    };
    depends_on
        .iter()
        .filter(|name| !allowed.contains(&name.as_str()))
        .map(|name| {
            let may = if allowed.is_empty() { "none of ours".to_owned() } else { allowed.join(", ") };
            format!("{folder} depends on {name}, it may depend on {may}: {folder}/Cargo.toml")
        })
        .collect()
}

/// A package's name and what its program links.
type Graph<'a> = HashMap<&'a PackageId, (&'a str, Vec<&'a PackageId>)>;

fn graph(metadata: &Metadata) -> Graph<'_> {
    let names: HashMap<&PackageId, &str> =
        metadata.packages.iter().map(|package| (&package.id, package.name.as_str())).collect();
    let nodes = metadata.resolve.iter().flat_map(|resolve| &resolve.nodes);
    nodes
        .map(|node| {
            let linked = node.deps.iter().filter(|dependency| {
                dependency.dep_kinds.iter().any(|kind| kind.kind != DependencyKind::Development)
            });
            let name = names.get(&node.id).copied().unwrap_or_default();
            (&node.id, (name, linked.map(|dependency| &dependency.pkg).collect()))
        })
        .collect()
}

/// The names on a shortest way from a package to one that is forbidden.
fn way_to<'a>(
    graph: &Graph<'a>,
    from: &'a PackageId,
    forbidden: impl Fn(&str) -> bool,
) -> Option<Vec<&'a str>> {
    let mut came_from: HashMap<&PackageId, Option<&PackageId>> = HashMap::from([(from, None)]);
    let mut queue = std::collections::VecDeque::from([from]);
    while let Some(id) = queue.pop_front() {
        let (name, linked) = graph.get(id)?;
        if forbidden(name) {
            let mut way = vec![*name];
            let mut at = id;
            while let Some(Some(before)) = came_from.get(at) {
                way.push(graph.get(before)?.0);
                at = before;
            }
            way.reverse();
            return Some(way);
        }
        for next in linked {
            if !came_from.contains_key(next) {
                came_from.insert(next, Some(id));
                queue.push_back(next);
            }
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_may_use_what_its_line_names_only() {
        let check = |folder: &str, depends_on: &[&str]| {
            let depends_on: Vec<String> = depends_on.iter().map(|&name| name.to_owned()).collect();
            check_folder(folder, &depends_on)
        };
        assert!(check("engine", &["protocol", "kernels"]).is_empty());
        assert!(check("tests", &["host", "engine"]).is_empty());
        assert_eq!(
            check("host", &["protocol", "engine"]),
            ["host depends on engine, it may depend on protocol: host/Cargo.toml"]
        );
        assert_eq!(
            check("protocol", &["kernels"]),
            ["protocol depends on kernels, it may depend on none of ours: protocol/Cargo.toml"]
        );
        assert!(check("gpu", &[])[0].contains("not in the table"));
    }

    #[test]
    fn a_forbidden_crate_is_found_however_far_down() {
        let id = |name: &str| PackageId { repr: name.to_owned() };
        let [host, middle, candle] = ["host", "middle", "candle-core"].map(id);
        let mut graph: Graph<'_> = HashMap::from([
            (&host, ("host", vec![&middle])),
            (&middle, ("middle", vec![&host, &candle])),
            (&candle, ("candle-core", vec![])),
        ]);
        let way = |graph: &Graph<'_>| {
            way_to(graph, &host, |name| name.starts_with("candle")).map(|way| way.join(" "))
        };
        assert_eq!(way(&graph).as_deref(), Some("host middle candle-core"));
        graph.insert(&middle, ("middle", vec![]));
        assert_eq!(way(&graph), None);
    }

    #[test]
    fn candle_is_seen_where_it_is() {
        let metadata = metadata(&crate::repo::root()).unwrap();
        let engine = metadata.packages.iter().find(|package| package.name == "lathe-engine").unwrap();
        let way = way_to(&graph(&metadata), &engine.id, |name| name.starts_with("candle")).unwrap();
        assert_eq!(way, ["lathe-engine", "candle-core"]);
    }
}
