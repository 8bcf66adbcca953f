"""Versions that wait beside a repository and appear in it by one rename, as a publisher's would.

Made before anything is measured, so that what is measured holds no publisher's work. Files are hard links of one
imported version of each kind; only manifests differ, in their numbers. Classifiers alternate between two heads, of
which each puts another label first whatever the text: an answer tells which head gave it.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path

from shoal_models.manifest import MANIFEST_NAME, list_versions, read_manifest

from benchmarks import folders


def favourite_label(version: int) -> str:
    """The label that every text gets from a staged classifier of that number."""
    return f"label-{version % 2}"


class Staging:
    """A repository to serve, with version 1 of both models, and the versions that will appear in it."""

    def __init__(self, folder: Path) -> None:
        self.repository = folder / "models"
        self._waiting = folder / "waiting"
        self._sources = folder.parent / "staging-sources"

    def prepare(self, num_versions: dict[str, int]) -> None:
        """Lay out version 1 of each model, and versions 2 to that number in waiting."""
        for path in (self.repository, self._waiting):
            shutil.rmtree(path, ignore_errors=True)
        for model, count in num_versions.items():
            for version in range(1, count + 1):
                root = self.repository if version == 1 else self._waiting
                _link(self._source(model, version), root / model / str(version), model, version)

    def release(self, model: str, version: int) -> None:
        """Let a version appear in the repository."""
        (self._waiting / model / str(version)).rename(self.repository / model / str(version))

    def _source(self, model: str, version: int) -> Path:
        """A version folder whose files the staged version shares."""
        if model == folders.GENERATOR:
            return folders.ensure_repository(model) / model / "1"
        name = f"head-{version % 2}"
        if not list_versions(self._sources, name):
            from shoal_models.importer import import_model  # brings in torch

            written = folders.write_classifier(self._sources / f"{name}-folder", favourite=version % 2)
            import_model(name, str(written), self._sources)
        return self._sources / name / "1"


def _link(source: Path, target: Path, model: str, version: int) -> None:
    target.mkdir(parents=True)
    for path in source.iterdir():
        if path.name != MANIFEST_NAME:
            os.link(path, target / path.name)
    manifest = dataclasses.replace(read_manifest(source), model=model, version=version)
    (target / MANIFEST_NAME).write_text(json.dumps(dataclasses.asdict(manifest)))
