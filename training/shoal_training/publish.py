"""From trained weights to a version in the repository, through `shoal_models`."""

from __future__ import annotations

import importlib.metadata
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from shoal_models.manifest import Manifest
from shoal_models.save import publish_model

from shoal_training.spec import Spec

_PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "peft", "accelerate", "shoal")


@dataclass(frozen=True, slots=True, kw_only=True)
class Trained:
    """What is published, and all that its manifest tells."""

    job_id: str
    spec: Spec
    model: Any  # merged, float32
    tokenizer: Any  # as the base has it
    base_digest: str
    licence: str
    kind: str
    labels: tuple[str, ...]
    metrics: dict[str, float]
    data_digests: dict[str, str]
    golden_rows: list[list[int]]  # token ids of validation rows, used only where the spec allows it


def publish(trained: Trained, repository: Path) -> Manifest:
    """Write the next version of the spec's model.

    Raises:
        OSError: the disk is full or not writable; nothing is left behind.
    """
    spec = trained.spec
    manifest = Manifest(
        model=spec.name,
        version=0,  # given by the repository
        kind=trained.kind,
        family=spec.family,
        architecture="",  # this and all that is not named is read off the model
        head="single_label" if trained.labels else "",
        labels=trained.labels,
        max_tokens=0,
        vocabulary_size=0,
        weight_dtype=spec.publish_dtype,
        source="job",
        job_id=trained.job_id,
        method=spec.method_name,
        base=str(spec.base),
        base_digest=trained.base_digest,
        metrics=trained.metrics,
        resolved_spec=spec.to_tree(),
        data_digests=trained.data_digests,
        packages=packages(),
        hardware=hardware(),
        seed=spec.seed,
        licence=trained.licence,
    )
    golden_inputs = trained.golden_rows if spec.golden == "data" else None
    return publish_model(trained.model, trained.tokenizer, repository, manifest, golden_inputs=golden_inputs)


def packages() -> dict[str, str]:
    """Versions of what computed the weights."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # an optional one
    return found


def hardware() -> str:
    """The device that computed the weights, in words."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU ({torch.backends.cpu.get_cpu_capability()}), {torch.get_num_threads()} threads"
