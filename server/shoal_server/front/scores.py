"""Logits to scores: windows joined, softmax or sigmoid, the best labels first.

N inputs, S sequences (an input has several when it was split into windows), L labels, K reported labels
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

import msgspec
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Pooling(Enum):
    """How the logits of an input's windows become one; documented in protos/shoal/v1/classify.proto."""

    MEAN = "mean"
    MAX = "max"


class Scores(msgspec.Struct, frozen=True, kw_only=True):
    """What is reported of all inputs of a call, best first."""

    label_ids: list[list[int]]  # (N, K)
    values: list[list[float]]  # (N, K)


def merge_windows(logits: bytes, num_labels: int, weights: Sequence[Sequence[int]], pooling: Pooling) -> Floats:
    """Logits (N, L) of the inputs from those of their sequences; `logits` is float32 (S, L)."""
    logits_SL = np.frombuffer(logits, dtype="<f4").reshape(-1, num_labels).astype(np.float64)
    if all(len(of_input) == 1 for of_input in weights):
        return logits_SL
    starts_N = np.cumsum([0, *(len(of_input) for of_input in weights[:-1])])
    if pooling is Pooling.MAX:
        return np.asarray(np.maximum.reduceat(logits_SL, starts_N, axis=0))
    weights_S1 = np.concatenate(weights).astype(np.float64)[:, None]
    sums_NL = np.add.reduceat(logits_SL * weights_S1, starts_N, axis=0)
    return np.asarray(sums_NL / np.add.reduceat(weights_S1, starts_N, axis=0))


def score(logits_NL: Floats, *, head: str, as_logits: bool, top_k: int) -> Scores:
    """Scores of each input; regression keeps the labels' order, other heads put the best first; top_k 0 keeps all."""
    if as_logits or head == "regression":
        values_NL = logits_NL
    elif head == "multi_label":
        values_NL = _sigmoid(logits_NL)
    else:
        values_NL = _softmax(logits_NL)
    num_labels = logits_NL.shape[1]
    num_kept = min(top_k, num_labels) if top_k else num_labels
    if head == "regression":
        order_NK = np.broadcast_to(np.arange(num_kept), (len(logits_NL), num_kept))
    else:
        order_NK = np.argsort(-logits_NL, axis=1, kind="stable")[:, :num_kept]
    return Scores(label_ids=order_NK.tolist(), values=values_NL[np.arange(len(values_NL))[:, None], order_NK].tolist())


def _softmax(logits_NL: Floats) -> Floats:
    powers_NL = np.exp(logits_NL - logits_NL.max(axis=1, keepdims=True))
    return np.asarray(powers_NL / powers_NL.sum(axis=1, keepdims=True))


def _sigmoid(logits_NL: Floats) -> Floats:
    """1 / (1 + e^-x) without overflow on either side."""
    powers_NL = np.exp(-np.abs(logits_NL))
    return np.where(logits_NL >= 0, 1.0, powers_NL) / (1.0 + powers_NL)
