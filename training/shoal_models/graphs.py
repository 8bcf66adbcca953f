"""Forwards of few shapes that a GPU captures once and then replays, which takes the host microseconds.

T packed tokens, S sequences, R rows of logits, L labels.

A row is filled up to a bucket by sequences that nobody reads and written over the inputs that the captured forward
reads. The first answer of every bucket is compared with that of an ordinary forward; should one differ or a capture
fail, the version runs without. How a device captures is told to this file, see graphs_cuda.py.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shoal_models.packed import PackedRow

Replay = Callable[[], Tensor]
"""Computes again what was captured, on what its inputs hold now; what it gives is written over by the next replay."""
Capture = Callable[[Callable[[], Tensor]], Replay]
"""Captures the device work of a forward whose inputs and outputs stay where they are."""

SIZES = (*(size for power in range(5, 13) for size in (2**power, 3 * 2 ** (power - 1))), 8192)  # of tokens
_TOKENS_OF_A_SEQUENCE = 8  # a bucket holds a sequence for every so many tokens
_SHORT = 128  # tokens that one block of the attention kernel takes: longer bounds cost blocks that find nothing to do
_TOLERANCE = 0.05  # of 1 + the largest logit: half precision rounds otherwise in another shape, a mistake is larger

_log = logging.getLogger(__name__)


class CaptureFailed(Exception):
    """A captured forward does not answer as an ordinary one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """The shape of a captured forward."""

    num_tokens: int
    num_sequences: int
    longest: int  # tokens of a sequence at most


def choose_bucket(lengths: Sequence[int], *, max_tokens: int, longest: int) -> Bucket | None:
    """The smallest bucket for sequences of such lengths, none above `longest`; None: they run without one.

    So for a version there are at most twice as many buckets as `SIZES`.
    """
    total, bound = sum(lengths), _SHORT if max(lengths) <= _SHORT else longest
    for num_tokens in SIZES:
        if num_tokens > max_tokens:
            break
        bucket = Bucket(
            num_tokens=num_tokens,
            num_sequences=num_tokens // _TOKENS_OF_A_SEQUENCE,
            longest=min(bound, longest, num_tokens),
        )
        surplus = num_tokens - total
        if surplus >= 0 and len(lengths) - (-surplus // bucket.longest) <= bucket.num_sequences:
            return bucket
    return None


def empty_row(bucket: Bucket, inputs: Tensor) -> PackedRow:
    """A bucket's row full of sequences that nobody reads, as long as they may be, lying in `inputs`."""
    return fill_up_row(None, bucket, inputs)


def fill_up_row(row: PackedRow | None, bucket: Bucket, inputs: Tensor) -> PackedRow:
    """`row` and after it sequences that nobody reads, of which the last may be empty, written to `inputs`.

    `inputs` are `num_inputs(bucket)` of int64 in host memory.
    """
    starts = (0,) if row is None else row.starts
    used, missing = starts[-1], bucket.num_sequences - len(starts) + 1
    ends = [min(used + bucket.longest * (i + 1), bucket.num_tokens) for i in range(missing)]
    filled = _views(bucket, inputs, (*starts, *ends))
    inputs.zero_()
    filled.positions_T[used:] = torch.arange(bucket.num_tokens - used) % bucket.longest
    filled.starts_on_device().copy_(torch.tensor(filled.starts))
    if row is not None:
        filled.ids_T[:used] = row.ids_T
        filled.positions_T[:used] = row.positions_T
        if row.type_ids_T is not None and filled.type_ids_T is not None:
            filled.type_ids_T[:used] = row.type_ids_T
    return filled


def num_inputs(bucket: Bucket) -> int:
    """Ids, positions and types of all tokens, and where sequences start."""
    return 3 * bucket.num_tokens + bucket.num_sequences + 1


def _views(bucket: Bucket, inputs: Tensor, starts: tuple[int, ...]) -> PackedRow:
    num_tokens = bucket.num_tokens
    ids_T, positions_T, types_T, starts_S1 = torch.split(inputs, [*[num_tokens] * 3, bucket.num_sequences + 1])
    return PackedRow(ids_T=ids_T, positions_T=positions_T, type_ids_T=types_T, starts=starts, starts_S1=starts_S1)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Captured:
    """A captured forward and the inputs that it reads."""

    inputs: Tensor  # on the device
    replay: Replay


class CapturedForwards:
    """The captured forwards of one version, made when a row first needs them.

    Everything is put on one stream of the device in the order of the calls: a row is written over another's inputs only
    after the forward that reads those, and an answer is copied away before the next forward begins. So two forwards
    may be under way though they share inputs, outputs and what lies between.
    """

    def __init__(
        self,
        compute: Callable[[PackedRow], Tensor],
        *,
        capture: Capture,
        device: torch.device,
        max_tokens: int,
        longest: int,
        reads_tokens: bool,
    ) -> None:
        """`compute` looks at no value of a row's tensors on the host; `reads_tokens`: it gives a row for each token.

        Rows of more than `max_tokens` and sequences of more than `longest` tokens run without a captured forward.
        """
        self._compute = compute
        self._capture = capture
        self._device = device
        self._max_tokens = max_tokens
        self._longest = longest
        self._reads_tokens = reads_tokens
        self._captured: dict[Bucket, _Captured] = {}
        self._is_given_up = False

    @property
    def num_captured(self) -> int:
        """Buckets met so far."""
        return len(self._captured)

    def run(self, row: PackedRow) -> Tensor | None:
        """Logits (R, L) of a row in host memory; None when it has to run in the ordinary way."""
        longest = max(row.lengths)
        if self._is_given_up or longest > self._longest:
            return None
        bucket = choose_bucket(row.lengths, max_tokens=self._max_tokens, longest=self._longest)
        if bucket is None:
            return None
        if bucket not in self._captured:
            try:
                self._captured[bucket] = self._checked(bucket, row)
            except (RuntimeError, CaptureFailed) as error:
                self._is_given_up = True
                _log.warning("forwards are not captured from now on, at %s: %s", bucket, error)
                return None
        return self._replay(self._captured[bucket], bucket, row)

    def _checked(self, bucket: Bucket, row: PackedRow) -> _Captured:
        host_inputs = torch.empty(num_inputs(bucket), dtype=torch.int64)
        starts = empty_row(bucket, host_inputs).starts
        inputs = host_inputs.to(self._device, copy=True)
        static = _views(bucket, inputs, starts)
        captured = _Captured(inputs=inputs, replay=self._capture(lambda: self._compute(static)))
        found, expected = self._replay(captured, bucket, row), self._compute(row.to(self._device))
        bound = _TOLERANCE * (1 + float(expected.abs().max()))
        difference = float((found - expected).abs().max())
        if not difference <= bound:  # NaN fails too
            raise CaptureFailed(f"answers differ by {difference:.3g} from an ordinary forward's; tolerance {bound:.3g}")
        return captured

    def _replay(self, captured: _Captured, bucket: Bucket, row: PackedRow) -> Tensor:
        is_cuda = self._device.type == "cuda"
        host_inputs = torch.empty(num_inputs(bucket), dtype=torch.int64, pin_memory=is_cuda)
        fill_up_row(row, bucket, host_inputs)
        captured.inputs.copy_(host_inputs, non_blocking=True)
        num_rows = row.starts[-1] if self._reads_tokens else row.num_sequences
        return captured.replay()[:num_rows].clone()
