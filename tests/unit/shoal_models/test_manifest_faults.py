"""A version that is incomplete, damaged or not to be trusted is refused before anything of it is interpreted."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from shoal_models import manifest as manifests
from shoal_models.manifest import MANIFEST_NAME, Manifest, ManifestError
from tiny_models import draft

WEIGHTS = b"\x00" * 4096 + b"the middle" + b"\xff" * 4096


def _write(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(WEIGHTS)
    (folder / "config.json").write_text("{}")


def _publish(repository: Path, name: str = "m") -> Manifest:
    given = dataclasses.replace(draft(name, "base"), family="encoder", architecture="BertModel")
    return manifests.publish(repository, given, _write)


def _edit(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    file = path / MANIFEST_NAME
    tree = json.loads(file.read_text())
    change(tree)
    file.write_text(json.dumps(tree))


@pytest.fixture
def version(tmp_path: Path) -> Path:
    """A complete version."""
    _publish(tmp_path)
    return tmp_path / "m" / "1"


def test_a_whole_version_is_read_back_as_published(tmp_path: Path) -> None:
    published = _publish(tmp_path)
    path = tmp_path / "m" / "1"
    assert manifests.read_manifest(path) == published
    manifests.verify_files(path, published)
    assert published.weight_bytes == len(WEIGHTS)
    assert manifests.list_versions(tmp_path, "m") == [1]


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: (path / "model.safetensors").write_bytes(WEIGHTS[:-1]), "model.safetensors has 8,201 bytes"),
        (
            lambda path: (path / "model.safetensors").write_bytes(WEIGHTS.replace(b"m", b"l")),
            "model.safetensors differs from its checksum",
        ),
        (lambda path: (path / "model.safetensors").unlink(), "model.safetensors is missing"),
        (lambda path: (path / "more.json").write_text("{}"), "more.json is not listed"),
        (lambda path: (path / "sub").mkdir() or (path / "sub" / "x.bin").write_text(""), "sub/x.bin is not listed"),
        (lambda path: (path / "link.json").symlink_to("/etc/hostname"), "link.json is not a plain file"),
        (lambda path: (path / "sub").symlink_to("/etc"), "sub is not a plain file"),
    ],
    ids=["truncated", "bit flipped", "missing", "extra", "extra in a folder", "symlink", "symlinked folder"],
)
def test_a_damaged_version_is_refused(version: Path, damage: Callable[[Path], Any], words: str) -> None:
    damage(version)
    manifest = manifests.read_manifest(version)
    with pytest.raises(ManifestError) as caught:
        manifests.verify_files(version, manifest)
    assert words in str(caught.value)


@pytest.mark.parametrize("name", ["../1/config.json", "/etc/passwd.json", "a/../../config.json", "..\\x.json"])
def test_a_file_that_escapes_its_folder_is_refused(version: Path, name: str) -> None:
    _edit(version, lambda tree: tree["files"][0].update(path=name))
    (version / "config.json").unlink()
    with pytest.raises(ManifestError, match="escapes the version's folder"):
        manifests.verify_files(version, manifests.read_manifest(version))


@pytest.mark.parametrize("suffix", [".bin", ".pkl", ".pt", ".py", ""])
def test_a_pickle_is_neither_published_nor_accepted(tmp_path: Path, version: Path, suffix: str) -> None:
    def write(folder: Path) -> None:
        (folder / f"weights{suffix}").write_bytes(b"\x80\x04N.")

    with pytest.raises(ManifestError, match="a version holds only"):
        manifests.publish(tmp_path, draft("m", "base"), write)
    assert manifests.list_versions(tmp_path, "m") == [1]
    assert not list((tmp_path / "m").glob(".tmp-*")), "nothing is left behind"
    (version / f"weights{suffix}").write_bytes(b"\x80\x04N.")
    entry = {"path": f"weights{suffix}", "size_bytes": 4, "sha256": manifests.sha256_of(version / f"weights{suffix}")}
    _edit(version, lambda tree: tree["files"].append(entry))
    with pytest.raises(ManifestError, match="a version holds only"):
        manifests.verify_files(version, manifests.read_manifest(version))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda tree: tree.update(schema_version=2), "schema 2; this build reads 1"),
        (lambda tree: tree.update(version="1"), "version is not int"),
        (lambda tree: tree.update(version=True), "version is not int"),
        (lambda tree: tree.update(version=2), "says m@2, its folder m@1"),
        (lambda tree: tree.update(model="other"), "says other@1, its folder m@1"),
        (lambda tree: tree.update(labels=[1]), "labels is not"),
        (lambda tree: tree.update(surprise=1), "surprise"),
        (lambda tree: tree.pop("kind"), "kind"),
        (lambda tree: tree["files"][0].update(path=5), "path is not str"),
        (lambda tree: tree["files"][0].update(size_bytes="5"), "size_bytes is not int"),
        (lambda tree: tree["files"].append(tree["files"][0]), "lists a file twice"),
    ],
)
def test_a_malformed_manifest_is_refused(version: Path, change: Callable[[dict[str, Any]], Any], words: str) -> None:
    _edit(version, change)
    with pytest.raises(ManifestError) as caught:
        manifests.read_manifest(version)
    assert words in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"files": 3}', "\ud800".encode("utf-8", "surrogatepass")])
def test_an_unreadable_manifest_is_refused(version: Path, text: str | bytes) -> None:
    file = version / MANIFEST_NAME
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ManifestError, match=MANIFEST_NAME):
        manifests.read_manifest(version)


def test_a_version_without_manifest_is_incomplete(version: Path) -> None:
    (version / MANIFEST_NAME).unlink()
    assert manifests.list_versions(version.parent.parent, "m") == []
    with pytest.raises(ManifestError, match="the version is incomplete"):
        manifests.read_manifest(version)


def test_the_number_of_a_deleted_version_is_not_given_out_again(tmp_path: Path) -> None:
    _publish(tmp_path)
    _publish(tmp_path)
    manifests.delete_version(tmp_path, "m", 2)
    assert _publish(tmp_path).version == 3
    assert manifests.list_versions(tmp_path, "m") == [1, 3]


def test_concurrent_publishers_get_distinct_versions(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    with context.Pool(4) as pool:
        published = pool.map(_publish, [tmp_path] * 24)
    assert sorted(manifest.version for manifest in published) == list(range(1, 25))
    for manifest in published:
        path = tmp_path / "m" / str(manifest.version)
        manifests.verify_files(path, manifests.read_manifest(path))
