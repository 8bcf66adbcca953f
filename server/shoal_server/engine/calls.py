"""The calls under way: admits them to batcher or scheduler, runs whose turn it is, and answers.

One step is one forward: plan -> execute -> commit. Owned by the compute loop; knows no sockets and no threads.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Sequence

from shoal_server.config import ServerConfig
from shoal_server.engine import replies
from shoal_server.engine.batcher import Batcher
from shoal_server.engine.devices.device import Device
from shoal_server.engine.kv_cache import BlockAllocator
from shoal_server.engine.loader import is_out_of_memory
from shoal_server.engine.model_runner import ModelRunner, ReadyGenerator, ReadyVersion
from shoal_server.engine.request import (
    CallKey,
    ClassifyRequest,
    GenerateRequest,
    VersionKey,
    classify_request,
    generate_request,
)
from shoal_server.engine.sampler import Choices, NotFiniteLogits
from shoal_server.engine.scheduler import Scheduler, StepPlan
from shoal_server.engine.statistics import Gauges, Statistics
from shoal_server.engine.turns import Turns
from shoal_server.engine.versions import Versions
from shoal_server.errors import Exhausted, InternalFault, ServerError, WrongModelKind
from shoal_server.ipc.messages import Abort, CallFailed, ClassifyCall, GenerateCall, Message, ModelStatistics
from shoal_server.log import Log

_log = Log(__name__)


class Calls:
    """Everything between a call's arrival and its answer."""

    def __init__(
        self,
        config: ServerConfig,
        *,
        runner: ModelRunner,
        versions: Versions,
        device: Device,
        reply: Callable[[int, Message], None],
    ) -> None:
        self._config = config
        self._runner = runner
        self._versions = versions
        self._device = device
        self._reply = reply
        self._token_budget = config.classify.token_budget or device.classify_token_budget
        self._batcher = Batcher(token_budget=self._token_budget, max_waiting_tokens=config.classify.max_waiting_tokens)
        self._schedulers: dict[VersionKey, Scheduler] = {}
        self._block_bytes: dict[VersionKey, int] = {}  # one KV block of a generator
        self._open: dict[int, dict[CallKey, VersionKey]] = {}  # by peer: its open calls
        self._turns = Turns()
        self._statistics = Statistics()
        self._arrivals = itertools.count()
        self.is_device_lost = False

    @property
    def busy_s(self) -> float:
        """Seconds inside forwards so far."""
        return self._statistics.busy_s

    @property
    def is_any_open(self) -> bool:
        """Whether any call is not answered."""
        return any(self._open.values())

    def receive(self, messages: Sequence[ClassifyCall | GenerateCall | Abort], peer_id: int, received_s: float) -> None:
        """Take in what a front sent; a call that cannot be taken is answered at once."""
        for message in messages:
            if isinstance(message, Abort):
                self._abort(CallKey(peer_id, message.request_id))
                continue
            try:
                self._admit(message, peer_id, received_s)
            except ServerError as error:
                self._reply(peer_id, CallFailed(request_id=message.request_id, error=error.to_wire()))

    def abort_peer(self, peer_id: int) -> None:
        """A front is gone: forget all of its calls."""
        for key in list(self._open.get(peer_id, ())):
            self._abort(key)
        self._open.pop(peer_id, None)

    def add_version(self, ready: ReadyVersion) -> None:
        """Calls may name this version from now on."""
        if isinstance(ready, ReadyGenerator):
            allocator = BlockAllocator(num_blocks=ready.cache.num_blocks, block_tokens=ready.cache.block_tokens)
            self._block_bytes[ready.key] = ready.cache.num_bytes // ready.cache.num_blocks
            self._schedulers[ready.key] = Scheduler(ready.key, self._config.generate, allocator)
        else:
            self._batcher.add_version(ready.key)

    def remove_version(self, key: VersionKey) -> None:
        """Forget a version on which nothing runs."""
        assert self.num_open(key) == 0, "only idle versions are removed"
        if self._schedulers.pop(key, None) is not None:
            del self._block_bytes[key]
        else:
            self._batcher.remove_version(key)
        self._turns.forget(key)
        self._statistics.forget(key)

    def num_open(self, key: VersionKey) -> int:
        """Calls on a version that are not answered."""
        scheduler = self._schedulers.get(key)
        return scheduler.num_open if scheduler else self._batcher.queue(key).num_open

    def untouched_cache_bytes(self) -> int:
        """KV caches' memory that counts as free but is promised; called by the loader thread."""
        if not self._device.commits_lazily:
            return 0
        allocators = [(key, scheduler.allocator) for key, scheduler in list(self._schedulers.items())]
        return sum((a.num_blocks - a.num_touched) * self._block_bytes.get(key, 0) for key, a in allocators)

    def next_event_s(self) -> float:
        """When something is to be done though nothing arrives."""
        deadlines = (scheduler.next_event_s() for scheduler in self._schedulers.values())
        return min(self._batcher.next_event_s(), min(deadlines, default=math.inf))

    def step(self) -> bool:
        """Answer what has expired and run one forward; False when there was nothing to run."""
        now_s = time.monotonic()
        self._expire(now_s)
        ready = [key for key, scheduler in self._schedulers.items() if scheduler.num_open] + self._batcher.waiting()
        if not ready:
            return False
        version = self._turns.choose(ready)
        if version in self._schedulers:
            return self._generate(version, now_s)
        return self._classify(version, now_s, may_wait=len(ready) == 1)

    def statistics(self, served: Sequence[VersionKey]) -> list[ModelStatistics]:
        """Counters and gauges of the versions that are served."""
        return [self._statistics.snapshot(key, self._gauges(key)) for key in served]

    def _admit(self, call: ClassifyCall | GenerateCall, peer_id: int, received_s: float) -> None:
        version = VersionKey(call.model, call.version)
        manifest = self._versions.manifest(version)
        arrival = next(self._arrivals)
        scheduler = self._schedulers.get(version)
        key = CallKey(peer_id, call.request_id)
        if isinstance(call, ClassifyCall):
            if scheduler is not None:
                raise WrongModelKind(f"{version} is a generator and cannot classify")
            self._batcher.add(classify_request(call, peer_id, manifest, arrival=arrival, now_s=received_s), received_s)
        else:
            if scheduler is None:
                raise WrongModelKind(f"{version} is a classifier and cannot generate")
            scheduler.add(generate_request(call, peer_id, manifest, arrival=arrival, now_s=received_s))
        self._open.setdefault(peer_id, {})[key] = version

    def _abort(self, key: CallKey) -> None:
        version = self._open.get(key.peer_id, {}).pop(key, None)
        if version is not None:
            scheduler = self._schedulers.get(version)
            (scheduler or self._batcher).abort(key)

    def _expire(self, now_s: float) -> None:
        expired: list[ClassifyRequest | GenerateRequest] = [*self._batcher.expire(now_s)]
        for scheduler in self._schedulers.values():
            expired += scheduler.expire(now_s)
        for request in expired:
            self._statistics.record_expired(request.version)
            self._answer(request.key, replies.expired(request, now_s))

    def _classify(self, version: VersionKey, now_s: float, *, may_wait: bool) -> bool:
        plan = self._batcher.plan(version, now_s, may_wait=may_wait)
        if plan is None:
            return False
        try:
            logits_RL = self._runner.classify(plan)
        except Exception as error:
            ended_s = self._charge(version, now_s)
            self._fail(self._batcher.fail(plan, ended_s), error)
            return True
        ended_s = self._charge(version, now_s)
        for request in self._batcher.commit(plan, logits_RL, began_s=now_s, ended_s=ended_s):
            self._answer(request.key, replies.classify_done(request, ended_s))
        self._statistics.record(
            version,
            num_sequences=plan.num_sequences,
            num_tokens=plan.num_tokens,
            budget_tokens=self._token_budget,
            seconds=ended_s - now_s,
        )
        return True

    def _generate(self, version: VersionKey, now_s: float) -> bool:
        scheduler = self._schedulers[version]
        plan = scheduler.plan(now_s)
        if plan is None:
            return False
        try:
            choices = self._runner.generate(plan)
        except NotFiniteLogits as error:
            self._charge(version, now_s)
            wanted = [piece.request for piece in plan.pieces if piece.wants_token]
            self._fail(scheduler.fail([wanted[row] for row in error.rows]), error)
            return True
        except Exception as error:
            self._charge(version, now_s)
            self._fail(scheduler.fail([piece.request for piece in plan.pieces]), error)
            return True
        ended_s = self._charge(version, now_s)
        self._commit_step(scheduler, plan, choices, ended_s)
        self._statistics.record(
            version,
            num_sequences=len(plan.pieces),
            num_tokens=plan.num_tokens,
            budget_tokens=self._config.generate.token_budget,
            seconds=ended_s - now_s,
        )
        return True

    def _charge(self, version: VersionKey, began_s: float) -> float:
        """Count what a forward had of the device, whatever came of it; returns the time."""
        ended_s = time.monotonic()
        self._turns.charge(version, ended_s - began_s)
        return ended_s

    def _commit_step(self, scheduler: Scheduler, plan: StepPlan, choices: Choices, now_s: float) -> None:
        for row, advance in enumerate(scheduler.commit(plan, choices.token_ids, now_s)):
            if advance.is_output:
                message = replies.token_generated(advance, choices.logprobs.get(row))
                self._reply(advance.request.key.peer_id, message)
            if advance.finished is not None:
                self._answer(advance.request.key, replies.generate_done(advance, advance.finished, now_s))

    def _answer(self, key: CallKey, message: Message) -> None:
        """Send the last message of a call."""
        del self._open[key.peer_id][key]
        self._reply(key.peer_id, message)

    def _fail(self, requests: Sequence[ClassifyRequest | GenerateRequest], error: Exception) -> None:
        """Answer the calls that a failed forward took with it; the engine goes on with the others."""
        _log.error("step.failed", exc_info=not isinstance(error, NotFiniteLogits), calls=len(requests), error=error)
        self.is_device_lost = self._device.is_lost(error)
        wire = _as_server_error(error).to_wire()
        for request in requests:
            self._answer(request.key, CallFailed(request_id=request.key.request_id, error=wire))

    def _gauges(self, key: VersionKey) -> Gauges:
        scheduler = self._schedulers.get(key)
        if scheduler is None:
            queue = self._batcher.queue(key)
            return Gauges(
                num_waiting=queue.num_sequences,
                max_wait_s=queue.max_wait_s,
                forward_fixed_s=queue.cost.fixed_s,
                forward_token_s=queue.cost.token_s,
            )
        return Gauges(
            num_running=scheduler.num_running,
            num_waiting=scheduler.num_waiting,
            num_preempted=scheduler.num_preempted,
            kv_blocks_used=scheduler.allocator.num_used,
            kv_blocks_total=scheduler.allocator.num_blocks,
        )


def _as_server_error(error: Exception) -> ServerError:
    if isinstance(error, NotFiniteLogits):
        return InternalFault("the model computed numbers that are not finite")
    if is_out_of_memory(error):
        return Exhausted("the device ran out of memory in this step", retry_after_s=1.0)
    return InternalFault("the engine failed in this step; its log says why")
