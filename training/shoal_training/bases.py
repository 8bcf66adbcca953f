"""What can be known of a base model without loading it: its place, family, size and limits. No torch here."""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoal_models import manifest as manifests

from shoal_training.compatibility import DECODER, ENCODER
from shoal_training.places import PlaceError, Places, find_under_roots
from shoal_training.spec import Base

_HUB_ID = re.compile(r"[\w.-]{1,96}/[\w.-]{1,96}|[\w.-]{1,96}")
_MAX_HEADER_BYTES = 100 * 2**20
_BYTES_PER_WEIGHT = {"float32": 4, "bfloat16": 2, "float16": 2}
_ENCODER_TYPES = frozenset(
    [
        "albert",
        "bert",
        "camembert",
        "deberta",
        "deberta-v2",
        "distilbert",
        "electra",
        "ernie",
        "mpnet",
        "modernbert",
        "nomic_bert",
        "roberta",
        "roberta-prelayernorm",
        "xlm-roberta",
    ]
)
# Families whose positions begin after the padding index: two of their position embeddings are never used.
_OFFSET_POSITIONS = frozenset({"roberta", "xlm-roberta", "camembert", "mpnet"})
_LENGTH_KEYS = ("max_position_embeddings", "n_positions", "n_ctx", "seq_length")


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseFacts:
    """A base, pinned. What a hub base is like is known only once it is fetched."""

    base: Base
    folder: Path | None  # None: still on the hub
    family: str | None
    num_parameters: int | None
    max_tokens: int | None


def describe(base: Base, places: Places) -> BaseFacts:
    """Find a base and read its manifest or configuration.

    Raises:
        PlaceError: there is none, or it cannot be trained from.
    """
    if base.model:
        return _describe_version(base.model, places.repository)
    if base.path:
        return describe_folder(Base(path=str(folder := find_under_roots(base.path, places.data_roots))), folder)
    if not _HUB_ID.fullmatch(base.hub_id):
        raise PlaceError(f"{base.hub_id[:200]!r} is not a hub id such as org/name")
    return BaseFacts(base=base, folder=None, family=None, num_parameters=None, max_tokens=None)


def describe_folder(base: Base, folder: Path) -> BaseFacts:
    """Facts of a transformers folder.

    Raises:
        PlaceError: it has no configuration or no safetensors weights.
    """
    if not folder.is_dir():
        raise PlaceError(f"{base} is not a folder")
    try:
        config = json.loads((folder / "config.json").read_bytes())
        weights = weight_files(folder)
        num_parameters = sum(_count_weights(path) for path in weights)
    except FileNotFoundError as error:
        raise PlaceError(f"{base} is not a transformers folder: {Path(str(error.filename)).name} is missing") from None
    except (OSError, ValueError, KeyError, TypeError, struct.error):
        raise PlaceError(f"{base} cannot be read: its configuration or weights are damaged") from None
    if not weights:
        raise PlaceError(f"{base} has no safetensors weights; pickled weights are refused")
    return BaseFacts(
        base=base,
        folder=folder,
        family=_family_of(config),
        num_parameters=num_parameters,
        max_tokens=_max_tokens_of(config),
    )


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a transformers folder, sorted; empty when it has none."""
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        if any("/" in name or name.startswith(".") for name in names):
            raise PlaceError("the weight index names files outside its folder")
        return [folder / name for name in names]
    single = folder / "model.safetensors"
    return [single] if single.is_file() else []


def digest_weights(folder: Path) -> str:
    """SHA-256 over names and contents of the weight files, hexadecimal."""
    digest = hashlib.sha256()
    for path in weight_files(folder):
        digest.update(f"{path.name} {manifests.sha256_of(path)}\n".encode())
    return digest.hexdigest()


def split_reference(reference: str) -> tuple[str, int | None]:
    """Name and version of `name` or `name@version`.

    Raises:
        PlaceError: the version is not a positive integer.
    """
    name, at, version = reference.partition("@")
    if not at:
        return name, None
    if not (version.isascii() and version.isdigit() and int(version) >= 1):
        raise PlaceError(f"{reference[:200]!r} is not name or name@version with a version from 1")
    return name, int(version)


def _describe_version(reference: str, repository: Path) -> BaseFacts:
    name, version = split_reference(reference)
    models = manifests.list_models(repository)
    if name not in models:
        near = ", ".join(models[:20]) or "none"
        raise PlaceError(f"no model {name[:140]!r} in the repository; it has: {near}", kind="ModelNotFound")
    versions = manifests.list_versions(repository, name)
    if version is None and versions:
        version = versions[-1]
    if version is None or version not in versions:
        shown = ", ".join(map(str, versions[-20:])) or "none complete"
        raise PlaceError(f"{name} has no complete version {version or ''}; it has: {shown}", kind="ModelNotFound")
    folder = repository / name / str(version)
    try:
        manifest = manifests.read_manifest(folder)
    except manifests.ManifestError as error:
        raise PlaceError(f"{name}@{version} is refused: {error}", kind="ModelNotFound") from None
    return BaseFacts(
        base=Base(model=f"{name}@{version}"),
        folder=folder,
        family=manifest.family,
        num_parameters=manifest.weight_bytes // _BYTES_PER_WEIGHT.get(manifest.weight_dtype, 4),
        max_tokens=manifest.max_tokens,
    )


def _family_of(config: dict[str, Any]) -> str | None:
    architectures = " ".join(config.get("architectures") or [])
    if config.get("model_type") in _ENCODER_TYPES and not config.get("is_decoder"):
        return ENCODER
    if "ForCausalLM" in architectures or "LMHeadModel" in architectures:
        return DECODER
    return None


def _max_tokens_of(config: dict[str, Any]) -> int | None:
    lengths = [int(config[key]) for key in _LENGTH_KEYS if isinstance(config.get(key), int)]
    if not lengths:
        return None
    return lengths[0] - (2 if config.get("model_type") in _OFFSET_POSITIONS else 0)


def _count_weights(path: Path) -> int:
    """Numbers in a safetensors file, by its header."""
    with path.open("rb") as file:
        (size,) = struct.unpack("<Q", file.read(8))
        if size > _MAX_HEADER_BYTES:
            raise ValueError("the header is too large")
        header = json.loads(file.read(size))
    return sum(math.prod(entry["shape"]) for name, entry in header.items() if name != "__metadata__")
