"""The calls under way: admits them to the work of their kind, and gives each model its turn on the device.

One step is one forward. Owned by the compute loop; knows no sockets and no threads.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence

from shoal_server.config import ServerConfig
from shoal_server.engine import replies
from shoal_server.engine.answers import Answers
from shoal_server.engine.batcher import Batcher
from shoal_server.engine.classify_work import ClassifyWork
from shoal_server.engine.devices.device import Device
from shoal_server.engine.generate_work import GenerateWork
from shoal_server.engine.model_runner import ModelRunner, ReadyGenerator, ReadyVersion
from shoal_server.engine.request import (
    CallKey,
    ClassifyRequest,
    GenerateRequest,
    VersionKey,
    classify_request,
    generate_request,
)
from shoal_server.engine.usage import Usage
from shoal_server.engine.versions import Versions
from shoal_server.errors import ServerError, WrongModelKind
from shoal_server.ipc.messages import Abort, ClassifyCall, GenerateCall, Message, ModelStatistics


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
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._versions = versions
        self._device = device
        self._clock = clock
        self._answers = Answers(reply)
        self._usage = Usage(device)
        batcher = Batcher(
            token_budget=config.classify.token_budget or device.classify_token_budget,
            max_waiting_tokens=config.classify.max_waiting_tokens,
        )
        self._classify = ClassifyWork(
            batcher,
            runner,
            num_lanes=device.num_lanes,
            queues_forwards=device.queues_forwards,
            answers=self._answers,
            usage=self._usage,
            clock=clock,
        )
        self._generate = GenerateWork(config.generate, runner, answers=self._answers, usage=self._usage, clock=clock)
        self._arrivals = itertools.count()

    @property
    def busy_s(self) -> float:
        """Seconds inside forwards so far."""
        return self._usage.statistics.busy_s

    @property
    def is_device_lost(self) -> bool:
        """Whether nothing will run here any more."""
        return self._usage.is_device_lost

    @property
    def is_any_open(self) -> bool:
        """Whether any call is not answered."""
        return self._answers.is_any_open

    def receive(self, messages: Sequence[ClassifyCall | GenerateCall | Abort], peer_id: int, received_s: float) -> None:
        """Take in what a front sent; a call that cannot be taken is answered at once."""
        for message in messages:
            key = CallKey(peer_id, message.request_id)
            if isinstance(message, Abort):
                version = self._answers.forget(key)
                if version is not None:
                    self._abort(key, version)
                continue
            try:
                self._admit(key, message, received_s)
            except ServerError as error:
                self._answers.refuse(key, error)

    def abort_peer(self, peer_id: int) -> None:
        """A front is gone: forget all of its calls."""
        for key, version in self._answers.forget_peer(peer_id).items():
            self._abort(key, version)

    def add_version(self, ready: ReadyVersion) -> None:
        """Calls may name this version from now on."""
        if isinstance(ready, ReadyGenerator):
            self._generate.add_version(ready)
        else:
            self._classify.add_version(ready.key)

    def remove_version(self, key: VersionKey) -> None:
        """Forget a version on which nothing runs."""
        assert self.num_open(key) == 0, "only idle versions are removed"
        (self._generate if key in self._generate else self._classify).remove_version(key)
        self._usage.forget(key)

    def num_open(self, key: VersionKey) -> int:
        """Calls on a version that are not answered."""
        return (self._generate if key in self._generate else self._classify).num_open(key)

    def untouched_cache_bytes(self) -> int:
        """KV caches' memory that counts as free but is promised; called by the loader thread."""
        return self._generate.untouched_cache_bytes() if self._device.commits_lazily else 0

    def next_event_s(self) -> float:
        """When something is to be done though nothing arrives."""
        return min(self._classify.next_event_s(), self._generate.next_event_s())

    def step(self) -> bool:
        """Answer what has expired and run or collect one forward; False when there is nothing to do now."""
        now_s = self._clock()
        self._expire(now_s)
        generating = self._generate.waiting()
        if self._classify.is_done():
            return self._classify.collect()
        resting = self._classify.must_rest(now_s)
        if resting and not generating:
            return False
        ready = generating if resting and not self._device.queues_forwards else generating + self._classify.waiting()
        if not ready:
            return self._device.queues_forwards and self._classify.collect()
        version = self._usage.turns.choose(ready)
        if version not in self._generate:
            return self._classify.run(version, now_s, may_wait=len(ready) == 1)
        self._classify.collect_all()
        return self._generate.run(version, self._clock())

    def statistics(self, served: Sequence[VersionKey]) -> list[ModelStatistics]:
        """Counters and gauges of the versions that are served."""
        works = [(key, self._generate if key in self._generate else self._classify) for key in served]
        return [self._usage.statistics.snapshot(key, work.gauges(key)) for key, work in works]

    def _admit(self, key: CallKey, call: ClassifyCall | GenerateCall, received_s: float) -> None:
        version = VersionKey(call.model, call.version)
        manifest = self._versions.manifest(version)
        arrival = next(self._arrivals)
        is_generator = version in self._generate
        if isinstance(call, ClassifyCall):
            if is_generator:
                raise WrongModelKind(f"{version} is a generator and cannot classify")
            request = classify_request(call, key.peer_id, manifest, arrival=arrival, now_s=received_s)
            self._classify.add(request, received_s)
        else:
            if not is_generator:
                raise WrongModelKind(f"{version} is a classifier and cannot generate")
            generating = generate_request(call, key.peer_id, manifest, arrival=arrival, now_s=received_s)
            self._generate.add(version, generating)
        self._answers.begin(key, version)

    def _abort(self, key: CallKey, version: VersionKey) -> None:
        if version in self._generate:
            self._generate.abort(version, key)
        else:
            self._classify.abort(key)

    def _expire(self, now_s: float) -> None:
        expired: list[ClassifyRequest | GenerateRequest] = [*self._classify.expire(now_s)]
        expired += self._generate.expire(now_s)
        for request in expired:
            self._usage.statistics.record_expired(request.version)
            self._answers.end(request.key, replies.expired(request, now_s))
