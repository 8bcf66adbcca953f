"""Classify forwards: plan -> prepare -> launch -> collect -> commit.

A processor computes on as many lanes as it has cores; whenever one is free, what waits is launched on it. A GPU has one
lane and takes a forward behind the one that runs: shortly before that should end the next one is planned, with all that
has come. While forwards run the loop takes in calls.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from shoal_server.engine import replies
from shoal_server.engine.all_cores import AllCores
from shoal_server.engine.answers import Answers
from shoal_server.engine.batcher import Batcher
from shoal_server.engine.classify_queue import ClassifyPlan
from shoal_server.engine.launched import Launched
from shoal_server.engine.model_runner import ModelRunner
from shoal_server.engine.request import CallKey, ClassifyRequest, VersionKey
from shoal_server.engine.statistics import Gauges
from shoal_server.engine.usage import Usage

_HOST_WEIGHT = 0.25  # of the newest forward in the mean time of planning and launching
_EARLY = 0.8  # share of a forward's expected time after which the next one may be planned
_SHORT_S = 0.001  # a forward that is over so soon is not worth handing to another thread
_LOOK_S = 0.0002  # how often to see whether a forward has ended


@dataclass(frozen=True, slots=True, kw_only=True)
class _UnderWay:
    """A forward on the device."""

    plan: ClassifyPlan
    launched: Launched
    began_s: float  # when the device could begin with it
    is_alone: bool  # has all cores


class ClassifyWork:
    """Classify calls from their admission to their answer."""

    def __init__(
        self,
        batcher: Batcher,
        runner: ModelRunner,
        *,
        num_lanes: int,
        queues_forwards: bool,
        answers: Answers,
        usage: Usage,
        clock: Callable[[], float],
    ) -> None:
        self._batcher = batcher
        self._runner = runner
        self._num_lanes = num_lanes
        self._queues_forwards = queues_forwards
        self._answers = answers
        self._usage = usage
        self._clock = clock
        self._under_way: list[_UnderWay] = []  # in the order of their launch
        self._host_s = 0.0  # mean time of planning and launching
        self._ended_s = -math.inf  # of the last forward
        self._all_cores = AllCores()
        self._look_s = -math.inf  # when to look after the forward under way again

    def add(self, request: ClassifyRequest, now_s: float) -> None:
        """Let a call wait; errors as of `Batcher.add`."""
        self._batcher.add(request, now_s)
        if self._under_way:
            self._all_cores.arrived_beside(now_s)

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
        """Calls on a version that are not answered, and its forwards under way, if all of their calls are gone."""
        num_under_way = sum(under_way.plan.version == version for under_way in self._under_way)
        return max(self._batcher.queue(version).num_open, num_under_way)

    def waiting(self) -> list[VersionKey]:
        """Versions of which sequences wait."""
        return self._batcher.waiting()

    def next_event_s(self) -> float:
        """When an idle engine should look again, at the latest."""
        if len(self._under_way) < self._num_lanes:
            return self._batcher.next_event_s()
        return self._look_s if self._queues_forwards else self._batcher.next_deadline_s()

    def is_done(self) -> bool:
        """Whether a forward has ended, so that its calls are to be answered before anything else."""
        return any(under_way.launched.is_done() for under_way in self._under_way)

    def must_rest(self, now_s: float) -> bool:
        """Whether all lanes are busy, and it is too early to plan a forward behind what runs."""
        if len(self._under_way) < self._num_lanes:
            return False
        if not self._queues_forwards:
            return True
        under_way = self._under_way[0]
        due_s = under_way.began_s + _EARLY * self._expected_s(under_way.plan) - self._host_s
        self._look_s = min(due_s, now_s + _LOOK_S)
        return now_s < due_s

    def run(self, version: VersionKey, now_s: float, *, may_wait: bool) -> bool:
        """Launch a forward of a version; False when what waits shall wait for company."""
        num_running_tokens = 0 if self._queues_forwards else sum(u.plan.num_tokens for u in self._under_way)
        plan = self._batcher.plan(
            version,
            now_s,
            may_wait=may_wait and not self._under_way,
            num_lanes=self._num_lanes,
            num_running_tokens=num_running_tokens,
        )
        if plan is None:
            return False
        is_alone = not self._under_way and not self._batcher.waiting() and self._all_cores.are_free(now_s)
        launched = self._launch(plan, now_s, is_alone=is_alone)
        if len(self._under_way) == self._num_lanes:
            self.collect()
        if launched is not None:
            began_s = max(now_s, self._ended_s) if self._queues_forwards else now_s
            self._under_way.append(_UnderWay(plan=plan, launched=launched, began_s=began_s, is_alone=is_alone))
        return True

    def collect_all(self) -> None:
        """Wait for everything under way, so that the device is free."""
        while self.collect():
            continue

    def collect(self) -> bool:
        """Wait for a forward, one that has ended before the oldest, and answer its calls; False when there is none."""
        if not self._under_way:
            return False
        ended = (at for at, under_way in enumerate(self._under_way) if under_way.launched.is_done())
        under_way = self._under_way.pop(next(ended, 0))
        plan = under_way.plan
        try:
            logits_RL = under_way.launched.collect()
        except Exception as error:
            self._fail(plan, error, under_way.began_s)
            return True
        ended_s = self._ended_s = self._clock()
        seconds = under_way.launched.seconds()
        if under_way.is_alone:
            self._all_cores.ran(seconds=seconds, expected_s=self._expected_s(plan), ended_s=ended_s)
        for request in self._batcher.commit(plan, logits_RL, seconds=seconds, ended_s=ended_s):
            self._answers.end(request.key, replies.classify_done(request, ended_s))
        self._usage.ran(
            plan.version,
            num_sequences=plan.num_sequences,
            num_tokens=plan.num_tokens,
            budget_tokens=self._batcher.token_budget,
            seconds=seconds,
            device_s=seconds / self._num_lanes,
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

    def _launch(self, plan: ClassifyPlan, now_s: float, *, is_alone: bool) -> Launched | None:
        """Put a forward on the device; None when that failed and its calls are ended."""
        try:
            is_short = 0.0 < self._expected_s(plan) <= _SHORT_S
            launched = self._runner.launch(self._runner.prepare(plan), is_alone=is_alone, is_short=is_short)
        except Exception as error:
            self._fail(plan, error, now_s)
            return None
        if self._queues_forwards:
            self._host_s += _HOST_WEIGHT * (self._clock() - now_s - self._host_s)
        return launched

    def _expected_s(self, plan: ClassifyPlan) -> float:
        return self._batcher.queue(plan.version).cost.seconds(plan.num_tokens)

    def _fail(self, plan: ClassifyPlan, error: Exception, began_s: float) -> None:
        self._ended_s = self._clock()
        self._usage.failed(plan.version, error, (self._ended_s - began_s) / self._num_lanes)
        self._answers.fail(self._batcher.fail(plan, self._ended_s), error)
