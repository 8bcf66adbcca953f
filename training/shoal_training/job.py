"""The job folder: what the supervisor writes, what the trainer leaves.

job.json      the order: written by who starts the job, at every start
events.jsonl  what happens, one event a line
ckpt/         checkpoints; optimizer state never leaves it
report.json   the final evaluation in full
result.json   written last: how it ended
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoal_training import spec as specs
from shoal_training.failures import InvalidSpec
from shoal_training.places import Places
from shoal_training.spec import Spec

ORDER_NAME = "job.json"
EVENTS_NAME = "events.jsonl"
CHECKPOINTS_NAME = "ckpt"
REPORT_NAME = "report.json"
RESULT_NAME = "result.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One order and its folder."""

    folder: Path
    job_id: str
    spec: Spec
    places: Places
    attempt: int
    num_threads: int

    @property
    def events_path(self) -> Path:
        """Where events go."""
        return self.folder / EVENTS_NAME

    @property
    def checkpoints(self) -> Path:
        """Where checkpoints go."""
        return self.folder / CHECKPOINTS_NAME


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """How a job ended."""

    state: str  # "succeeded" or "failed"
    failure_reason: str = ""
    failure_message: str = ""
    metrics: dict[str, float]
    published_version: int = 0


def read_job(folder: Path) -> Job:
    """The order in a job folder.

    Raises:
        InvalidSpec: job.json is missing or malformed.
    """
    try:
        tree = json.loads((folder / ORDER_NAME).read_bytes())
        dataset_dir = tree.get("dataset_dir")
        return Job(
            folder=folder,
            job_id=tree["job_id"],
            spec=specs.from_tree(tree["spec"]),
            places=Places(
                repository=Path(tree["repository"]),
                data_roots=tuple(Path(root) for root in tree.get("data_roots") or []),
                dataset_dir=Path(dataset_dir) if dataset_dir else None,
            ),
            attempt=tree.get("attempt", 1),
            num_threads=tree.get("num_threads", 1),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidSpec(f"{ORDER_NAME} is unreadable: {type(error).__name__}") from None


def write_json(path: Path, tree: dict[str, Any]) -> None:
    """Replace a file whole: a reader sees the old one or the new one."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        json.dump(tree, file, indent=1, ensure_ascii=False)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
