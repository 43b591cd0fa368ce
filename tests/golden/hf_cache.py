"""Dumps what huggingface_hub says of a cache folder: its sizes, and what deletions free and leave. In data/hf_cache.json:

tree         the folder, an entry each: `path`, and `size` (a file of that many bytes, with `modified`), `text`, `link` or `folder`
scan         `scan_cache_dir`: totals, repositories with their revisions, incomplete files, warnings (their number)
deletions    `delete_revisions` of some revisions: the size it expects to free, and the files that are gone when it is done
prune        what `hf cache prune` counts: detached revisions, incomplete files, shared blobs that nothing refers to; what is gone

The folder has blobs that revisions share, refs in folders, detached revisions, a dataset, files copied instead of linked, incomplete and
unreferenced files, blobs that two repositories share in the store of the cache, and what is no repository.

Run: /opt/peers-venv/bin/python tests/golden/hf_cache.py (huggingface_hub 2.4.0)
"""

import json
import os
import tempfile
from pathlib import Path

from huggingface_hub import scan_cache_dir
from huggingface_hub.utils import _shared_blobs

DATA = Path(__file__).resolve().parent / "data"
TREE = []
TIME = 1_700_000_000


def commit(letter):
    return letter * 40


def blob(number):
    return f"{number:064x}"


def file(path, size):
    TREE.append({"path": path, "size": size, "modified": TIME + len(TREE)})


def text(path, content):
    TREE.append({"path": path, "text": content})


def link(path, target):
    TREE.append({"path": path, "link": target})


def snapshot(repo, letter, files):
    """Links of a revision: {name: blob's number}."""
    for name, number in files.items():
        up = "../" * (2 + name.count("/"))
        link(f"{repo}/snapshots/{commit(letter)}/{name}", f"{up}blobs/{blob(number)}")


def describe():
    # Three revisions: `a` and `b` share weights, `c` is detached and shares its config with `a`.
    repo = "models--acme--tiny"
    for number, size in {1: 100, 2: 5000, 3: 120, 4: 7000, 5: 33}.items():
        file(f"{repo}/blobs/{blob(number)}", size)
    snapshot(repo, "a", {"config.json": 1, "model.safetensors": 2, "copy/of/config.json": 1})
    snapshot(repo, "b", {"config.json": 3, "model.safetensors": 2})
    snapshot(repo, "c", {"config.json": 1, "onnx/model.onnx": 4})
    text(f"{repo}/refs/main", commit("a"))
    text(f"{repo}/refs/v1.0", commit("a"))
    text(f"{repo}/refs/refs/pr/7", commit("b"))
    file(f"{repo}/blobs/{blob(9)}.incomplete", 777)
    file(f"{repo}/blobs/{blob(10)}.0123abcd.incomplete", 11)
    # 5 and this one belong to no revision.
    file(f"{repo}/blobs/{blob(11)}", 4242)

    # One revision, detached.
    repo = "models--acme--old"
    file(f"{repo}/blobs/{blob(1)}", 64)
    snapshot(repo, "d", {"config.json": 1})

    # A name without an owner, a revision without files.
    repo = "models--gpt2"
    file(f"{repo}/blobs/{blob(20)}", 2048)
    snapshot(repo, "e", {"model.safetensors": 20})
    TREE.append({"path": f"{repo}/snapshots/{commit('f')}", "folder": True})
    text(f"{repo}/refs/main", commit("e"))

    repo = "datasets--acme--rows"
    file(f"{repo}/blobs/{blob(30)}", 900)
    file(f"{repo}/blobs/{blob(31)}", 90)
    snapshot(repo, "1", {"data/train.parquet": 30, "README.md": 31})
    snapshot(repo, "2", {"data/train.parquet": 30})
    text(f"{repo}/refs/main", commit("1"))
    text(f"{repo}/refs/convert", commit("2"))

    # Copied, not linked, as where links are not permitted.
    repo = "models--acme--copied"
    file(f"{repo}/snapshots/{commit('3')}/config.json", 40)
    file(f"{repo}/snapshots/{commit('3')}/model.safetensors", 400)
    file(f"{repo}/snapshots/{commit('4')}/config.json", 50)
    text(f"{repo}/refs/main", commit("3"))

    # The store that repositories share: one payload of two of them, one of one, one of none.
    shared = {100: 10_000, 101: 20_000, 102: 30_000}
    for number, size in shared.items():
        file(f"blobs/00/{blob(number)}", size)
    text("blobs/.huggingface-shared-blobs", "1\n")
    links = {"models--acme--left": [100, 101], "models--acme--right": [100]}
    for repo, numbers in links.items():
        for number in numbers:
            link(f"{repo}/blobs/{blob(number)}", f"../../blobs/00/{blob(number)}")
    for number in shared:
        users = [repo for repo, numbers in links.items() if number in numbers]
        text(f"blobs/00/{blob(number)}.refs", "".join(f"{repo}/blobs/{blob(number)}\n" for repo in users))
    snapshot("models--acme--left", "5", {"model.safetensors": 100, "more.safetensors": 101})
    snapshot("models--acme--right", "6", {"model.safetensors": 100})
    text("models--acme--left/refs/main", commit("5"))
    text("models--acme--right/refs/main", commit("6"))

    # What is no repository, or a broken one.
    file("readme.txt", 5)
    file("models--acme--nothing/blobs/" + blob(40) + ".incomplete", 321)
    snapshot("models--acme--gone", "7", {"config.json": 50})
    file("models--acme--ahead/blobs/" + blob(60), 12)
    snapshot("models--acme--ahead", "8", {"config.json": 60})
    text("models--acme--ahead/refs/main", commit("9"))
    TREE.append({"path": ".locks/models--acme--tiny", "folder": True})
    text("CACHEDIR.TAG", "Signature: 8a477f597d28d172789f06886806bc55\n")


def build(root):
    for entry in TREE:
        path = root / entry["path"]
        if "folder" in entry:
            path.mkdir(parents=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        if "link" in entry:
            path.symlink_to(entry["link"])
        elif "text" in entry:
            path.write_text(entry["text"])
        else:
            path.write_bytes(bytes(entry["size"]))
            os.utime(path, (entry["modified"], entry["modified"]))


def files_in(root):
    """Files and links."""
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_symlink() or path.is_file()}


def scanned(root):
    info = scan_cache_dir(root)
    repos = [
        {
            "kind": repo.repo_type,
            "id": repo.repo_id,
            "size": repo.size_on_disk,
            "files": repo.nb_files,
            "modified": int(repo.last_modified),
            "revisions": sorted(
                (
                    {
                        "commit": revision.commit_hash,
                        "refs": sorted(revision.refs),
                        "size": revision.size_on_disk,
                        "own": info.delete_revisions(revision.commit_hash).expected_freed_size,
                        "files": revision.nb_files,
                    }
                    for revision in repo.revisions
                ),
                key=lambda revision: revision["commit"],
            ),
        }
        for repo in sorted(info.repos, key=lambda repo: (repo.repo_type, repo.repo_id))
    ]
    return {
        "size": info.size_on_disk,
        "incomplete": info.incomplete_size_on_disk,
        "warnings": len(info.warnings),
        "repos": repos,
    }


def deletion(letters):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve()
        build(root)
        strategy = scan_cache_dir(root).delete_revisions(*(commit(letter) for letter in letters))
        before = files_in(root)
        strategy.execute()
        return {
            "revisions": [commit(letter) for letter in letters],
            "freed": strategy.expected_freed_size,
            "gone": sorted(before - files_in(root)),
        }


def prune():
    """As `hf cache prune` does it."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve()
        build(root)
        info = scan_cache_dir(root)
        detached = [revision.commit_hash for repo in info.repos for revision in repo.revisions if not revision.refs]
        strategy = info.delete_revisions(*detached)
        shared = _shared_blobs.unreferenced_shared_blobs(root)
        before = files_in(root)
        strategy.execute()
        for incomplete in info.incomplete_files:
            incomplete.file_path.unlink(missing_ok=True)
        for path in shared:
            _shared_blobs.sweep_shared_blob(path, cache_dir=root)
        return {
            "detached": strategy.expected_freed_size,
            "incomplete": info.incomplete_size_on_disk,
            "shared": sum(shared.values()),
            "gone": sorted(before - files_in(root)),
        }


def main():
    describe()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder).resolve()
        build(root)
        scan = scanned(root)
    cases = ["a", "b", "c", "ab", "ac", "abc", "d", "e", "ef", "1", "12", "3", "34", "5", "6", "56", "acd16"]
    golden = {"tree": TREE, "scan": scan, "deletions": [deletion(case) for case in cases], "prune": prune()}
    (DATA / "hf_cache.json").write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
