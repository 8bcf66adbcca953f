"""Brings the base of a job onto this disk and checks it: its files, and the spec against what was fetched."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from shoal_models import manifest as manifests
from shoal_models.sources import SourceError, find_source

from shoal_training import bases
from shoal_training.failures import BaseMissing, InvalidSpec
from shoal_training.places import PlaceError, Places
from shoal_training.resolve import auto_learning_rate
from shoal_training.spec import Base, Spec


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenBase:
    """A base that can be read."""

    folder: Path
    digest: str  # SHA-256 over its weights
    licence: str  # empty where nobody told


def open_base(base: Base, places: Places) -> OpenBase:
    """Find or fetch a base, and check every file that a manifest lists.

    Raises:
        BaseMissing: it is not there, cannot be fetched, or is damaged.
    """
    try:
        facts = bases.describe(base, places)
        if facts.folder is None:
            source = find_source(base.hub_id, None)
            return OpenBase(folder=source.folder, digest=bases.digest_weights(source.folder), licence=source.licence)
        licence = ""
        if base.model:
            manifest = manifests.read_manifest(facts.folder)
            manifests.verify_files(facts.folder, manifest)
            licence = manifest.licence
        return OpenBase(folder=facts.folder, digest=bases.digest_weights(facts.folder), licence=licence)
    except PlaceError as error:
        raise BaseMissing(error.description) from None
    except SourceError as error:
        raise BaseMissing(str(error)) from None
    except manifests.ManifestError as error:
        raise BaseMissing(f"{base} is refused: {error}") from None


def complete(spec: Spec, folder: Path) -> Spec:
    """The spec with what only a fetched base could tell: its family, its limit, and so the learning rate.

    Raises:
        BaseMissing: the base is no transformers folder.
        InvalidSpec: it is not what the spec takes it for.
    """
    if not spec.base.hub_id:
        return spec
    try:
        facts = bases.describe_folder(spec.base, folder)
    except PlaceError as error:
        raise BaseMissing(error.description) from None
    if facts.family not in (None, spec.family):
        raise InvalidSpec(f"family: is {spec.family}, but the base is of family {facts.family}")
    if facts.max_tokens is not None and spec.max_len > facts.max_tokens:
        raise InvalidSpec(f"max_len: is {spec.max_len}; the base takes {facts.max_tokens}")
    if spec.learning_rate is not None:
        return spec
    rate = auto_learning_rate(spec.family, spec.method_name, facts.num_parameters or 0)
    return dataclasses.replace(spec, learning_rate=rate)
