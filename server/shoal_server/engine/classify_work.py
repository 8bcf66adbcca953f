"""Classify forwards: plan -> prepare -> launch -> collect -> commit.

On a device that computes by itself one forward is left under way. While it runs the loop takes in calls; shortly before
it should end the next one is planned, with all that has come, and launched behind it. On a processor a forward has run
when it is launched, and is collected at once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from shoal_server.engine import replies
from shoal_server.engine.answers import Answers
from shoal_server.engine.batcher import Batcher
from shoal_server.engine.classify_queue import ClassifyPlan
from shoal_server.engine.model_runner import Launched, ModelRunner
from shoal_server.engine.request import CallKey, ClassifyRequest, VersionKey
from shoal_server.engine.statistics import Gauges
from shoal_server.engine.usage import Usage

_HOST_WEIGHT = 0.25  # of the newest forward in the mean time of planning and launching
_EARLY = 0.8  # share of a forward's expected time after which the next one may be planned
_LOOK_S = 0.0002  # how often to see whether a forward has ended


@dataclass(frozen=True, slots=True, kw_only=True)
class _UnderWay:
    """A forward on the device."""

    plan: ClassifyPlan
    launched: Launched
    began_s: float  # when the device could begin with it


class ClassifyWork:
    """Classify calls from their admission to their answer."""

    def __init__(
        self,
        batcher: Batcher,
        runner: ModelRunner,
        *,
        is_asynchronous: bool,
        answers: Answers,
        usage: Usage,
        clock: Callable[[], float],
    ) -> None:
        self._batcher = batcher
        self._runner = runner
        self._is_asynchronous = is_asynchronous
        self._answers = answers
        self._usage = usage
        self._clock = clock
        self._under_way: _UnderWay | None = None
        self._host_s = 0.0  # mean time of planning and launching
        self._ended_s = -math.inf  # of the last forward
        self._look_s = -math.inf  # when to look after the forward under way again

    def add(self, request: ClassifyRequest, now_s: float) -> None:
        """Let a call wait; errors as of `Batcher.add`."""
        self._batcher.add(request, now_s)

    def abort(self, key: CallKey) -> None:
        """Forget a call."""
        self._batcher.abort(key)

    def expire(self, now_s: float) -> list[ClassifyRequest]:
        """End and return the calls whose deadline has passed."""
        return self._batcher.expire(now_s)

    def add_version(self, version: VersionKey) -> None:
        """Calls may name this version from now on."""
        self._batcher.add_version(version)

    def remove_version(self, version: VersionKey) -> None:
        """Forget a version on which nothing runs."""
        self._batcher.remove_version(version)

    def num_open(self, version: VersionKey) -> int:
        """Calls on a version that are not answered, and its forward under way, if all of that one's calls are gone."""
        is_under_way = self._under_way is not None and self._under_way.plan.version == version
        return max(self._batcher.queue(version).num_open, int(is_under_way))

    def waiting(self) -> list[VersionKey]:
        """Versions of which sequences wait."""
        return self._batcher.waiting()

    def next_event_s(self) -> float:
        """When an idle engine should look again, at the latest."""
        return self._batcher.next_event_s() if self._under_way is None else self._look_s

    def is_done(self) -> bool:
        """Whether the forward under way has ended, so that its calls are to be answered before anything else."""
        return self._under_way is not None and self._under_way.launched.is_done()

    def must_rest(self, now_s: float) -> bool:
        """Whether it is too early to plan a forward behind the one under way."""
        under_way = self._under_way
        if under_way is None:
            return False
        expected_s = self._batcher.queue(under_way.plan.version).cost.seconds(under_way.plan.num_tokens)
        due_s = under_way.began_s + _EARLY * expected_s - self._host_s
        self._look_s = min(due_s, now_s + _LOOK_S)
        return now_s < due_s

    def run(self, version: VersionKey, now_s: float, *, may_wait: bool) -> bool:
        """Launch a forward of a version, then collect the one before; False when what waits shall wait for company."""
        plan = self._batcher.plan(version, now_s, may_wait=may_wait and self._under_way is None)
        if plan is None:
            return False
        launched = self._launch(plan, now_s)
        self.collect()
        if launched is not None:
            self._under_way = _UnderWay(plan=plan, launched=launched, began_s=max(now_s, self._ended_s))
            if not self._is_asynchronous:
                self.collect()
        return True

    def collect(self) -> bool:
        """Wait for the forward under way and answer its calls; False when there is none."""
        under_way, self._under_way = self._under_way, None
        if under_way is None:
            return False
        plan = under_way.plan
        try:
            logits_RL = under_way.launched.collect()
        except Exception as error:
            self._fail(plan, error, under_way.began_s)
            return True
        ended_s = self._ended_s = self._clock()
        seconds = under_way.launched.seconds()
        seconds = ended_s - under_way.began_s if seconds is None else seconds
        for request in self._batcher.commit(plan, logits_RL, seconds=seconds, ended_s=ended_s):
            self._answers.end(request.key, replies.classify_done(request, ended_s))
        self._usage.ran(
            plan.version,
            num_sequences=plan.num_sequences,
            num_tokens=plan.num_tokens,
            budget_tokens=self._batcher.token_budget,
            seconds=seconds,
        )
        return True

    def gauges(self, version: VersionKey) -> Gauges:
        """How a version stands."""
        queue = self._batcher.queue(version)
        return Gauges(
            num_waiting=queue.num_sequences,
            max_wait_s=queue.max_wait_s,
            forward_fixed_s=queue.cost.fixed_s,
            forward_token_s=queue.cost.token_s,
        )

    def _launch(self, plan: ClassifyPlan, now_s: float) -> Launched | None:
        """Put a forward on the device; None when that failed and its calls are ended."""
        try:
            launched = self._runner.launch(self._runner.prepare(plan))
        except Exception as error:
            self._fail(plan, error, now_s)
            return None
        if self._is_asynchronous:
            self._host_s += _HOST_WEIGHT * (self._clock() - now_s - self._host_s)
        return launched

    def _fail(self, plan: ClassifyPlan, error: Exception, began_s: float) -> None:
        self._ended_s = self._clock()
        self._usage.failed(plan.version, error, self._ended_s - began_s)
        self._answers.fail(self._batcher.fail(plan, self._ended_s), error)
