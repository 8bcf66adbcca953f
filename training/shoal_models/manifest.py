"""What makes a version of a model complete: its manifest, written last, and the folder renamed into place.

    <repository>/<name>/<version>/            immutable; version is an integer from 1
        manifest.json                         this file's `Manifest`; lists every other file with size and SHA-256
        config.json  model.safetensors ...    as transformers' `save_pretrained` writes them; every shard is read
        tokenizer.json                        for fronts, which have neither torch nor transformers
        golden.npz                            golden inputs and outputs (absent for bases)

Only the standard library is used here, since the server's control process reads manifests too. This file is the only
writer of version numbers and of completeness. Nothing of a version is interpreted before `verify_files` has passed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"
GOLDEN_NAME = "golden.npz"
TOKENIZER_NAME = "tokenizer.json"
MAX_MANIFEST_BYTES = 16 * 2**20
ALLOWED_SUFFIXES = frozenset({".safetensors", ".json", ".txt", ".npz", ".model", ".jinja"})
MODEL_NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,127}")
_TMP_PREFIX = ".tmp-"
_CLAIM_PREFIX = ".claim-"
_CHUNK_BYTES = 2**20
_PLAIN_TYPES: dict[str, tuple[type, ...]] = {"str": (str,), "int": (int,), "bool": (bool,), "float": (int, float)}


class ManifestError(Exception):
    """A version is incomplete, damaged or not to be trusted; the message says which file and why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """One file of a version."""

    path: str  # relative, with forward slashes
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Golden:
    """How `golden.npz` was made and how closely it must be met.

    The archive holds `ids` (int32, all inputs one after the other), `lengths` (int32, one for each input) and `logits`
    (float32, (rows, outputs)): a classifier's logits, one row for each input; of a token head one row for every token
    of all inputs, in their order; a generator's logits after the last token of each input.
    """

    source: str  # "synthetic" or "data"
    fp32_tolerance: float = 1e-3  # largest absolute difference, computed in float32
    serving_tolerance: float = 0.15  # the same in the serving dtype
    int8_tolerance: float = 0.3  # the same with linear layers in 8-bit integers


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Everything a server or a person wants to know of a version before reading weights."""

    model: str
    version: int
    kind: str  # "classifier", "generator" or "base"
    family: str  # "encoder" or "decoder"
    architecture: str  # such as "BertForSequenceClassification"
    head: str = ""  # classifiers: "single_label", "multi_label", "regression", or "token": labels for every token
    labels: tuple[str, ...] = ()  # classifiers: names by label id
    max_tokens: int  # most tokens of one sequence, special tokens included
    vocabulary_size: int
    weight_dtype: str  # "float32" or "bfloat16"
    chat: bool = False  # carries a chat template
    eos_token_ids: tuple[int, ...] = ()  # generators: what ends an answer; classifiers: what must end each sequence
    class_token_id: int = -1  # the token that has token type 2 wherever it stands, as XLNet's and Funnel's; -1: none
    created_s: float = 0.0  # Unix time
    golden: Golden | None = None  # None only for bases
    source: str = ""  # imports: where it came from; jobs: "job"
    job_id: str = ""
    method: str = ""  # "full" or "lora"
    base: str = ""  # name@version or folder name of what training began with
    base_digest: str = ""  # SHA-256 over the base's weight files
    metrics: dict[str, float] = field(default_factory=dict)
    resolved_spec: dict[str, Any] = field(default_factory=dict)
    data_digests: dict[str, str] = field(default_factory=dict)  # "train", "validation" -> SHA-256
    packages: dict[str, str] = field(default_factory=dict)  # name -> version
    hardware: str = ""
    seed: int | None = None
    licence: str = ""
    files: tuple[FileEntry, ...] = ()  # filled in by `publish`
    schema_version: int = SCHEMA_VERSION

    @property
    def weight_bytes(self) -> int:
        """Bytes of the safetensors files."""
        return sum(entry.size_bytes for entry in self.files if entry.path.endswith(".safetensors"))


def publish(repository: Path, manifest: Manifest, write: Callable[[Path], Manifest | None]) -> Manifest:
    """Write a new version and make it appear at once and whole; returns its manifest with version and files.

    `write` fills an empty temporary folder beside the final one, and may return the manifest completed by what it found
    in doing so. The number is the next free one, whatever
    `manifest.version` says; a publisher that loses a race for it takes the next.

    Raises:
        ManifestError: `write` made a file that no version may hold.
        OSError: the disk is full or not writable; nothing is left behind.
    """
    check_name(manifest.model)
    folder = repository / manifest.model
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f"{_TMP_PREFIX}{os.getpid()}-{time.time_ns()}"
    temporary.mkdir()
    try:
        manifest = write(temporary) or manifest
        files = _describe_files(temporary)
        version = _claim_next(folder)
        final = dataclasses.replace(manifest, version=version, files=files, created_s=time.time())
        _write_durably(temporary / MANIFEST_NAME, _encode(final))
        _fsync_tree(temporary)
        temporary.rename(folder / str(version))
        _fsync_folder(folder)
        return final
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def read_manifest(path: Path) -> Manifest:
    """Read and check the manifest of the version folder `path`; the files it lists are not looked at.

    Raises:
        ManifestError: it is absent, malformed, from a newer schema, or belongs to another folder.
    """
    file = path / MANIFEST_NAME
    try:
        size = file.stat().st_size
        if size > MAX_MANIFEST_BYTES:
            raise ManifestError(f"{MANIFEST_NAME} has {size:,} bytes; limit {MAX_MANIFEST_BYTES:,}")
        tree = json.loads(file.read_bytes())
    except FileNotFoundError:
        raise ManifestError(f"{MANIFEST_NAME} is missing: the version is incomplete") from None
    except (OSError, ValueError) as error:
        raise ManifestError(f"{MANIFEST_NAME} is unreadable: {type(error).__name__}") from None
    manifest = _decode(tree)
    if path.name != str(manifest.version) or path.parent.name != manifest.model:
        raise ManifestError(
            f"{MANIFEST_NAME} says {manifest.model}@{manifest.version}, its folder {path.parent.name}@{path.name}"
        )
    return manifest


def verify_files(path: Path, manifest: Manifest) -> None:
    """Check that the folder holds exactly the listed files, with their sizes and checksums, and nothing escaping it.

    Raises:
        ManifestError: naming the file and what is wrong with it.
    """
    listed = {entry.path for entry in manifest.files}
    for found in sorted(path.rglob("*")):
        name = found.relative_to(path).as_posix()
        if found.is_symlink() or not (found.is_file() or found.is_dir()):
            raise ManifestError(f"{name} is not a plain file")
        if found.is_file() and name != MANIFEST_NAME and name not in listed:
            raise ManifestError(f"{name} is not listed in {MANIFEST_NAME}")
    for entry in manifest.files:
        _verify_file(path, entry)


def list_models(repository: Path) -> list[str]:
    """Names of the models that have a folder, sorted."""
    try:
        return sorted(p.name for p in repository.iterdir() if p.is_dir() and MODEL_NAME.fullmatch(p.name))
    except FileNotFoundError:
        return []


def list_versions(repository: Path, model: str) -> list[int]:
    """Numbers of the complete versions (those with a manifest), ascending."""
    try:
        folders = list((repository / model).iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    numbers = [int(p.name) for p in folders if p.name.isascii() and p.name.isdigit() and str(int(p.name)) == p.name]
    return sorted(n for n in numbers if n >= 1 and (repository / model / str(n) / MANIFEST_NAME).is_file())


def delete_version(repository: Path, model: str, version: int) -> None:
    """Remove a version: first out of sight by a rename, then from the disk."""
    folder = repository / model
    hidden = folder / f"{_TMP_PREFIX}deleted-{version}-{time.time_ns()}"
    (folder / str(version)).rename(hidden)
    _fsync_folder(folder)
    shutil.rmtree(hidden, ignore_errors=True)


def check_name(model: str) -> None:
    """Raises ManifestError unless `model` may name a folder of the repository."""
    if not MODEL_NAME.fullmatch(model):
        raise ManifestError(
            f"model name {model[:140]!r} is not 1 to 128 of a-z A-Z 0-9 . _ - beginning with a letter or digit"
        )


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _claim_next(folder: Path) -> int:
    """Take the next version number by exclusively creating its claim file; who loses a race takes the next.

    Claims stay, so that the number of a deleted version is never given out again.
    """
    names = [path.name.removeprefix(_CLAIM_PREFIX) for path in folder.iterdir()]
    version = max((int(name) for name in names if name.isascii() and name.isdigit()), default=0) + 1
    while True:
        try:
            (folder / f"{_CLAIM_PREFIX}{version}").touch(exist_ok=False)
        except FileExistsError:
            version += 1
        else:
            return version


def _describe_files(folder: Path) -> tuple[FileEntry, ...]:
    entries = []
    for path in sorted(p for p in folder.rglob("*") if not p.is_dir()):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or path.suffix not in ALLOWED_SUFFIXES:
            raise ManifestError(f"{name}: a version holds only {', '.join(sorted(ALLOWED_SUFFIXES))} files")
        entries.append(FileEntry(path=name, size_bytes=path.stat().st_size, sha256=sha256_of(path)))
    return tuple(entries)


def _verify_file(folder: Path, entry: FileEntry) -> None:
    relative = PurePosixPath(entry.path)
    if relative.is_absolute() or ".." in relative.parts or "\\" in entry.path:
        raise ManifestError(f"{entry.path} escapes the version's folder")
    if relative.suffix not in ALLOWED_SUFFIXES:
        raise ManifestError(f"{entry.path}: a version holds only {', '.join(sorted(ALLOWED_SUFFIXES))} files")
    path = folder / relative
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise ManifestError(f"{entry.path} is missing") from None
    if size != entry.size_bytes:
        raise ManifestError(f"{entry.path} has {size:,} bytes; its manifest says {entry.size_bytes:,}")
    if sha256_of(path) != entry.sha256:
        raise ManifestError(f"{entry.path} differs from its checksum")


def _encode(manifest: Manifest) -> bytes:
    return json.dumps(dataclasses.asdict(manifest), indent=1, ensure_ascii=False).encode()


def _decode(tree: object) -> Manifest:
    if not isinstance(tree, dict):
        raise ManifestError(f"{MANIFEST_NAME} is not an object")
    if tree.get("schema_version", 0) != SCHEMA_VERSION:
        raise ManifestError(
            f"{MANIFEST_NAME} has schema {tree.get('schema_version')!r}; this build reads {SCHEMA_VERSION}"
        )
    try:
        golden = tree.pop("golden", None)
        files = tuple(FileEntry(**entry) for entry in tree.pop("files"))
        tree["labels"] = tuple(tree.get("labels", ()))
        tree["eos_token_ids"] = tuple(tree.get("eos_token_ids", ()))
        manifest = Manifest(golden=Golden(**golden) if golden else None, files=files, **tree)
    except (KeyError, TypeError) as error:
        raise ManifestError(f"{MANIFEST_NAME} is malformed: {error}") from None
    for part in (manifest, manifest.golden, *manifest.files):
        _check_types(part)
    if len({entry.path for entry in manifest.files}) != len(manifest.files):
        raise ManifestError(f"{MANIFEST_NAME} lists a file twice")
    return manifest


def _check_types(part: Manifest | Golden | FileEntry | None) -> None:
    """Raises ManifestError where a plain field holds a value of another type: JSON has no types of ours."""
    for item in dataclasses.fields(part) if part is not None else ():
        value = getattr(part, item.name)
        wanted = _PLAIN_TYPES.get(str(item.type))
        if wanted and (not isinstance(value, wanted) or (isinstance(value, bool) and bool not in wanted)):
            raise ManifestError(f"{MANIFEST_NAME} is malformed: {item.name} is not {item.type}")
        members = {"tuple[str, ...]": str, "tuple[int, ...]": int}.get(str(item.type))
        if members and not all(isinstance(member, members) for member in value):
            raise ManifestError(f"{MANIFEST_NAME} is malformed: {item.name} is not {item.type}")


def _write_durably(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _fsync_tree(folder: Path) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())
        else:
            _fsync_folder(path)
    _fsync_folder(folder)


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
