"""Forwards of few shapes that a GPU captures once and then replays, which takes the host microseconds.

T packed tokens, S sequences, R rows of logits, L labels.

A row is filled up to a bucket by sequences that nobody reads and written over the inputs that the captured forward
reads. All buckets are captured before a version serves, and an answer of each is compared with that of an ordinary
forward; should one differ or a capture fail, the version runs without. How a device captures is told to this file, see
graphs_cuda.py.
"""

from __future__ import annotations

import itertools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from shoal_models.packed import PackedRow

Replay = Callable[[], Tensor]
"""Computes again what was captured, on what its inputs hold now; what it gives is written over by the next replay."""

SIZES: tuple[int, ...] = (*(size for power in range(5, 13) for size in (2**power, 3 * 2 ** (power - 1))), 8192)
"""Tokens of the rows that are captured."""
_TOKENS_OF_A_SEQUENCE = 8  # a bucket holds a sequence for every so many tokens
_SHORT = 128  # tokens that one block of the attention kernel takes: longer bounds cost blocks that find nothing to do
_TOLERANCE = 0.05  # of 1 + the largest logit: half precision rounds otherwise in another shape, a mistake is larger

_log = logging.getLogger(__name__)


class CaptureFailed(Exception):
    """A forward cannot be captured, or does not answer as an ordinary one when it is replayed."""


class Capture(Protocol):
    """Captures the device work of forwards whose inputs and outputs stay where they are."""

    def __call__(self, compute: Callable[[], Tensor]) -> Replay:
        """Capture one."""

    @property
    def num_bytes(self) -> int:
        """Device memory that what was captured keeps for itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """The shape of a captured forward."""

    num_tokens: int
    num_sequences: int
    longest: int  # tokens of a sequence at most


def choose_bucket(lengths: Sequence[int], *, max_tokens: int, longest: int) -> Bucket | None:
    """The smallest of `all_buckets` for sequences of such lengths; None: they run without one."""
    if max(lengths) > longest:
        return None
    bound = _SHORT if max(lengths) <= _SHORT else longest
    buckets = (_bucket(num_tokens, min(bound, longest)) for num_tokens in SIZES if num_tokens <= max_tokens)
    return next((bucket for bucket in buckets if _has_room(bucket, lengths)), None)


def all_buckets(*, max_tokens: int, longest: int) -> list[Bucket]:
    """Buckets up to `max_tokens` for a version whose sequences have at most `longest` tokens; largest first.

    At most twice as many as `SIZES`: with the version's own bound, and with the one for short sequences.
    """
    sizes = (num_tokens for num_tokens in SIZES if num_tokens <= max_tokens)
    pairs = itertools.product(sizes, sorted({min(_SHORT, longest), longest}))
    buckets = dict.fromkeys(_bucket(num_tokens, bound) for num_tokens, bound in pairs)
    return [bucket for bucket in reversed(buckets) if bucket.num_sequences * bucket.longest >= bucket.num_tokens]


def trial_lengths(bucket: Bucket) -> list[int]:
    """Lengths of sequences that fill a bucket for the most part, ragged, and where it can be as long as they may be."""
    shares = (1, 5, 2, 9, 3) if 2 * bucket.longest <= bucket.num_tokens else (2, 5, 9, 3)
    lengths: list[int] = []
    for share in itertools.cycle(shares):
        longer = [*lengths, max(bucket.longest // share, 1)]
        if not _has_room(bucket, longer):
            return lengths
        lengths = longer
    raise AssertionError("a cycle has no end")


def _bucket(num_tokens: int, bound: int) -> Bucket:
    return Bucket(
        num_tokens=num_tokens, num_sequences=num_tokens // _TOKENS_OF_A_SEQUENCE, longest=min(bound, num_tokens)
    )


def _has_room(bucket: Bucket, lengths: Sequence[int]) -> bool:
    """Whether sequences fit, beside those that fill the bucket up."""
    surplus = bucket.num_tokens - sum(lengths)
    return surplus >= 0 and len(lengths) - (-surplus // bucket.longest) <= bucket.num_sequences


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
    return PackedRow(
        ids_T=ids_T,
        positions_T=positions_T,
        type_ids_T=types_T,
        starts=starts,
        starts_S1=starts_S1,
        is_captured=True,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Captured:
    """A captured forward and the inputs that it reads."""

    inputs: Tensor  # on the device
    replay: Replay


class CapturedForwards:
    """The captured forwards of one version.

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

    @property
    def most_tokens(self) -> int:
        """Tokens of the largest row that may be captured."""
        return min(self._max_tokens, SIZES[-1])

    @property
    def num_bytes(self) -> int:
        """Device memory that captured forwards keep for themselves."""
        return self._capture.num_bytes if self._captured else 0

    def capture_all(self, trial: Callable[[Sequence[int]], PackedRow]) -> None:
        """Capture every bucket, the largest first since smaller ones then share its memory, or none at all.

        `trial` makes a row, in host memory, of sequences of such lengths. Not while `run` may be called.
        """
        for bucket in all_buckets(max_tokens=self._max_tokens, longest=self._longest):
            try:
                self._captured[bucket] = self._checked(bucket, trial(trial_lengths(bucket)))
            except (RuntimeError, CaptureFailed) as error:
                self._captured.clear()
                _log.warning("forwards run without captures; one failed at %s: %s", bucket, error)
                return

    def run(self, row: PackedRow) -> Tensor | None:
        """Logits (R, L) of a row in host memory; None when it has to run in the ordinary way."""
        bucket = choose_bucket(row.lengths, max_tokens=self._max_tokens, longest=self._longest)
        captured = None if bucket is None else self._captured.get(bucket)
        return None if bucket is None or captured is None else self._replay(captured, bucket, row)

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
