"""Which tokens of which completions the next step computes: continuous batching over a paged KV cache.

Owns the waiting and running Generate requests of one version and, through `kv_cache`, their blocks. Knows token counts
and blocks, never tensors, and no clock: time is passed in. The best-placed request is never preempted and any request
that was let in fits into the cache alone, so there is always one that advances.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence
from dataclasses import dataclass

from shoal_server.config import GenerateConfig
from shoal_server.engine.deadlines import Deadlines
from shoal_server.engine.kv_cache import BlockAllocator
from shoal_server.engine.request import CallKey, GenerateRequest, Order, RequestState, VersionKey
from shoal_server.engine.waiting import Waiting
from shoal_server.errors import InternalFault, InvalidRequest, QueueFull
from shoal_server.ipc.messages import FinishReason

_SAFETY_FACTOR = 2  # fronts keep the bound at the door; the engine only catches what several of them let in together


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPiece:
    """New tokens of one sequence."""

    request: GenerateRequest
    num_tokens: int
    wants_token: bool  # they end with the last known token, so that the next one can be chosen
    block_table: tuple[int, ...]  # covers what is in the cache and the new tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPlan:
    """One forward; decodes stand first, then prefill chunks."""

    version: VersionKey
    pieces: tuple[StepPiece, ...]
    num_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Advance:
    """What a step did for one request that got a token."""

    request: GenerateRequest
    token_id: int
    is_output: bool  # False: the token ended the completion and is not part of it
    finished: FinishReason | None


class Scheduler:
    """Waiting and running Generate requests of one version, and the choice among them."""

    def __init__(self, version: VersionKey, config: GenerateConfig, allocator: BlockAllocator) -> None:
        self._version = version
        self._token_budget = config.token_budget
        self._max_running = min(config.max_running, config.token_budget)  # a step holds a decode of each
        self._max_waiting = config.max_waiting * _SAFETY_FACTOR
        self._allocator = allocator
        self._requests: dict[CallKey, GenerateRequest] = {}
        self._waiting: Waiting[GenerateRequest] = Waiting()
        self._num_waiting = 0
        self._running: list[GenerateRequest] = []  # best-placed first
        self._deadlines = Deadlines()
        self._num_preempted = 0

    def add(self, request: GenerateRequest) -> None:
        """Let a request wait for its turn.

        Raises:
            InvalidRequest: the cache can never hold it.
            QueueFull: too many wait already.
            InternalFault: the front uses an id twice.
        """
        if request.key in self._requests:
            raise InternalFault("a call with this id is open already")
        self._check_size(request)
        if self._num_waiting and self._num_waiting >= self._max_waiting:
            raise QueueFull(
                f"{self._num_waiting} completions wait already; limit {self._max_waiting}", retry_after_s=1.0
            )
        self._requests[request.key] = request
        self._wait(request)
        self._deadlines.add(request.key, request.order.deadline_s)

    def abort(self, key: CallKey) -> bool:
        """Forget a request; its blocks are free at once. False: there is no such request."""
        request = self._requests.get(key)
        if request is None:
            return False
        self._end(request)
        return True

    def expire(self, now_s: float) -> list[GenerateRequest]:
        """End and return the requests, waiting or running, whose deadline has passed."""
        return self.fail([self._requests[key] for key in self._deadlines.pop_due(now_s)])

    def plan(self, now_s: float) -> StepPlan | None:
        """The next step: every decode, then prefill within the token budget; None when there is nothing to run.

        Call `expire` first. Blocks are given out here, requests admitted and, where blocks run out, preempted.
        """
        pieces = self._plan_decodes()
        num_tokens = self._plan_prefills(pieces, num_tokens=len(pieces))
        num_tokens = self._admit(pieces, num_tokens, now_s)
        return StepPlan(version=self._version, pieces=tuple(pieces), num_tokens=num_tokens) if pieces else None

    def commit(self, plan: StepPlan, token_ids: Sequence[int], now_s: float) -> list[Advance]:
        """Apply a step; `token_ids` are the choices for the pieces that wanted one, in their order."""
        advances, chosen = [], iter(token_ids)
        for piece in plan.pieces:
            request = piece.request
            request.num_computed += piece.num_tokens
            if piece.wants_token:
                advances.append(self._advance(request, next(chosen), now_s))
        return advances

    def fail(self, requests: Sequence[GenerateRequest]) -> list[GenerateRequest]:
        """End those of `requests` that are open, and return them."""
        ended = [request for request in requests if request.state is not RequestState.ENDED]
        for request in ended:
            self._end(request)
        return ended

    def fail_all(self) -> list[GenerateRequest]:
        """End and return every request."""
        return self.fail(list(self._requests.values()))

    def next_event_s(self) -> float:
        """When the next deadline passes."""
        return self._deadlines.next_s()

    @property
    def num_open(self) -> int:
        """Requests that are not answered."""
        return len(self._requests)

    @property
    def num_running(self) -> int:
        """Requests that hold blocks."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Requests that wait for admission, preempted ones included."""
        return self._num_waiting

    @property
    def num_preempted(self) -> int:
        """Preemptions so far."""
        return self._num_preempted

    @property
    def allocator(self) -> BlockAllocator:
        """The blocks; to be read only."""
        return self._allocator

    def _check_size(self, request: GenerateRequest) -> None:
        """The token chosen last is never computed and so needs no place."""
        most_tokens = len(request.tokens) - 1
        capacity = self._allocator.num_blocks * self._allocator.block_tokens
        if most_tokens > capacity:
            message = f"prompt and output may take {most_tokens:,} tokens; the KV cache holds {capacity:,}"
            raise InvalidRequest.of("stop.max_new_tokens", message)

    def _plan_decodes(self) -> list[StepPiece]:
        """Best-placed first, so that whoever is preempted by one has not been planned yet."""
        return [self._piece(request, 1) for request in self._running[:] if self._can_decode(request)]

    def _can_decode(self, request: GenerateRequest) -> bool:
        is_decoding = request.num_tokens - request.num_computed == 1
        return is_decoding and request.state is RequestState.RUNNING and self._grow(request)

    def _plan_prefills(self, pieces: list[StepPiece], num_tokens: int) -> int:
        for request in self._running:
            missing = request.num_tokens - request.num_computed
            if missing > 1 and num_tokens < self._token_budget:
                num_tokens += self._add_chunk(pieces, request, self._token_budget - num_tokens)
        return num_tokens

    def _admit(self, pieces: list[StepPiece], num_tokens: int, now_s: float) -> int:
        """Take in who waits, strictly in order. A block is left for each that runs, lest it be preempted at once."""
        while num_tokens < self._token_budget and len(self._running) < self._max_running:
            request = self._waiting.head()
            if request is None:
                break
            needed = self._allocator.blocks_for(request.num_tokens)
            if self._allocator.num_free < needed + len(self._running):
                break
            self._waiting.pop()
            self._num_waiting -= 1
            self._allocator.allocate(request.key, request.num_tokens)
            request.state = RequestState.RUNNING
            request.started_s = now_s if request.started_s is None else request.started_s
            bisect.insort(self._running, request, key=_order)
            num_tokens += self._add_chunk(pieces, request, self._token_budget - num_tokens)
        return num_tokens

    def _add_chunk(self, pieces: list[StepPiece], request: GenerateRequest, room: int) -> int:
        piece = self._piece(request, min(request.num_tokens - request.num_computed, room))
        pieces.append(piece)
        return piece.num_tokens

    def _piece(self, request: GenerateRequest, num_tokens: int) -> StepPiece:
        return StepPiece(
            request=request,
            num_tokens=num_tokens,
            wants_token=request.num_computed + num_tokens == request.num_tokens,
            block_table=self._allocator.table(request.key),
        )

    def _grow(self, request: GenerateRequest) -> bool:
        """Cover the newest token; preempts from the end of the order. False: the request itself was preempted."""
        while not self._allocator.allocate(request.key, request.num_tokens):
            victim = self._running.pop()
            self._allocator.release(victim.key)
            victim.num_computed = 0
            self._num_preempted += 1
            self._wait(victim)
            if victim is request:
                return False
        return True

    def _advance(self, request: GenerateRequest, token_id: int, now_s: float) -> Advance:
        finished = None
        is_output = True
        if token_id in request.end_ids:
            finished, is_output = FinishReason.END_OF_SEQUENCE, False
        elif token_id in request.stop_ids:
            finished, is_output = FinishReason.STOP_TOKEN, False
        else:
            if request.first_token_s is None:
                request.first_token_s = now_s
            request.tokens[request.num_tokens] = token_id
            request.num_tokens += 1
            if request.num_new >= request.max_new_tokens:
                finished = FinishReason.LENGTH
            elif request.num_tokens >= len(request.tokens):
                finished = FinishReason.CONTEXT_FULL
        if finished is not None:
            self._end(request)
        return Advance(request=request, token_id=token_id, is_output=is_output, finished=finished)

    def _wait(self, request: GenerateRequest) -> None:
        request.state = RequestState.WAITING
        self._waiting.push(request)
        self._num_waiting += 1

    def _end(self, request: GenerateRequest) -> None:
        if request.state is RequestState.RUNNING:
            self._running.remove(request)
            self._allocator.release(request.key)
        else:
            self._num_waiting -= 1
        request.state = RequestState.ENDED
        self._waiting.compact(self._num_waiting)
        self._deadlines.discard(request.key)
        del self._requests[request.key]


def _order(request: GenerateRequest) -> Order:
    return request.order
