"""Runs plans on the device: the only file of the server that touches weights and KV tensors.

Builds packed rows from plans. Knows nothing of queues, deadlines or sockets.

T packed tokens, R rows of logits (one for each sequence, or for each token), L labels, W wanted rows.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from shoal_models.load import LoadedClassifier, LoadedGenerator
from shoal_models.manifest import Manifest
from shoal_models.packed import PackedRow, PagedCache
from torch import Tensor

from shoal_server.engine.classify_queue import ClassifyPlan
from shoal_server.engine.lanes import Lanes
from shoal_server.engine.launched import Computed, Launched, OnGpu, OnLane
from shoal_server.engine.request import GenerateRequest, VersionKey
from shoal_server.engine.sampler import Choices, choose
from shoal_server.engine.scheduler import StepPlan
from shoal_server.ipc.messages import VersionMemory


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadyClassifier:
    """A classifier that has passed every check."""

    key: VersionKey
    manifest: Manifest
    model: LoadedClassifier
    memory: VersionMemory
    load_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadyGenerator:
    """A generator that has passed every check, with its empty cache."""

    key: VersionKey
    manifest: Manifest
    model: LoadedGenerator
    cache: PagedCache
    memory: VersionMemory
    load_s: float


ReadyVersion = ReadyClassifier | ReadyGenerator


@dataclass(frozen=True, slots=True, kw_only=True)
class PreparedRow:
    """A Classify plan as tensors in host memory."""

    plan: ClassifyPlan
    row: PackedRow


class ModelRunner:
    """The versions in this process, and their forwards."""

    def __init__(self, device: torch.device, lanes: Lanes | None) -> None:
        """`lanes` are a processor's; a GPU has none."""
        self._device = device
        self._lanes = lanes
        self._classifiers: dict[VersionKey, ReadyClassifier] = {}
        self._generators: dict[VersionKey, ReadyGenerator] = {}

    def adopt(self, ready: ReadyVersion) -> None:
        """Take a version in."""
        if isinstance(ready, ReadyClassifier):
            self._classifiers[ready.key] = ready
        else:
            self._generators[ready.key] = ready

    def release(self, key: VersionKey) -> ReadyVersion:
        """Give a version away, to be freed by whoever takes it."""
        return self._classifiers.pop(key) if key in self._classifiers else self._generators.pop(key)

    def prepare(self, plan: ClassifyPlan) -> PreparedRow:
        """The packed row of a plan, in host memory."""
        return PreparedRow(plan=plan, row=_classify_row(plan))

    def launch(self, prepared: PreparedRow, *, is_alone: bool, is_short: bool) -> Launched:
        """Begin the forward of a prepared row. `is_alone`: nothing else runs or waits; `is_short`: it is soon over."""
        model, row = self._classifiers[prepared.plan.version].model, prepared.row
        if self._lanes is None:
            return self._launch_on_gpu(model, prepared.plan, row)

        def compute() -> Computed:
            began_s = time.monotonic()
            return Computed(logits_RL=model.logits(row), seconds=time.monotonic() - began_s)

        if is_short:
            return OnLane(plan=prepared.plan, future=self._lanes.compute_here(compute))
        return OnLane(plan=prepared.plan, future=self._lanes.submit(compute, is_alone=is_alone))

    def generate(self, plan: StepPlan) -> Choices:
        """Compute a step and choose a token for each piece that wants one; fills the cache.

        Raises:
            NotFiniteLogits: the model failed for some sequences; the step may be repeated without them.
        """
        if self._lanes is None:
            return self._generate(plan)
        return self._lanes.step(lambda: self._generate(plan))

    @torch.inference_mode()
    def _generate(self, plan: StepPlan) -> Choices:
        ready = self._generators[plan.version]
        row = _generate_row(plan, ready.cache, self._device)
        requests: list[GenerateRequest] = []
        wanted = []
        for piece, end in zip(plan.pieces, row.starts[1:], strict=True):
            if piece.wants_token:
                wanted.append(end - 1)
                requests.append(piece.request)
        logits_WV = ready.model.logits(row, _on_device(np.array(wanted, dtype=np.int64), self._device))
        return choose(logits_WV, requests) if requests else Choices(token_ids=[], logprobs={})

    @torch.inference_mode()
    def _launch_on_gpu(self, model: LoadedClassifier, plan: ClassifyPlan, row: PackedRow) -> OnGpu:
        began, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        began.record()
        try:
            computed_RL = model.logits(row)
            logits_RL = torch.empty(computed_RL.shape, dtype=computed_RL.dtype, pin_memory=True)
            logits_RL.copy_(computed_RL, non_blocking=True)
        except Exception:
            torch.cuda.current_stream().synchronize()  # nothing of it may run when its version is freed
            raise
        ended.record()
        return OnGpu(plan=plan, logits_RL=logits_RL, began=began, ended=ended)


def _classify_row(plan: ClassifyPlan) -> PackedRow:
    data: list[bytes] = []
    lengths: list[int] = []
    type_starts: list[int] = []
    for piece in plan.pieces:
        data += piece.request.sequences[piece.first : piece.end]
        lengths += piece.request.lengths[piece.first : piece.end]
        type_starts += piece.request.type_starts[piece.first : piece.end]
    ids_T = np.frombuffer(b"".join(data), dtype="<i4").astype(np.int64)
    starts = np.concatenate(([0], np.cumsum(lengths)))
    positions_T = np.arange(len(ids_T)) - np.repeat(starts[:-1], lengths)
    type_ids_T = None
    if max(type_starts) >= 0:
        boundaries = [start if start >= 0 else length for start, length in zip(type_starts, lengths, strict=True)]
        type_ids_T = torch.from_numpy((positions_T >= np.repeat(boundaries, lengths)).astype(np.int64))
    return PackedRow(
        ids_T=torch.from_numpy(ids_T),
        positions_T=torch.from_numpy(positions_T),
        starts=tuple(starts.tolist()),
        type_ids_T=type_ids_T,
        starts_S1=torch.from_numpy(starts),
    )


def _generate_row(plan: StepPlan, cache: PagedCache, device: torch.device) -> PackedRow:
    ids_T = np.empty(plan.num_tokens, dtype=np.int64)
    positions_T = np.empty(plan.num_tokens, dtype=np.int64)
    starts = [0]
    end = 0
    for piece in plan.pieces:
        request, start = piece.request, end
        end += piece.num_tokens
        first = request.num_computed
        if piece.num_tokens == 1:
            ids_T[start] = request.tokens[first]
            positions_T[start] = first
        else:
            ids_T[start:end] = request.tokens[first : first + piece.num_tokens]
            positions_T[start:end] = np.arange(first, first + piece.num_tokens)
        starts.append(end)
    return PackedRow(
        ids_T=_on_device(ids_T, device),
        positions_T=_on_device(positions_T, device),
        starts=tuple(starts),
        cache=cache,
        block_tables=tuple([piece.block_table for piece in plan.pieces]),
        context_lens=tuple([piece.request.num_computed for piece in plan.pieces]),
    )


def _on_device(array: NDArray[np.int64], device: torch.device) -> Tensor:
    return torch.from_numpy(array).to(device, non_blocking=True)
