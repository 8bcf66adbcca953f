"""Generate steps: plan -> execute -> commit, with a scheduler for each version."""

from __future__ import annotations

import math
from collections.abc import Callable

from shoal_server.config import GenerateConfig
from shoal_server.engine import replies
from shoal_server.engine.answers import Answers
from shoal_server.engine.kv_cache import BlockAllocator
from shoal_server.engine.model_runner import ModelRunner, ReadyGenerator
from shoal_server.engine.request import CallKey, GenerateRequest, VersionKey
from shoal_server.engine.sampler import Choices, NotFiniteLogits
from shoal_server.engine.scheduler import Scheduler, StepPlan
from shoal_server.engine.statistics import Gauges
from shoal_server.engine.usage import Usage


class GenerateWork:
    """Generate calls from their admission to their answer."""

    def __init__(
        self,
        config: GenerateConfig,
        runner: ModelRunner,
        *,
        answers: Answers,
        usage: Usage,
        clock: Callable[[], float],
    ) -> None:
        self._config = config
        self._runner = runner
        self._answers = answers
        self._usage = usage
        self._clock = clock
        self._schedulers: dict[VersionKey, Scheduler] = {}
        self._block_bytes: dict[VersionKey, int] = {}

    def __contains__(self, version: VersionKey) -> bool:
        return version in self._schedulers

    def add_version(self, ready: ReadyGenerator) -> None:
        """Calls may name this version from now on."""
        allocator = BlockAllocator(num_blocks=ready.cache.num_blocks, block_tokens=ready.cache.block_tokens)
        self._block_bytes[ready.key] = ready.cache.num_bytes // ready.cache.num_blocks
        self._schedulers[ready.key] = Scheduler(ready.key, self._config, allocator)

    def remove_version(self, version: VersionKey) -> None:
        """Forget a version on which nothing runs."""
        del self._schedulers[version]
        del self._block_bytes[version]

    def add(self, version: VersionKey, request: GenerateRequest) -> None:
        """Let a call wait; errors as of `Scheduler.add`."""
        self._schedulers[version].add(request)

    def abort(self, version: VersionKey, key: CallKey) -> None:
        """Forget a call; its blocks are free at once."""
        self._schedulers[version].abort(key)

    def expire(self, now_s: float) -> list[GenerateRequest]:
        """End and return the calls whose deadline has passed."""
        return [request for scheduler in self._schedulers.values() for request in scheduler.expire(now_s)]

    def num_open(self, version: VersionKey) -> int:
        """Calls on a version that are not answered."""
        return self._schedulers[version].num_open

    def waiting(self) -> list[VersionKey]:
        """Versions with calls that wait or run."""
        return [version for version, scheduler in self._schedulers.items() if scheduler.num_open]

    def next_event_s(self) -> float:
        """When the next deadline passes."""
        return min((scheduler.next_event_s() for scheduler in self._schedulers.values()), default=math.inf)

    def untouched_cache_bytes(self) -> int:
        """Memory of KV caches that was never written to; called by the loader thread."""
        allocators = [(version, scheduler.allocator) for version, scheduler in list(self._schedulers.items())]
        return sum((a.num_blocks - a.num_touched) * self._block_bytes.get(version, 0) for version, a in allocators)

    def run(self, version: VersionKey, now_s: float) -> bool:
        """Run one step of a version; False when there was none to run."""
        scheduler = self._schedulers[version]
        plan = scheduler.plan(now_s)
        if plan is None:
            return False
        try:
            choices = self._runner.generate(plan)
        except NotFiniteLogits as error:
            wanted = [piece.request for piece in plan.pieces if piece.wants_token]
            self._fail(scheduler, [wanted[row] for row in error.rows], error, plan, now_s)
            return True
        except Exception as error:
            self._fail(scheduler, [piece.request for piece in plan.pieces], error, plan, now_s)
            return True
        ended_s = self._clock()
        self._commit(scheduler, plan, choices, ended_s)
        self._usage.ran(
            version,
            num_sequences=len(plan.pieces),
            num_tokens=plan.num_tokens,
            budget_tokens=self._config.token_budget,
            seconds=ended_s - now_s,
            device_s=ended_s - now_s,
        )
        return True

    def gauges(self, version: VersionKey) -> Gauges:
        """How a version stands."""
        scheduler = self._schedulers[version]
        return Gauges(
            num_running=scheduler.num_running,
            num_waiting=scheduler.num_waiting,
            num_preempted=scheduler.num_preempted,
            kv_blocks_used=scheduler.allocator.num_used,
            kv_blocks_total=scheduler.allocator.num_blocks,
        )

    def _commit(self, scheduler: Scheduler, plan: StepPlan, choices: Choices, now_s: float) -> None:
        for row, advance in enumerate(scheduler.commit(plan, choices.token_ids, now_s)):
            key = advance.request.key
            if advance.is_output:
                self._answers.progress(key, replies.token_generated(advance, choices.logprobs.get(row)))
            if advance.finished is not None:
                self._answers.end(key, replies.generate_done(advance, advance.finished, now_s))

    def _fail(
        self, scheduler: Scheduler, requests: list[GenerateRequest], error: Exception, plan: StepPlan, began_s: float
    ) -> None:
        self._usage.failed(plan.version, error, self._clock() - began_s)
        self._answers.fail(scheduler.fail(requests), error)
