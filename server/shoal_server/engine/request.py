"""What the engine knows of one call: checked once at the door, then owned by the batcher or the scheduler.

Knows neither tensors nor sockets. What a request carries from its message never changes; the fields under "state" are
written by its owner only.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from shoal_models.manifest import Manifest

from shoal_server.errors import InvalidRequest
from shoal_server.ipc.messages import ClassifyCall, GenerateCall, Priority, Sampling

_ID_BYTES = 4
_RANKS = {Priority.HIGH: 0, Priority.NORMAL: 1, Priority.LOW: 2}


class VersionKey(NamedTuple):
    """One version of one model."""

    model: str
    version: int

    def __str__(self) -> str:
        return f"{self.model}@{self.version}"


class CallKey(NamedTuple):
    """One call: request ids are unique within a front only."""

    peer_id: int
    request_id: int


class Order(NamedTuple):
    """Who goes first: the smaller."""

    rank: int  # of the priority, 0 is HIGH
    deadline_s: float  # infinite without one
    arrival: int  # counts up; makes the order total


class RequestState(Enum):
    """Where a request is."""

    WAITING = "waiting"
    RUNNING = "running"
    ENDED = "ended"


@dataclass(slots=True, kw_only=True, eq=False)
class ClassifyRequest:
    """Sequences that one call wants classified; answered when all of them have run."""

    key: CallKey
    version: VersionKey
    sequences: list[bytes]  # int32 token ids
    lengths: list[int]  # tokens of each sequence
    type_starts: list[int]  # first token of the second text, or -1
    order: Order
    received_s: float
    is_per_token: bool = False  # wants a row of logits for each token instead of one for each sequence
    # state, written by the batcher
    state: RequestState = RequestState.WAITING
    num_planned: int = 0  # sequences that were given to a forward
    num_done: int = 0
    logits: dict[int, bytes] = field(default_factory=dict)  # of the pieces that have run, by their first sequence
    started_s: float = 0.0  # first forward

    @property
    def num_unplanned_tokens(self) -> int:
        """Tokens that still wait."""
        return sum(self.lengths[self.num_planned :])

    def logits_in_order(self) -> bytes:
        """Rows of logits by sequence: the pieces of a call may have run in any order."""
        return b"".join(self.logits[first] for first in sorted(self.logits))

    def num_rows(self, first: int, end: int) -> int:
        """Rows of logits that the sequences from `first` to before `end` yield."""
        return sum(self.lengths[first:end]) if self.is_per_token else end - first


@dataclass(slots=True, kw_only=True, eq=False)
class GenerateRequest:
    """One completion under way."""

    key: CallKey
    version: VersionKey
    tokens: NDArray[np.int32]  # prompt, then output; as long as both can become, filled up to `num_tokens`
    num_prompt: int
    max_new_tokens: int
    min_new_tokens: int
    sampling: Sampling
    end_ids: frozenset[int]  # the model's ends of sequence; empty when they are ignored
    stop_ids: frozenset[int]
    num_logprobs: int | None
    order: Order
    received_s: float
    # state, written by the scheduler
    state: RequestState = RequestState.WAITING
    num_tokens: int = 0  # known tokens
    num_computed: int = 0  # of those, in the KV cache
    started_s: float | None = None  # first step
    first_token_s: float | None = None

    @property
    def num_new(self) -> int:
        """Output tokens so far."""
        return self.num_tokens - self.num_prompt


def order_of(priority: Priority, deadline_s: float | None, arrival: int) -> Order:
    """The place of a call among those that wait."""
    return Order(_RANKS[priority], math.inf if deadline_s is None else deadline_s, arrival)


def classify_request(
    call: ClassifyCall, peer_id: int, manifest: Manifest, *, arrival: int, now_s: float
) -> ClassifyRequest:
    """Check a call against the version that shall answer it.

    Raises:
        InvalidRequest: a sequence is empty, too long or holds an id outside the vocabulary.
    """
    if not call.sequences:
        raise InvalidRequest.of("inputs", "there are none; at least 1 is needed")
    if len(call.type_starts) != len(call.sequences):
        raise InvalidRequest("type_starts and sequences differ in number")
    lengths = [len(sequence) // _ID_BYTES for sequence in call.sequences]
    for index, num_tokens in enumerate(lengths):
        if not 1 <= num_tokens <= manifest.max_tokens:
            raise InvalidRequest.of(
                f"inputs[{index}]", f"has {num_tokens:,} tokens; allowed are 1 to {manifest.max_tokens:,}"
            )
    _check_ids("inputs", b"".join(call.sequences), manifest)
    return ClassifyRequest(
        key=CallKey(peer_id, call.request_id),
        version=VersionKey(call.model, call.version),
        sequences=call.sequences,
        lengths=lengths,
        type_starts=call.type_starts,
        order=order_of(call.priority, call.deadline_s, arrival),
        received_s=now_s,
        is_per_token=manifest.head == "token",
    )


def generate_request(
    call: GenerateCall, peer_id: int, manifest: Manifest, *, arrival: int, now_s: float
) -> GenerateRequest:
    """Check a call against the version that shall answer it.

    Raises:
        InvalidRequest: the prompt is empty, leaves no room, or holds an id outside the vocabulary; a bound is below 1.
    """
    prompt = _check_ids("prompt", call.prompt, manifest)
    if not 1 <= len(prompt) < manifest.max_tokens:
        raise InvalidRequest.of("prompt", f"has {len(prompt):,} tokens; allowed are 1 to {manifest.max_tokens - 1:,}")
    if call.max_new_tokens < 1:
        raise InvalidRequest.of("stop.max_new_tokens", f"is {call.max_new_tokens}; at least 1 is needed")
    tokens = np.empty(min(len(prompt) + call.max_new_tokens, manifest.max_tokens), dtype=np.int32)
    tokens[: len(prompt)] = prompt
    return GenerateRequest(
        key=CallKey(peer_id, call.request_id),
        version=VersionKey(call.model, call.version),
        tokens=tokens,
        num_prompt=len(prompt),
        num_tokens=len(prompt),
        max_new_tokens=call.max_new_tokens,
        min_new_tokens=call.min_new_tokens,
        sampling=call.sampling,
        end_ids=frozenset() if call.ignore_eos else frozenset(manifest.eos_token_ids),
        stop_ids=frozenset(call.stop_token_ids),
        num_logprobs=call.num_logprobs,
        order=order_of(call.priority, call.deadline_s, arrival),
        received_s=now_s,
    )


def _check_ids(name: str, data: bytes, manifest: Manifest) -> NDArray[np.int32]:
    """The token ids of `data`, none outside the vocabulary: one such would fail, or crash, a whole batch."""
    if len(data) % _ID_BYTES:
        raise InvalidRequest.of(name, "is not a whole number of int32 token ids")
    ids = np.frombuffer(data, dtype="<i4")
    if len(ids) and not (int(ids.min()) >= 0 and int(ids.max()) < manifest.vocabulary_size):
        raise InvalidRequest.of(name, f"holds a token id outside 0 to {manifest.vocabulary_size - 1:,}")
    return ids
