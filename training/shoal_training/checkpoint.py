"""Which checkpoints count: those whose marker was written last and whose every file still has its checksum.

    ckpt/checkpoint-<step>/   weights, optimizer, schedule, random states; enough to go on exactly
    ckpt/best-<step>/         only the weights of the best evaluation so far
    .../complete.json         the marker: step, digests of what the job is made of, files with sizes and SHA-256

Knows files only, no torch. Loading a truncated file is never tried: a folder that does not verify is removed and the
one before it is taken.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoal_models import manifest as manifests

from shoal_training.job import write_json

MARKER_NAME = "complete.json"
KEEP = 2
_CHECKPOINT, _BEST = "checkpoint-", "best-"


class ResumeRefused(Exception):
    """A valid checkpoint was made from something else. `what` names it: "spec", "data" or "base"."""

    def __init__(self, what: str, step: int) -> None:
        super().__init__(f"the {what} changed since the checkpoint of step {step}; start a new job instead")
        self.what = what


@dataclass(frozen=True, slots=True, kw_only=True)
class Digests:
    """SHA-256 of everything that a checkpoint depends on."""

    spec: str
    data: str
    base: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What the evaluations so far decided."""

    evaluated_step: int = 0
    best_step: int = 0  # 0: none yet
    best_score: tuple[float, ...] = ()  # compared lexicographically, higher is better
    num_worse: int = 0  # evaluations since the best one
    ended: bool = False  # early stopping said enough


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A verified checkpoint."""

    folder: Path
    step: int
    selection: Selection
    spent_s: float  # by the job up to it


class CheckpointStore:
    """The checkpoints of one job; the only writer of their markers."""

    def __init__(self, folder: Path, digests: Digests) -> None:
        self.folder = folder
        self._digests = digests

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step lies, or will."""
        return self.folder / f"{_CHECKPOINT}{step}"

    def best_path(self, step: int) -> Path:
        """Where the weights of the best evaluation lie, or will."""
        return self.folder / f"{_BEST}{step}"

    def complete(self, step: int, selection: Selection, spent_s: float) -> None:
        """Declare the checkpoint of `step` whole, and drop what is no longer needed."""
        state = {"selection": dataclasses.asdict(selection), "spent_s": spent_s}
        self._seal(self.path(step), step, state)
        self._prune(selection)

    def complete_best(self, step: int) -> None:
        """Declare the best weights of `step` whole."""
        self._seal(self.best_path(step), step, {})

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint that verifies; every newer one is removed.

        Raises:
            ResumeRefused: it verifies, but belongs to another spec, data or base.
        """
        for step in sorted(self._steps(_CHECKPOINT), reverse=True):
            checkpoint = self._verify(step)
            if checkpoint is not None:
                return checkpoint
            shutil.rmtree(self.path(step), ignore_errors=True)
        return None

    def _verify(self, step: int) -> Checkpoint | None:
        marker = _verified_marker(self.path(step), step)
        if marker is None:
            return None
        for what, digest in dataclasses.asdict(self._digests).items():
            if marker["digests"].get(what) != digest:
                raise ResumeRefused(what, step)
        tree = dict(marker["state"]["selection"])
        selection = Selection(**{**tree, "best_score": tuple(tree["best_score"])})
        best = selection.best_step
        if best and _verified_marker(self.best_path(best), best) is None:
            return None
        return Checkpoint(folder=self.path(step), step=step, selection=selection, spent_s=marker["state"]["spent_s"])

    def _seal(self, folder: Path, step: int, state: dict[str, Any]) -> None:
        paths = [path for path in sorted(folder.iterdir()) if path.is_file() and path.name != MARKER_NAME]
        for path in paths:
            _fsync(path)
        files = [
            {"path": path.name, "size_bytes": path.stat().st_size, "sha256": manifests.sha256_of(path)}
            for path in paths
        ]
        marker = {"step": step, "digests": dataclasses.asdict(self._digests), "files": files, "state": state}
        write_json(folder / MARKER_NAME, marker)
        _fsync(folder)
        _fsync(folder.parent)

    def _prune(self, selection: Selection) -> None:
        steps = sorted(self._steps(_CHECKPOINT), reverse=True)
        needed = {selection.best_step}
        for step in steps[:KEEP]:
            marker = _read_marker(self.path(step))
            needed.add(marker["state"]["selection"]["best_step"] if marker else 0)
        for step in steps[KEEP:]:
            shutil.rmtree(self.path(step), ignore_errors=True)
        for step in set(self._steps(_BEST)) - needed:
            shutil.rmtree(self.best_path(step), ignore_errors=True)

    def _steps(self, prefix: str) -> list[int]:
        if not self.folder.is_dir():
            return []
        names = [path.name.removeprefix(prefix) for path in self.folder.iterdir() if path.name.startswith(prefix)]
        return [int(name) for name in names if name.isascii() and name.isdigit()]


def _read_marker(folder: Path) -> dict[str, Any] | None:
    try:
        marker = json.loads((folder / MARKER_NAME).read_bytes())
    except (OSError, ValueError):
        return None
    return marker if isinstance(marker, dict) else None


def _verified_marker(folder: Path, step: int) -> dict[str, Any] | None:
    marker = _read_marker(folder)
    if marker is None or marker.get("step") != step:
        return None
    for entry in marker["files"]:
        path = folder / entry["path"]
        if not path.is_file() or path.stat().st_size != entry["size_bytes"]:
            return None
        if manifests.sha256_of(path) != entry["sha256"]:
            return None
    return marker


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
