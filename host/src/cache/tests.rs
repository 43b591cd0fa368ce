#![cfg(unix)]

use std::{
    collections::BTreeSet,
    fs::{self, File},
    os::unix::fs::symlink,
    time::{Duration, UNIX_EPOCH},
};

use lathe_protocol::{CacheTarget, CommandBody, ErrorCode, RepoKind};
use serde_json::Value;

use super::{moving::OnStep, *};
use crate::{
    error::usage,
    testing::{Bench, ask, failure},
};

fn golden() -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/golden/data/hf_cache.json");
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// The folder that `hf_cache.py` describes.
fn build(golden: &Value, root: &Path) {
    for entry in golden["tree"].as_array().unwrap() {
        let path = root.join(entry["path"].as_str().unwrap());
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        if entry["folder"] == true {
            fs::create_dir_all(path).unwrap();
        } else if let Some(target) = entry["link"].as_str() {
            symlink(target, path).unwrap();
        } else if let Some(text) = entry["text"].as_str() {
            fs::write(path, text).unwrap();
        } else {
            fs::write(&path, vec![0; entry["size"].as_u64().unwrap() as usize]).unwrap();
            let modified = UNIX_EPOCH + Duration::from_secs(entry["modified"].as_u64().unwrap());
            File::options().write(true).open(path).unwrap().set_modified(modified).unwrap();
        }
    }
}

/// Files and links; locks mean nothing.
fn files_in(root: &Path) -> BTreeSet<String> {
    let names = below(root).unwrap().into_iter();
    let names = names.map(|path| path.strip_prefix(root).unwrap().display().to_string());
    names
        .filter(|name| {
            !name.starts_with(".locks/") && Path::new(name).extension().is_none_or(|ending| ending != "lock")
        })
        .collect()
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().unwrap().iter().map(|text| text.as_str().unwrap().to_owned()).collect()
}

/// The revisions of a scan whose commits these are.
fn revisions(cache: &Path, commits: &[String]) -> Vec<CacheTarget> {
    let mut targets = Vec::new();
    for repo in report(cache).unwrap().repos {
        for revision in repo.revisions.iter().filter(|revision| commits.contains(&revision.commit)) {
            let (id, commit) = (repo.id.clone(), revision.commit.clone());
            targets.push(CacheTarget::Revision { kind: repo.kind, id, commit });
        }
    }
    assert_eq!(targets.len(), commits.len());
    targets
}

fn plan_of(cache: &Path, targets: &[CacheTarget]) -> lathe_protocol::CachePlan {
    Plan::of(&Scan::of(cache).unwrap(), targets).unwrap().report(targets.to_vec())
}

fn remove(cache: &Path, targets: &[CacheTarget]) {
    let scan = Scan::of(cache).unwrap();
    Plan::of(&scan, targets).unwrap().execute(&scan).unwrap();
}

fn model(id: &str) -> CacheTarget {
    CacheTarget::Repo { kind: RepoKind::Model, id: id.into() }
}

#[test]
fn a_cache_has_the_sizes_that_huggingface_hub_tells() {
    let (bench, golden) = (Bench::new(), golden());
    build(&golden, &bench.paths.hf_cache);
    let report = report(&bench.paths.hf_cache).unwrap();
    let expected = &golden["scan"];
    assert_eq!(report.size_bytes, expected["size"]);
    assert_eq!(report.incomplete_bytes, expected["incomplete"]);
    assert_eq!(report.warnings.len() as u64, expected["warnings"], "{:?}", report.warnings);
    assert_eq!(report.unreferenced_bytes, 33 + 4242 + 30_000);
    let mut repos = report.repos;
    repos.sort_by_key(|repo| (repo.kind.word(), repo.id.clone()));
    assert_eq!(repos.len(), expected["repos"].as_array().unwrap().len());
    for (repo, expected) in repos.iter().zip(expected["repos"].as_array().unwrap()) {
        assert_eq!(
            (repo.kind.word(), repo.id.as_str()),
            (expected["kind"].as_str().unwrap(), expected["id"].as_str().unwrap())
        );
        let numbers = [repo.size_bytes, repo.num_files as u64, repo.modified_secs];
        let golden = ["size", "files", "modified"].map(|key| expected[key].as_u64().unwrap());
        assert_eq!(numbers, golden, "{}", repo.id);
        let mut revisions = repo.revisions.clone();
        revisions.sort_by(|a, b| a.commit.cmp(&b.commit));
        assert_eq!(revisions.len(), expected["revisions"].as_array().unwrap().len());
        for (revision, expected) in revisions.iter().zip(expected["revisions"].as_array().unwrap()) {
            assert_eq!(revision.commit, expected["commit"]);
            let mut refs = revision.refs.clone();
            refs.sort();
            assert_eq!(refs, strings(&expected["refs"]));
            let numbers = [revision.size_bytes, revision.own_bytes, revision.num_files as u64];
            let golden = ["size", "own", "files"].map(|key| expected[key].as_u64().unwrap());
            assert_eq!(numbers, golden, "{} {}", repo.id, revision.commit);
        }
    }
}

#[test]
fn deletions_free_what_huggingface_hub_says_and_leave_what_it_leaves() {
    let golden = golden();
    for deletion in golden["deletions"].as_array().unwrap() {
        let bench = Bench::new();
        let cache = &bench.paths.hf_cache;
        build(&golden, cache);
        let before = files_in(cache);
        let targets = revisions(cache, &strings(&deletion["revisions"]));
        let plan = plan_of(cache, &targets);
        assert_eq!(plan.freed_bytes, deletion["freed"], "{:?}", plan.lines);
        remove(cache, &targets);
        let gone: BTreeSet<String> = before.difference(&files_in(cache)).cloned().collect();
        assert_eq!(gone, strings(&deletion["gone"]).into_iter().collect(), "{:?}", plan.lines);
        assert!(report(cache).unwrap().leftovers.iter().all(|file| file.path.ends_with(".incomplete")));
    }
}

#[test]
fn detached_incomplete_and_unreferenced_files_are_what_hf_cache_prune_takes() {
    let (bench, golden) = (Bench::new(), golden());
    let cache = &bench.paths.hf_cache;
    build(&golden, cache);
    let freed = |targets: &[CacheTarget]| plan_of(cache, targets).freed_bytes;
    let prune = &golden["prune"];
    assert_eq!(freed(&[CacheTarget::Detached]), prune["detached"]);
    assert_eq!(freed(&[CacheTarget::Incomplete]), prune["incomplete"]);
    let shared = prune["shared"].as_u64().unwrap();
    assert_eq!(freed(&[CacheTarget::Unreferenced]), shared + 33 + 4242);
    let before = files_in(cache);
    remove(cache, &[CacheTarget::Detached, CacheTarget::Incomplete, CacheTarget::Unreferenced]);
    let mut gone: BTreeSet<String> = before.difference(&files_in(cache)).cloned().collect();
    // Of these `hf cache` knows nothing.
    for number in [5, 11] {
        assert!(gone.remove(&format!("models--acme--tiny/blobs/{number:064x}")));
    }
    assert_eq!(gone, strings(&prune["gone"]).into_iter().collect());
    let report = report(cache).unwrap();
    assert_eq!((report.unreferenced_bytes, report.incomplete_bytes), (0, 0));
}

#[test]
fn what_goes_with_a_whole_repository_is_told_apart_from_what_hf_cache_counts() {
    let (bench, golden) = (Bench::new(), golden());
    let cache = &bench.paths.hf_cache;
    build(&golden, cache);
    let plan = plan_of(cache, &[model("acme/tiny")]);
    assert_eq!((plan.freed_bytes, plan.besides_bytes), (12_220, 777 + 11 + 33 + 4242));
    assert_eq!(plan.lines, ["model acme/tiny, all 3 revisions"]);
    let plan = plan_of(cache, &[model("acme/tiny"), CacheTarget::Incomplete]);
    assert_eq!((plan.freed_bytes, plan.besides_bytes), (12_220 + 777 + 11 + 321, 33 + 4242));

    let mut host = bench.shell_host("exit 1");
    let events = ask(&mut host, 1, CommandBody::CacheDelete { targets: vec![model("acme/tiny")] });
    let EventBody::Removed { what, freed_bytes } = &events[0] else { panic!("{events:?}") };
    assert_eq!((what.as_str(), *freed_bytes), ("model acme/tiny, all 3 revisions", 12_220 + 5063));
    // A broken one goes by its name.
    let events = ask(&mut host, 2, CommandBody::CacheDelete { targets: vec![model("acme/nothing")] });
    assert!(matches!(&events[0], EventBody::Removed { freed_bytes: 321, .. }), "{events:?}");
    let error = failure(&ask(&mut host, 3, CommandBody::CacheDelete { targets: vec![model("acme/tin")] }));
    assert_eq!(error.code, ErrorCode::NotFound);
}

#[test]
fn what_is_downloaded_or_used_is_not_deleted() {
    let (bench, golden) = (Bench::new(), golden());
    let cache = &bench.paths.hf_cache;
    build(&golden, cache);
    let hash = format!("{:064x}", 9);
    let lock = cache.join(format!(".locks/models--acme--tiny/{hash}.lock"));
    fs::write(&lock, "").unwrap();
    let held = File::open(&lock).unwrap();
    held.lock().unwrap();
    let try_to = |target: CacheTarget| {
        failure(&ask(&mut bench.shell_host("exit 1"), 1, CommandBody::CacheDelete { targets: vec![target] }))
    };
    let error = try_to(model("acme/tiny"));
    assert!(error.code == ErrorCode::Busy && error.message.contains("being downloaded"), "{error}");
    // What is not being written to can go.
    assert_eq!(plan_of(cache, &[CacheTarget::Incomplete]).freed_bytes, 11 + 321);
    drop(held);

    let used = use_model(cache, &cache.join("models--gpt2/snapshots/x/model.safetensors")).unwrap();
    let also_used = use_model(cache, &cache.join("models--gpt2/snapshots/x")).unwrap();
    let error = try_to(model("gpt2"));
    assert!(error.message.contains("used by a chat or a run"), "{error}");
    let to = bench.path("elsewhere").display().to_string();
    let error = failure(&ask(&mut bench.shell_host("exit 1"), 1, CommandBody::CacheMove { repo: None, to }));
    assert_eq!(error.code, ErrorCode::Busy);
    assert!(cache.join("models--gpt2/refs/main").exists() && !bench.path("elsewhere").exists());
    drop((used, also_used));
    remove(cache, &[model("gpt2"), model("acme/tiny")]);
    assert!(use_model(cache, bench.path("model").as_path()).is_none(), "not of the cache");
}

#[test]
fn nothing_outside_the_cache_is_deleted() {
    let bench = Bench::new();
    let (cache, outside) = (&bench.paths.hf_cache, bench.path("outside"));
    fs::create_dir_all(&outside).unwrap();
    fs::write(outside.join("precious"), "gold").unwrap();
    let commit = |letter: &str| letter.repeat(40);
    let snapshots = cache.join("models--a--b/snapshots");
    for letter in ["a", "b"] {
        fs::create_dir_all(snapshots.join(commit(letter))).unwrap();
        symlink(outside.join("precious"), snapshots.join(commit(letter)).join(format!("file-{letter}")))
            .unwrap();
    }
    symlink(&outside, snapshots.join(commit("a")).join("folder")).unwrap();
    symlink(&outside, cache.join("models--c--d")).unwrap();
    symlink("../../outside", cache.join("models--a--b/blobs")).unwrap();
    let targets = revisions(cache, &[commit("a")]);
    assert_eq!(plan_of(cache, &targets).freed_bytes, 0);
    remove(cache, &targets);
    // The folder of blobs is a link: what is in it counts as unreferenced, and stays.
    let error = {
        let scan = Scan::of(cache).unwrap();
        Plan::of(&scan, &[CacheTarget::Unreferenced]).unwrap().execute(&scan).unwrap_err()
    };
    assert!(error.message.contains("leads out of the cache"), "{error}");
    remove(cache, &[model("a/b"), model("c/d")]);
    assert_eq!(fs::read_to_string(outside.join("precious")).unwrap(), "gold");
    assert!(fs::symlink_metadata(cache.join("models--c--d")).is_err());
}

#[test]
fn a_deletion_that_is_cut_short_leaves_whole_revisions_and_leftovers() {
    let bench = Bench::new();
    let cache = &bench.paths.hf_cache;
    fs::create_dir_all(cache.join(".models--a--b.tmp-4194304-0-00000000/blobs")).unwrap();
    fs::write(cache.join(".models--a--b.tmp-4194304-0-00000000/blobs/x"), "12345").unwrap();
    // Of a process that lives: it is none of ours.
    fs::create_dir_all(crate::files::aside(&cache.join("models--c--d"))).unwrap();
    let found = report(cache).unwrap();
    assert_eq!((found.leftovers.len(), found.incomplete_bytes, found.warnings.len()), (1, 5, 0));
    assert_eq!(plan_of(cache, &[CacheTarget::Incomplete]).freed_bytes, 5);
    remove(cache, &[CacheTarget::Incomplete]);
    assert!(report(cache).unwrap().leftovers.is_empty());
}

/// A hash of every file below, through links to files.
fn contents(root: &Path) -> Vec<(String, String)> {
    use sha2::Digest as _;
    let hash = |name: &String| Some(files::hex(&sha2::Sha256::digest(fs::read(root.join(name)).ok()?)));
    let names = files_in(root).into_iter().filter(|name| !name.contains(".lathe-"));
    names.filter_map(|name| Some((name.clone(), hash(&name)?))).collect()
}

fn move_by(cache: &Path, repo: Option<&str>, to: &Path, each: OnStep<'_>) -> Result<()> {
    moving::recover(cache)?;
    let to = moving::destination(repo, to);
    let was_interrupted = moving::complete(cache, repo, &to, each)?;
    if was_interrupted && cache.join(repo.unwrap_or_default()).canonicalize().unwrap() == to {
        return Ok(());
    }
    Move::plan(cache, repo, to)?.execute(each)
}

/// A folder of another disk, if this machine has one for tests.
fn other_disk() -> Option<tempfile::TempDir> {
    let folder = tempfile::tempdir_in("/dev/shm").ok();
    if folder.is_none() {
        eprintln!("skipped: no second disk at /dev/shm");
    }
    folder
}

#[test]
fn a_moved_cache_is_found_at_its_old_place_and_counts_the_same() {
    let golden = golden();
    let other = other_disk();
    let bench = Bench::new();
    for (to, name) in [
        (Some(bench.path("same disk/hub")), "rename"),
        (other.as_ref().map(|dir| dir.path().join("new/hub")), "copy"),
    ] {
        let Some(to) = to else { continue };
        let bench = Bench::new();
        let cache = &bench.paths.hf_cache;
        build(&golden, cache);
        let (before, numbers) = (contents(cache), report(cache).unwrap());
        let body = CommandBody::CacheMove { repo: None, to: to.display().to_string() };
        let events = ask(&mut bench.shell_host("exit 1"), 1, body.clone());
        assert_eq!(events.last(), Some(&EventBody::Done), "{name}: {events:?}");
        assert_eq!(fs::read_link(cache).unwrap(), to, "{name}");
        assert_eq!(contents(&to), before, "{name}");
        let after = report(cache).unwrap();
        assert_eq!(after.target, Some(to.display().to_string()));
        assert_eq!(
            (after.size_bytes, after.repos.len(), after.warnings.len()),
            (numbers.size_bytes, numbers.repos.len(), numbers.warnings.len())
        );
        let names: Vec<String> = files::names_in(bench.dir.path()).unwrap();
        assert!(!names.iter().any(|name| name.contains("lathe-")), "{names:?}");
        let error = failure(&ask(&mut bench.shell_host("exit 1"), 1, body));
        assert!(error.message.contains("lies there already"), "{error}");
        // On, to a third place: the second is gone then.
        let third = bench.path("third");
        let body = CommandBody::CacheMove { repo: None, to: third.display().to_string() };
        assert_eq!(ask(&mut bench.shell_host("exit 1"), 1, body).last(), Some(&EventBody::Done), "{name}");
        assert_eq!((contents(&third), to.exists(), fs::read_link(cache).unwrap()), (before, false, third));
    }
}

#[test]
fn a_moved_repository_takes_what_it_shared_along_and_goes_wholly_when_it_is_deleted() {
    let (Some(other), bench, golden) = (other_disk(), Bench::new(), golden()) else { return };
    let cache = &bench.paths.hf_cache;
    build(&golden, cache);
    let repo = "models--acme--left";
    let before = contents(&cache.join(repo));
    move_by(cache, Some(repo), other.path(), &mut |_| Ok(())).unwrap();
    assert_eq!(contents(&other.path().join(repo)), before);
    assert_eq!(contents(&cache.join(repo)), before);
    assert!(!cache.join(format!("blobs/00/{:064x}", 101)).exists(), "only it had a link to that");
    assert!(cache.join(format!("blobs/00/{:064x}", 100)).exists(), "another has one too");
    let report = report(cache).unwrap();
    let moved = report.repos.iter().find(|repo| repo.id == "acme/left").unwrap();
    assert_eq!((moved.size_bytes, moved.target.is_some()), (30_000, true));
    let plan = plan_of(cache, &[model("acme/left")]);
    assert_eq!(plan.freed_bytes, 30_000);
    assert!(plan.lines[0].contains(", in /dev/shm"), "{:?}", plan.lines);
    remove(cache, &[model("acme/left")]);
    assert!(files::names_in(other.path()).unwrap().is_empty());
    assert!(fs::symlink_metadata(cache.join(repo)).is_err());
}

#[test]
fn a_move_interrupted_anywhere_loses_nothing_and_can_be_done_again() {
    let (Some(other), mut golden) = (other_disk(), golden()) else { return };
    let few = |entry: &Value| entry["path"].as_str().unwrap().starts_with("models--acme--tiny");
    golden["tree"].as_array_mut().unwrap().retain(few);
    // The cache, one repository of it, and the cache once it was moved.
    for (repo, was_moved) in [(None, false), (Some("models--acme--tiny"), false), (None, true)] {
        for stop_at in 0.. {
            let bench = Bench::new();
            let cache = &bench.paths.hf_cache;
            build(&golden, cache);
            if was_moved {
                move_by(cache, None, &bench.path("second"), &mut |_| Ok(())).unwrap();
            }
            let place = cache.join(repo.unwrap_or_default());
            let before = contents(&place);
            let to = other.path().join(format!("{stop_at}-{}-{was_moved}", repo.is_some()));
            let mut steps = 0;
            let outcome = move_by(cache, repo, &to, &mut |_| {
                steps += 1;
                if steps > stop_at { Err(usage("cut")) } else { Ok(()) }
            });
            // As whoever comes next finds it.
            assert!(report(cache).unwrap().warnings.is_empty(), "{stop_at}");
            assert_eq!(contents(&place), before, "{stop_at}");
            if outcome.is_ok() {
                assert!(stop_at > 15, "{stop_at}");
                break;
            }
            move_by(cache, repo, &to, &mut |_| Ok(())).unwrap_or_else(|error| panic!("{stop_at}: {error}"));
            assert_eq!(contents(&place), before, "{stop_at}");
            assert_eq!(place.canonicalize().unwrap(), repo.map_or_else(|| to.clone(), |repo| to.join(repo)));
            let all = [bench.dir.path(), cache, other.path(), &to];
            let names: Vec<String> = all.iter().flat_map(|folder| files::names_in(folder).unwrap()).collect();
            assert!(!names.iter().any(|name| name.contains("lathe-")), "{stop_at}: {names:?}");
            assert!(!bench.path("second").exists());
            fs::remove_dir_all(&to).unwrap();
        }
    }
}

#[test]
fn a_folder_taken_from_its_place_is_put_back() {
    let bench = Bench::new();
    let cache = &bench.paths.hf_cache;
    let away = |place: &Path| {
        place.with_file_name(format!(".{}.lathe-moved", place.file_name().unwrap().to_string_lossy()))
    };
    // Where two names cannot be swapped in one step, this is what a kill between the two leaves.
    fs::create_dir_all(away(cache).join("models--a--b/snapshots/x")).unwrap();
    assert_eq!(report(cache).unwrap().repos.len(), 1);
    let repo = cache.join("models--a--b");
    fs::rename(&repo, away(&repo)).unwrap();
    assert_eq!(report(cache).unwrap().repos.len(), 1);
    // Renamed to its new place, the link not yet there.
    fs::rename(&repo, bench.path("new")).unwrap();
    symlink(bench.path("new"), away(&repo)).unwrap();
    assert_eq!(report(cache).unwrap().repos[0].target, Some(bench.path("new").display().to_string()));
}

#[test]
fn a_move_that_cannot_be_is_refused() {
    let (bench, golden) = (Bench::new(), golden());
    let cache = &bench.paths.hf_cache;
    build(&golden, cache);
    let check = |repo: Option<(RepoKind, String)>, to: &Path, expected: &str| {
        let body = CommandBody::CacheMove { repo, to: to.display().to_string() };
        let error = failure(&ask(&mut bench.shell_host("exit 1"), 1, body));
        assert!(error.message.contains(expected), "{error}");
    };
    check(None, cache, "lies there already");
    check(None, &cache.join("inside/it"), "into itself");
    check(None, bench.dir.path(), "into itself");
    check(Some((RepoKind::Model, "gpt2".into())), &cache.join("x"), "into itself");
    check(None, &bench.path("model"), "Something lies there already");
    check(None, &bench.path("pirate.jsonl"), "Something lies there already");
    check(Some((RepoKind::Model, "gpt3".into())), &bench.path("new"), "no model gpt3 to move");
    assert!(!bench.path("new").exists());
}

#[test]
fn any_revision_and_datasets_are_verified_by_hash() {
    let bench = Bench::new();
    let cache = &bench.paths.hf_cache;
    let blob = |repo: &str, text: &str| {
        use sha2::Digest as _;
        let name = files::hex(&sha2::Sha256::digest(text));
        fs::create_dir_all(cache.join(repo).join("blobs")).unwrap();
        fs::write(cache.join(repo).join("blobs").join(&name), text).unwrap();
        name
    };
    let file = |repo: &str, commit: &str, name: &str, blob: &str| {
        let path = cache.join(repo).join("snapshots").join(commit).join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let up = "../".repeat(2 + name.matches('/').count());
        symlink(format!("{up}blobs/{blob}"), path).unwrap();
    };
    let rows = blob("datasets--a--rows", "rows");
    file("datasets--a--rows", "abc123", "data/train.parquet", &rows);
    let old = blob("models--a--b", "{\"model_type\": \"llama\"}");
    file("models--a--b", "111aaa", "config.json", &old);
    let new = blob("models--a--b", "{\"model_type\": \"qwen3\"}");
    file("models--a--b", "222bbb", "config.json", &new);
    let problems = |name: &str| {
        let events =
            ask(&mut bench.shell_host("exit 1"), 1, CommandBody::ModelsVerify { model: name.into() });
        match &events[events.len() - 2..] {
            [EventBody::ModelProblems { problems, files_checked, .. }, EventBody::Done] => {
                let files: Vec<String> = problems.iter().map(|problem| problem.file.clone()).collect();
                (files, *files_checked)
            }
            _ => panic!("{events:?}"),
        }
    };
    let missing = ["model.safetensors", "tokenizer.json"];
    let sorted = |(mut files, checked): (Vec<String>, usize)| {
        files.sort();
        (files, checked)
    };
    assert_eq!(problems("dataset/a/rows"), (vec![], 1));
    assert_eq!(sorted(problems("a/b@111")), (missing.map(String::from).to_vec(), 1));
    fs::write(cache.join("datasets--a--rows/blobs").join(&rows), "rowz").unwrap();
    fs::write(cache.join("models--a--b/blobs").join(&old), "{\"model_type\": \"llamb\"}").unwrap();
    assert_eq!(problems("dataset/a/rows@abc123"), (vec!["data/train.parquet".into()], 1));
    assert_eq!(sorted(problems("a/b@111")).0, ["config.json", "model.safetensors", "tokenizer.json"]);
    assert_eq!(sorted(problems("a/b@222")).0, missing);
    let snapshot = cache.join("models--a--b/snapshots/111aaa").display().to_string();
    assert_eq!(problems(&snapshot).0.len(), 3, "by its path");
    fs::remove_file(cache.join("datasets--a--rows/blobs").join(&rows)).unwrap();
    assert_eq!(problems("dataset/a/rows").0, ["data/train.parquet"]);
    let events =
        ask(&mut bench.shell_host("exit 1"), 1, CommandBody::ModelsVerify { model: "a/b@333".into() });
    assert!(failure(&events).message.contains("No revision \"333\""));
}
