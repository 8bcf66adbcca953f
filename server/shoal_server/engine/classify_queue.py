"""The Classify requests of one version that wait, and the choice among them.

Order: priority, then deadline, then arrival, strictly; a lower priority runs only where a higher one leaves room. A
call may be spread over several forwards. Knows no clock: time is passed in.
"""

from __future__ import annotations

from dataclasses import dataclass

from shoal_server.engine.company import Company
from shoal_server.engine.deadlines import Deadlines
from shoal_server.engine.forward_cost import ForwardCost
from shoal_server.engine.request import CallKey, ClassifyRequest, RequestState, VersionKey
from shoal_server.engine.waiting import Waiting

_MIN_SHARE_TOKENS = 256  # of a forward that leaves some to others; of fewer a processor's products are slower
_MARGIN = 1.5  # a forward's expected time is taken so much longer where a deadline depends on it


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Neighbouring sequences of one request."""

    request: ClassifyRequest
    first: int
    end: int

    @property
    def num_rows(self) -> int:
        """Rows of logits they yield."""
        return self.request.num_rows(self.first, self.end)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassifyPlan:
    """One packed forward."""

    version: VersionKey
    pieces: tuple[Piece, ...]
    num_sequences: int
    num_tokens: int

    @property
    def num_rows(self) -> int:
        """Rows of logits it yields, in the order of its pieces."""
        return sum(piece.num_rows for piece in self.pieces)


class ClassifyQueue:
    """Requests of one version from their arrival until all of their sequences are planned, and what they teach."""

    def __init__(self, version: VersionKey, token_budget: int) -> None:
        self._version = version
        self._token_budget = token_budget
        self._waiting: Waiting[ClassifyRequest] = Waiting()
        self._deadlines = Deadlines()
        self._cost = ForwardCost()
        self._company = Company(self._cost, token_budget)
        self.num_open = 0  # requests not yet answered
        self.num_calls = 0  # requests with sequences that wait
        self.num_sequences = 0
        self.num_tokens = 0
        self.ready_s = 0.0  # until when an idle engine was last told to wait

    @property
    def cost(self) -> ForwardCost:
        """What forwards of this version cost; to be read only."""
        return self._cost

    @property
    def max_wait_s(self) -> float:
        """How long a lone call may be kept waiting for company now."""
        return self._company.max_wait_s()

    def push(self, request: ClassifyRequest, now_s: float) -> None:
        """Let a request wait."""
        num_tokens = request.num_unplanned_tokens
        self._waiting.push(request)
        self._deadlines.add(request.key, request.order.deadline_s)
        self._company.arrived(num_tokens, now_s)
        self.num_open += 1
        self.num_calls += 1
        self.num_sequences += len(request.lengths)
        self.num_tokens += num_tokens
        self.ready_s = now_s

    def end(self, request: ClassifyRequest) -> None:
        """Forget a request; what of it still waits never runs."""
        self._deadlines.discard(request.key)
        self.num_open -= 1
        self.num_calls -= request.num_planned < len(request.lengths)
        self.num_sequences -= len(request.lengths) - request.num_planned
        self.num_tokens -= request.num_unplanned_tokens
        request.state = RequestState.ENDED
        self._waiting.compact(self.num_calls)

    def pop_due(self, now_s: float) -> list[CallKey]:
        """Requests whose deadline has passed with sequences that wait; each is told once."""
        return self._deadlines.pop_due(now_s)

    def next_deadline_s(self) -> float:
        """The soonest deadline among the requests that wait."""
        return self._deadlines.next_s()

    def must_wait(self, now_s: float) -> bool:
        """Whether an idle engine should wait for company; then `ready_s` tells until when."""
        if self.num_tokens >= self._token_budget:
            return False
        latest_s = self._deadlines.next_s() - _MARGIN * self._cost.seconds(self.num_tokens)
        self.ready_s = min(self._company.wait_until_s(self.num_calls, self.num_tokens, now_s), latest_s)
        return self.ready_s > now_s

    def take(self, now_s: float, num_lanes: int = 1, num_running_tokens: int = 0) -> ClassifyPlan:
        """The next forward, its sequences taken from the queue, which must not be empty.

        Of what waits and runs on `num_lanes` it takes no more than one lane's share, so that no lane is idle while
        another has all the work, unless that is too little to be worth a forward.
        """
        pieces: list[Piece] = []
        share = max(-(-(self.num_tokens + num_running_tokens) // num_lanes), _MIN_SHARE_TOKENS)
        budget, num_tokens = float(min(self._token_budget, share)), 0
        while (request := self._waiting.head()) is not None:
            piece = _piece(request, budget - num_tokens, is_first=not pieces)
            if piece is None:
                break
            pieces.append(piece)
            num_tokens += sum(request.lengths[piece.first : piece.end])
            self._start(piece, now_s)
            if piece.end < len(request.lengths):
                break
            self._waiting.pop()
            self._deadlines.discard(request.key)
            self.num_calls -= 1
            budget = min(budget, self._tokens_until(request.order.deadline_s, num_tokens, now_s))
        return self._plan(pieces, num_tokens)

    def ran(self, plan: ClassifyPlan, *, seconds: float, ended_s: float) -> None:
        """Learn from a forward."""
        self._cost.record(plan.num_tokens, seconds)
        self._company.answered(ended_s)

    def failed(self, ended_s: float) -> None:
        """A forward has failed: nothing is learned but that callers are answered."""
        self._company.answered(ended_s)

    def _start(self, piece: Piece, now_s: float) -> None:
        request = piece.request
        request.num_planned = piece.end
        if request.state is RequestState.WAITING:
            request.state, request.started_s = RequestState.RUNNING, now_s

    def _tokens_until(self, deadline_s: float, num_tokens: int, now_s: float) -> float:
        """Most tokens of a forward that ends before a deadline; infinite where `num_tokens` already are too many."""
        most = self._cost.tokens_within((deadline_s - now_s) / _MARGIN)
        return most if most >= num_tokens else float("inf")

    def _plan(self, pieces: list[Piece], num_tokens: int) -> ClassifyPlan:
        num_sequences = sum(piece.end - piece.first for piece in pieces)
        self.num_sequences -= num_sequences
        self.num_tokens -= num_tokens
        self._company.launched()
        return ClassifyPlan(
            version=self._version, pieces=tuple(pieces), num_sequences=num_sequences, num_tokens=num_tokens
        )


def _piece(request: ClassifyRequest, room_tokens: float, *, is_first: bool) -> Piece | None:
    """As many of the sequences that wait as there is room for; the first of a forward goes in whatever its length."""
    first = end = request.num_planned
    for length in request.lengths[first:]:
        if length > room_tokens and not (is_first and end == first):
            break
        room_tokens -= length
        end += 1
    return Piece(request=request, first=first, end=end) if end > first else None
