"""How long what waits in an idle engine should wait for company: learned for one version, nothing to be tuned.

To wait pays where calls come close together: one forward for all of them saves the fixed part of a second one. Whether
they do is seen after every moment at which an idle engine could run what waits: how many more calls come how soon,
until a forward begun at that moment would have ended. None of them is from a caller that waits for its own answer and
then asks again, since until then nobody has got one.

Why calls that come evenly, however dense, are no reason to wait: n calls wait, m(w) more come within w and m(F) within
a forward F, whose fixed part is f. To wait for w spares each of the m(w) the rest of a forward, f - w; it costs the n
that wait w, and w too those that come after it, m(F) - m(w). With m(w) = m(F) w / F that is a loss for every w. A gain
are only calls that come more densely at first than later: bursts, and the many callers whom one forward has answered.
No wait is longer than f: nothing that it can save is worth more.

Knows no clock: time is passed in.
"""

from __future__ import annotations

import math

from shoal_server.engine.forward_cost import ForwardCost
from shoal_server.engine.moments import SHARES, History, Moment, Stakes

_TOKENS_WEIGHT = 1 / 16  # of the newest call in the mean of tokens
_NEXT_WEIGHT = 1 / 8  # of the newest forward in the mean of calls that come next


class Company:
    """Expected company of one version's calls."""

    def __init__(self, cost: ForwardCost, token_budget: int) -> None:
        """`cost` is read only."""
        self._cost = cost
        self._token_budget = token_budget
        self._after_pause = History()  # moments at which calls came to an idle engine
        self._after_forward = History()  # moments at which a forward had ended and calls waited
        self._moment: Moment | None = None
        self._history = self._after_pause  # to which the moment belongs
        self._first_s = math.inf  # arrival of the first call since a forward began
        self._ended_s = -math.inf  # end of the last forward
        self._num_next = 0  # calls that came within the fixed part after it
        self._next_calls = 0.0  # mean of that
        self._call_tokens = 0.0  # mean

    def arrived(self, num_tokens: int, now_s: float) -> None:
        """A call has come."""
        self._call_tokens += (_TOKENS_WEIGHT if self._call_tokens else 1.0) * (num_tokens - self._call_tokens)
        self._first_s = min(self._first_s, now_s)
        self._num_next += now_s <= self._ended_s + self._cost.fixed_s
        if self._moment is not None and now_s > self._moment.end_s:
            self._close()
        elif self._moment is not None:
            self._moment.arrived(now_s)

    def launched(self) -> None:
        """What waited has been given to a forward."""
        self._first_s = math.inf
        if self._moment is not None:
            self._moment.is_over = True

    def answered(self, now_s: float) -> None:
        """A forward has ended: its callers may ask again, and what comes from here on is no company for it."""
        self._next_calls += _NEXT_WEIGHT * (self._num_next - self._next_calls)
        self._num_next = 0
        self._ended_s = now_s
        if self._moment is not None:
            self._moment.end_s = min(self._moment.end_s, now_s)

    def wait_until_s(self, num_calls: int, num_tokens: int, now_s: float) -> float:
        """When to ask again unless more comes; `now_s` where an idle engine should run these waiting calls at once."""
        if self._cost.fixed_s <= 0:
            return now_s
        if self._moment is None or self._moment.is_over or now_s > self._moment.end_s:
            self._close()
            self._history = self._after_forward if self._first_s <= self._ended_s else self._after_pause
            self._moment = self._new_moment(num_tokens, now_s)
        num_passed = self._moment.num_passed(now_s)
        best = self._history.best_step(self._moment, num_passed, self._stakes(num_calls, num_tokens))
        return now_s if best is None else self._moment.step_s(num_passed)

    def max_wait_s(self) -> float:
        """How long a lone call of the usual length that comes to an idle engine would be kept waiting, at most."""
        if self._cost.fixed_s <= 0:
            return 0.0
        num_tokens = round(self._call_tokens)
        best = self._after_pause.best_step(self._new_moment(num_tokens, 0.0), 0, self._stakes(1, num_tokens))
        return 0.0 if best is None else SHARES[best] * self._cost.fixed_s

    def _new_moment(self, num_tokens: int, now_s: float) -> Moment:
        return Moment(now_s, fixed_s=self._cost.fixed_s, forward_s=self._cost.seconds(num_tokens))

    def _stakes(self, num_calls: int, num_tokens: int) -> Stakes:
        return Stakes(
            num_calls=num_calls,
            room_tokens=self._token_budget - num_tokens,
            call_tokens=self._call_tokens,
            token_s=self._cost.token_s,
            next_calls=self._next_calls,
        )

    def _close(self) -> None:
        if self._moment is not None:
            self._history.add(self._moment)
            self._moment = None
