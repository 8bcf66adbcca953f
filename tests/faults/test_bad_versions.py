"""A damaged version is refused before a byte is interpreted, the reason shows, and the old version keeps serving."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from harness import models
from harness.server import ServerProcess, version_state
from shoal import PreconditionError


def edit_manifest(folder: Path, change: Callable[[dict[str, object]], None]) -> None:
    path = folder / "manifest.json"
    tree = json.loads(path.read_text())
    change(tree)
    path.write_text(json.dumps(tree))


def truncate_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)


def flip_a_bit(folder: Path) -> None:
    weights = folder / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[len(data) // 2] ^= 4
    weights.write_bytes(data)


def lose_a_file(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def add_a_pickle(folder: Path) -> None:
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"weight": [1.0]}))


def escape_the_folder(folder: Path) -> None:
    edit_manifest(
        folder, lambda t: t["files"].append({"path": "../../../etc/passwd.txt", "size_bytes": 1, "sha256": "0" * 64})
    )  # type: ignore[attr-defined]


def link_outside(folder: Path) -> None:
    weights = folder / "model.safetensors"
    elsewhere = folder.parent.parent / "outside.safetensors"
    shutil.move(weights, elsewhere)
    weights.symlink_to(elsewhere)


def garble_the_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text('{"schema_version": 1, "model":')


def come_from_the_future(folder: Path) -> None:
    edit_manifest(folder, lambda t: t.update(schema_version=99))


def other_golden_outputs(folder: Path) -> None:
    """Valid checksums, but weights that do not give the recorded outputs."""
    from safetensors.torch import load_file, save_file
    from shoal_models.manifest import sha256_of

    weights = folder / "model.safetensors"
    tensors = load_file(weights)
    name = next(name for name in tensors if name.endswith("classifier.weight"))
    tensors[name] = tensors[name] * 1.5
    save_file(tensors, weights, metadata={"format": "pt"})

    def describe(tree: dict[str, object]) -> None:
        for entry in tree["files"]:  # type: ignore[attr-defined]
            if entry["path"] == "model.safetensors":
                entry.update(size_bytes=weights.stat().st_size, sha256=sha256_of(weights))

    edit_manifest(folder, describe)


FAULTS: list[tuple[Callable[[Path], None], str]] = [
    (truncate_weights, "bytes"),
    (flip_a_bit, "checksum"),
    (lose_a_file, "missing"),
    (add_a_pickle, "not listed"),
    (escape_the_folder, "escapes"),
    (link_outside, "not a plain file"),
    (garble_the_manifest, "manifest"),
    (come_from_the_future, "schema 99"),
    (other_golden_outputs, "golden"),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_repository: Path) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path_factory.mktemp("server"), tiny_repository) as running:
        running.wait_live("bert", 1)
        yield running


def put_in_place(repository: Path, damage: Callable[[Path], None]) -> int:
    """A damaged copy of bert@1, made beside the repository and renamed in at once."""
    taken = [int(path.name) for path in (repository / "bert").iterdir() if path.name.isdigit()]
    version = max(taken) + 1
    hidden = repository / "bert" / f".tmp-{version}"
    shutil.copytree(repository / "bert" / "1", hidden)
    edit_manifest(hidden, lambda t: t.update(version=version))
    damage(hidden)
    hidden.rename(repository / "bert" / str(version))
    return version


def wait_rejected(server: ServerProcess, version: int) -> str:
    limit = time.monotonic() + 30
    with server.client() as client:
        while time.monotonic() < limit:
            state, reason = version_state(client, "bert", version)
            if state == "rejected":
                return reason
            assert state != "live"
            time.sleep(0.05)
    raise AssertionError(f"bert@{version} is {state}")


@pytest.mark.parametrize(("damage", "word"), FAULTS, ids=[damage.__name__ for damage, _ in FAULTS])
def test_a_damaged_version_is_refused_and_the_old_one_serves(
    server: ServerProcess, tiny_repository: Path, damage: Callable[[Path], None], word: str
) -> None:
    version = put_in_place(tiny_repository, damage)
    reason = wait_rejected(server, version)
    assert word in reason.lower(), reason
    assert f"version={version}" in server.log()
    with server.client() as client:
        assert client.classify("bert", ["still here"]).served_by.version == 1
        with pytest.raises(PreconditionError, match=word):
            client.classify("bert", ["x"], version=version)
        with pytest.raises(PreconditionError):
            client.load_model("bert", version)
    assert server.metric("shoal_version_rejections_total", model="bert") >= 1


def test_half_a_copy_is_not_seen_and_becomes_live_when_whole(server: ServerProcess, tiny_repository: Path) -> None:
    """A copy without its manifest is incomplete; with it, it is loaded."""
    source = tiny_repository / "llama" / "1"
    folder = tiny_repository / "llama" / "100"
    folder.mkdir()
    for path in sorted(source.iterdir()):
        if path.name != "manifest.json":
            shutil.copy(path, folder / path.name)
    time.sleep(1.0)
    with server.client() as client:
        assert version_state(client, "llama", 100)[0] == "absent"
    from shoal_models.manifest import read_manifest

    manifest = dataclasses.replace(read_manifest(source), version=100)
    (folder / "manifest.tmp").write_text(json.dumps(dataclasses.asdict(manifest)))
    (folder / "manifest.tmp").rename(folder / "manifest.json")
    server.wait_live("llama", 100)


def test_no_memory_for_a_version_is_decided_before_loading(tmp_path: Path, tiny_folders: dict[str, Path]) -> None:
    repository = tmp_path / "models"
    for kind in ("bert", "llama"):
        models.import_version(repository, kind, tiny_folders[kind])
    changes = {"engine": {"memory_limit_bytes": 2**30}, "generate": {"kv_cache_bytes": 2**34}}
    with ServerProcess(tmp_path / "server", repository, changes) as running:
        running.wait_live("bert", 1)
        with running.client() as client:
            limit = time.monotonic() + 30
            while (found := version_state(client, "llama", 1))[0] != "rejected":
                assert time.monotonic() < limit, found
                time.sleep(0.1)
            assert "memory" in found[1]
            assert client.classify("bert", ["x"]).served_by.version == 1
