"""Stands in for what captures forwards on a GPU: records operators on fixed tensors, and runs them again in place.

Like a real capture it knows nothing but the tensors' places in memory: whatever Python read when it was recorded stays
as it was, a value that Python would have to wait for cannot be read, and outputs are written over by every replay.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_WAITS = ("aten._local_scalar_dense", "aten.nonzero", "aten.lift_fresh", "aten.equal", "aten.is_nonzero")


class HostWaits(RuntimeError):
    """On a GPU the host would wait here for everything that it has launched."""


class NoWaiting(TorchDispatchMode):
    """Raises HostWaits where a value is read on the host, or made of Python's numbers."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(str(func).startswith(name) for name in _WAITS):
            raise HostWaits(str(func))
        return func(*args, **(kwargs or {}))


class _Recording(NoWaiting):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, list[Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = super().__torch_dispatch__(func, types, args, kwargs)
        self.calls.append((func, args, kwargs or {}, _tensors(found)))
        return found


class Recorder:
    """Captures forwards; can be told to fail."""

    def __init__(self, *, fails: bool = False, spoils: bool = False) -> None:
        """`spoils`: replays give a wrong answer."""
        self.num_captures = self.num_replays = 0
        self._fails, self._spoils = fails, spoils

    @property
    def num_bytes(self) -> int:
        """1,000 for each capture."""
        return 1000 * self.num_captures

    def __call__(self, compute: Callable[[], Tensor]) -> Callable[[], Tensor]:
        self.num_captures += 1
        if self._fails:
            raise RuntimeError("operation not permitted when stream is capturing")
        with _Recording() as recording:
            output = compute()

        def replay() -> Tensor:
            self.num_replays += 1
            for func, args, kwargs, results in recording.calls:
                for kept, new in zip(results, _tensors(func(*args, **kwargs)), strict=True):
                    if kept.untyped_storage().data_ptr() != new.untyped_storage().data_ptr():
                        kept.copy_(new)
            if self._spoils:
                output.add_(1000)
            return output

        return replay


def _tensors(found: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor)]


def plain_kernel(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seq_q: Tensor,
    cu_seq_k: Tensor,
    max_q: int,
    max_k: int,
    *,
    scale: float,
    window_size: tuple[int, int],
) -> Tensor:
    """In operators of one shape whatever the lengths; as `varlen_attn`, looks no farther than `max_k`."""
    left, right = window_size
    assert (cu_seq_q.dtype, max_q) == (torch.int32, max_k)
    places = torch.arange(len(query))
    owners = torch.searchsorted(cu_seq_q, places.int(), right=True)
    inside = places - cu_seq_k[(owners - 1).clamp(min=0)]
    distance = inside[:, None] - inside[None]
    seen = (owners[:, None] == owners[None]) & (inside < max_k)[None]
    seen &= (distance <= (left if left >= 0 else max_k)) & (distance >= -(right if right >= 0 else max_k))
    heads = (part.transpose(0, 1)[None] for part in (query, key, value))
    return F.scaled_dot_product_attention(*heads, attn_mask=seen, scale=scale)[0].transpose(0, 1)


def lengths_of(starts: tuple[int, ...]) -> Iterator[int]:
    """Of the sequences between `starts`."""
    return (end - start for start, end in itertools.pairwise(starts))
