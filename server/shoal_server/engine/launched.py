"""A Classify forward that the device has, or has done.

R rows of logits (one for each sequence, or for each token), L labels.
"""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from shoal_server.engine.classify_queue import ClassifyPlan


class WrongRows(Exception):
    """A forward gave another number of rows of logits than its plan asked for."""


class Launched(Protocol):
    """A forward under way."""

    @property
    def plan(self) -> ClassifyPlan:
        """What was launched."""

    def is_done(self) -> bool:
        """Whether `collect` would not have to wait."""

    def collect(self) -> NDArray[np.float32]:
        """Wait for the logits (R, L).

        Raises:
            WrongRows: the model gave more or fewer rows, so that nobody knows which are whose.
        """

    def seconds(self) -> float:
        """How long it took, once collected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Computed:
    """What a lane gives back."""

    logits_RL: Tensor
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class OnLane:
    """A forward on a lane of the processor."""

    plan: ClassifyPlan
    future: Future[Computed]

    def is_done(self) -> bool:
        """Whether the lane has ended."""
        return self.future.done()

    def collect(self) -> NDArray[np.float32]:
        """As `Launched.collect`; what the forward raised is raised here."""
        return _rows(self.plan, self.future.result().logits_RL)

    def seconds(self) -> float:
        """By the lane's own clock."""
        return self.future.result().seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class OnGpu:
    """A forward on a GPU."""

    plan: ClassifyPlan
    logits_RL: Tensor  # in pinned memory, complete once `ended` has happened
    began: torch.cuda.Event
    ended: torch.cuda.Event

    def is_done(self) -> bool:
        """Whether the GPU has passed its end."""
        return bool(self.ended.query())  # type: ignore[no-untyped-call]

    def collect(self) -> NDArray[np.float32]:
        """As `Launched.collect`."""
        self.ended.synchronize()
        return _rows(self.plan, self.logits_RL)

    def seconds(self) -> float:
        """By the GPU's own clock."""
        return float(self.began.elapsed_time(self.ended)) / 1000


def _rows(plan: ClassifyPlan, logits_RL: Tensor) -> NDArray[np.float32]:
    if len(logits_RL) != plan.num_rows:
        message = f"gave {len(logits_RL):,} rows of logits; expected {plan.num_rows:,}"
        raise WrongRows(f"{plan.version} {message}")
    rows_RL: NDArray[np.float32] = logits_RL.numpy()
    return rows_RL
