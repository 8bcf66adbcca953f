"""Loads a published version so that it runs in the fastest way that is right, or refuses it with a reason.

Weights are read once, in float32, from safetensors; then comes the probe of how sequences can run together, the golden
outputs in float32, the cast to what is served, and the golden outputs again. Whoever loads version after version keeps
a `Proven`, which saves probing a configuration twice. Meant for a background thread of a live engine: weights are read
and computed in small pieces that leave the GIL, and nothing global is switched but transformers' progress bars.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError

from shoal_models.classifier import LoadedClassifier
from shoal_models.classifier_probe import choose_execution
from shoal_models.compute import Compute, ComputeError, choose_compute
from shoal_models.execution import Execution
from shoal_models.generator import LoadedGenerator
from shoal_models.golden import GoldenMismatch, check_golden, golden_row
from shoal_models.manifest import Manifest
from shoal_models.packed import CacheShape
from shoal_models.probe import (
    ProbeFailure,
    cache_shape,
    plain_logits,
    probe_generator,
    probe_sequences,
)
from shoal_models.weights import read_weights

__all__ = [
    "GoldenMismatch",
    "LoadError",
    "LoadedClassifier",
    "LoadedGenerator",
    "Proven",
    "load_version",
    "open_model",
    "silence_progress_bars",
]

_CONFIG_NAME = "config.json"
_GROWING_ROPES = ("dynamic", "longrope")


class LoadError(Exception):
    """A version cannot be run; the message says why."""


class Proven:
    """What the probe found out of configurations: the golden outputs then check that it holds for other weights."""

    def __init__(self) -> None:
        self._found: dict[str, CacheShape | Execution] = {}

    def of(self, manifest: Manifest) -> CacheShape | Execution | None:
        """What a version with this architecture and configuration was found to be; None: there was none."""
        return self._found.get(_configuration(manifest))

    def add(self, manifest: Manifest, found: CacheShape | Execution) -> None:
        """Note how a classifier runs, or what a generator's cache is like."""
        self._found[_configuration(manifest)] = found


def load_version(
    path: Path,
    manifest: Manifest,
    *,
    dtype: torch.dtype,
    device: torch.device,
    proven: Proven | None = None,
    share: bool = False,
) -> LoadedClassifier | LoadedGenerator:
    """Load the version folder `path`, whose files have been verified, and check its golden outputs.

    `proven` is what earlier loads on this device found out, and learns from this one. With `share`, weights that are
    served on a CPU as they lie in the files are mapped: processes that do so hold them once.

    Raises:
        LoadError: the architecture, head or dtype is not one that can be served here.
        GoldenMismatch: it does not compute what it computed when it was published.
    """
    try:
        compute = choose_compute(dtype, device)
    except ComputeError as error:
        raise LoadError(str(error)) from None
    if manifest.kind == "generator":
        compute = compute.without_int8()
    if manifest.kind not in {"classifier", "generator"}:
        raise LoadError(
            f"{manifest.model}@{manifest.version} is a {manifest.kind}, which is trained from and not served"
        )
    try:
        return _load_or_probe(path, manifest, compute, device, proven, share=share)
    except GoldenMismatch:
        if not compute.fixed_steps:
            raise
        return _load_or_probe(path, manifest, compute.with_row_steps(), device, proven, share=share)


def _load_or_probe(
    path: Path, manifest: Manifest, compute: Compute, device: torch.device, proven: Proven | None, *, share: bool
) -> LoadedClassifier | LoadedGenerator:
    if proven is not None and proven.of(manifest):
        try:
            return _load(path, manifest, compute, device, proven, share=share)
        except GoldenMismatch:  # maybe these weights, unlike the earlier ones, need the slower path: ask the probe
            return _load(path, manifest, compute, device, Proven(), share=share)
    return _load(path, manifest, compute, device, proven or Proven(), share=share)


def _load(
    path: Path, manifest: Manifest, compute: Compute, device: torch.device, proven: Proven, *, share: bool
) -> LoadedClassifier | LoadedGenerator:
    can_share = share and compute.exact and device.type == "cpu"
    model = open_model(path, manifest.architecture, share=can_share).to(device)
    _check_limits(model.config, manifest)
    make = _classifier if manifest.kind == "classifier" else _generator
    return _checked(make(model, manifest, proven), path, manifest, compute)


def open_model(path: Path, architecture: str, *, share: bool = False) -> Any:
    """The transformers model of that class in the folder `path`, in float32 and eval mode, on the CPU.

    `share` as in `read_weights`.

    Raises:
        LoadError: transformers has no such class, or the files do not fill it.
    """
    silence_progress_bars()
    found = getattr(transformers, architecture, None) if architecture.isidentifier() else None
    if not (isinstance(found, type) and issubclass(found, transformers.PreTrainedModel)):
        raise LoadError(f"transformers {transformers.__version__} has no architecture {architecture[:100]!r}")
    cls: Any = found
    if not (path / _CONFIG_NAME).is_file():
        raise LoadError(f"{architecture} has no {_CONFIG_NAME}")
    try:
        model, info = cls.from_pretrained(
            None,
            config=cls.config_class.from_pretrained(path, local_files_only=True),
            state_dict=read_weights(path, share=share),
            dtype=torch.float32,
            attn_implementation="sdpa" if cls._supports_sdpa else "eager",
            output_loading_info=True,
        )
    except (
        OSError,
        ValueError,
        RuntimeError,
        KeyError,
        TypeError,
        AttributeError,
        ArithmeticError,
        ImportError,
        SafetensorError,
    ) as error:
        raise LoadError(f"{architecture} cannot be read: {type(error).__name__}: {str(error)[:300]}") from error
    for name in ("missing_keys", "mismatched_keys", "error_msgs"):
        if info.get(name):
            raise LoadError(
                f"{architecture}: {name.replace('_', ' ')} in its weights: {sorted(map(str, info[name]))[:3]}"
            )
    return model.eval().requires_grad_(False)


def _classifier(model: Any, manifest: Manifest, proven: Proven) -> LoadedClassifier:
    loaded = LoadedClassifier(model, manifest)
    known = proven.of(manifest)
    if isinstance(known, Execution):
        loaded.run(known)
        return loaded
    try:
        proven.add(manifest, choose_execution(loaded, model))
    except ProbeFailure as failure:
        raise LoadError(f"{manifest.architecture} does not run on token ids alone: {failure}") from failure
    return loaded


def _generator(model: Any, manifest: Manifest, proven: Proven) -> LoadedGenerator:
    known = proven.of(manifest)
    if isinstance(known, CacheShape):
        return LoadedGenerator(model, manifest, known)
    try:
        sequences = probe_sequences(model)
        shape = cache_shape(model, sequences)
        expected = plain_logits(model, sequences)
        loaded = LoadedGenerator(model, manifest, shape)
        probe_generator(loaded, sequences, expected)
    except ProbeFailure as failure:
        raise LoadError(f"{manifest.architecture} cannot run over a paged cache: {failure}") from failure
    proven.add(manifest, shape)
    return loaded


def _checked(
    loaded: LoadedClassifier | LoadedGenerator, path: Path, manifest: Manifest, compute: Compute
) -> LoadedClassifier | LoadedGenerator:
    if not compute.exact:  # else the check of what is served is the one in float32
        check_golden(loaded, path, manifest)
    if isinstance(loaded, LoadedClassifier):
        loaded.cast(compute, golden_row(path, manifest) if compute.fixed_steps else None)
    else:
        loaded.cast(compute)
    check_golden(loaded, path, manifest)
    return loaded


def _configuration(manifest: Manifest) -> str:
    """Tells configurations apart: the architecture and what is in its config.json."""
    digests = [entry.sha256 for entry in manifest.files if entry.path == _CONFIG_NAME]
    return f"{manifest.architecture} {digests}"


def _check_limits(config: Any, manifest: Manifest) -> None:
    """Raises LoadError where positions would depend on what else is in the row."""
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") in _GROWING_ROPES:
        limit = rope.get("original_max_position_embeddings") or config.max_position_embeddings
        if manifest.max_tokens > limit:
            raise LoadError(
                f"rotary positions of type {rope['rope_type']} are served up to {limit:,} tokens; "
                f"its manifest says {manifest.max_tokens:,}"
            )


def silence_progress_bars() -> None:
    """Transformers draws none from now on in this process."""
    transformers.utils.logging.disable_progress_bar()  # type: ignore[no-untyped-call]
