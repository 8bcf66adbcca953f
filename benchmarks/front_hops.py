"""What each step of one Classify request costs in the front, and on its way to the engine and back, step by step.

Runs the server's own functions on real objects, in one process with nothing else to do; the engine is replaced by one
that answers at once, over a real socket, whose own few microseconds are in the round trips. What gRPC costs is not
here: see `front_floor`.
"""

from __future__ import annotations

import asyncio
import os
import random
import statistics
import tempfile
import time
from array import array
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from shoal.v1 import classify_pb2, common_pb2
from shoal_server.config import ServerConfig
from shoal_server.engine.batcher import Batcher
from shoal_server.engine.request import VersionKey as EngineVersionKey
from shoal_server.engine.request import classify_request
from shoal_server.front import convert, convert_classify
from shoal_server.front.admission import Work
from shoal_server.front.classify import ClassifyService
from shoal_server.front.credentials import TokenBook
from shoal_server.front.front import Front
from shoal_server.front.interceptors import Interceptors
from shoal_server.front.reading import Reader, refuse_all
from shoal_server.front.routing import ModelReference, VersionKey
from shoal_server.front.scores import Pooling, Scores, merge_windows, score
from shoal_server.front.version_text import load_version_text
from shoal_server.ipc.channel import Channel, ChannelClosed, listen
from shoal_server.ipc.messages import (
    ClassifyCall,
    ClassifyDone,
    EngineEndpoint,
    EngineTimes,
    ModelKind,
    RoutedModel,
    RoutedVersion,
    Routing,
    ToEngine,
    VersionState,
)
from shoal_server.process import Startup

from benchmarks.front_load import classify_input

NUM_ROUNDS = 5  # the median is told
ROUND_S = 0.1
IN_FLIGHT = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Hop:
    """One step."""

    name: str
    us: float  # CPU microseconds a request


async def measure(version_path: Path, model: str, *, num_texts: int, ids: bool) -> list[Hop]:
    """The steps of a Classify call of so many inputs, in their order."""
    with tempfile.TemporaryDirectory(prefix="shoal") as folder:
        bench = _Bench(version_path, model, Path(folder), num_texts=num_texts, ids=ids)
        await bench.start()
        try:
            return await bench.hops()
        finally:
            await bench.stop()


class _Bench:
    """A front without its gRPC server, and one request in each of its forms."""

    def __init__(self, version_path: Path, model: str, folder: Path, *, num_texts: int, ids: bool) -> None:
        rng = random.Random(0)
        inputs = [classify_input(rng, ids=ids) for _ in range(num_texts)]
        self._request = classify_pb2.ClassifyRequest(model=common_pb2.ModelRef(name=model), inputs=inputs)
        self._raw = self._request.SerializeToString()
        self._version_path = version_path
        self._text = load_version_text(version_path)
        self._endpoint = EngineEndpoint(engine_id=0, address=str(folder / "engine.sock"), incarnation=1)
        self._front = Front(_startup(folder), lambda _: None)
        self._reader = Reader(self._front.tokenizers)
        self._reference = ModelReference(name=model)
        self._batcher = Batcher(token_budget=1024, max_waiting_tokens=self._front.config.classify.max_waiting_tokens)
        self._batcher.add_version(EngineVersionKey(model, self._text.manifest.version))
        shape = (num_texts, len(self._text.manifest.labels))
        self._logits = np.random.default_rng(0).normal(size=shape).astype("<f4")

    async def start(self) -> None:
        """Route the version to an engine that answers at once."""
        self._server = await listen(self._endpoint.address, ToEngine, self._answer)
        await self._front.engines.apply([self._endpoint])
        name, number = self._text.manifest.model, self._text.manifest.version
        routed = RoutedVersion(version=number, state=VersionState.LIVE, path=str(self._version_path), engine_ids=[0])
        model = RoutedModel(name=name, kind=ModelKind.CLASSIFIER, labels={}, default_version=number, versions=[routed])
        routing = Routing(revision=1, engines=[self._endpoint], models=[model], serving=True)
        self._front.router.apply(routing, {VersionKey(model=name, version=number): self._text})

    async def stop(self) -> None:
        """Free everything."""
        self._front.close()
        self._server.close()
        await asyncio.sleep(0.01)  # the transports close

    async def hops(self) -> list[Hop]:
        """Every step."""
        inputs, settings = self._check(), convert_classify.settings(self._request.options)
        fitted = await self._reader.read(self._text, inputs, settings, refuse_all)
        sequences = [array("i", sequence).tobytes() for one in fitted for sequence in one.sequences]
        call = ClassifyCall(
            request_id=0,
            model=self._text.manifest.model,
            version=self._text.manifest.version,
            sequences=sequences,
            type_starts=[-1] * len(sequences),
        )
        read = _timed_async(lambda: self._reader.read(self._text, inputs, settings, refuse_all), 1)
        return [
            Hop(name="parse", us=_timed(lambda: classify_pb2.ClassifyRequest.FromString(self._raw))),
            Hop(name="check", us=_timed(self._check)),
            Hop(name="route and admit", us=_timed(self._admit)),
            Hop(name="tokenize and fit", us=await read),
            Hop(name="engine: check, queue, plan, commit", us=_timed(lambda: self._queue(call))),
            Hop(name="to the engine and back, alone", us=await _timed_async(lambda: self._round_trip(call), 1)),
            Hop(
                name=f"to the engine and back, {IN_FLIGHT} in flight",
                us=await _timed_async(lambda: self._round_trip(call), IN_FLIGHT),
            ),
            Hop(name="score", us=_timed(self._score)),
            Hop(name="reply", us=self._time_reply()),
            Hop(name="the whole handler, alone", us=await self._time_handler(1)),
            Hop(name=f"the whole handler, {IN_FLIGHT} in flight", us=await self._time_handler(IN_FLIGHT)),
        ]

    def _check(self) -> list[convert_classify.Input]:
        convert.model_reference(self._request.model)
        convert_classify.settings(self._request.options)
        convert.priority(self._request.priority)
        return convert_classify.inputs(self._request.inputs, self._front.config.limits)

    def _admit(self) -> None:
        served = self._front.router.begin(self._reference, ModelKind.CLASSIFIER)
        self._front.engines.admit(Work.CLASSIFY, served.engine_ids, 100).release()
        self._front.router.end(served)

    def _queue(self, call: ClassifyCall) -> None:
        self._batcher.add(classify_request(call, 1, self._text.manifest, arrival=0, now_s=0.0), 0.0)
        first = 0
        version = EngineVersionKey(call.model, call.version)
        while (plan := self._batcher.plan(version, 1.0, may_wait=False)) is not None:
            logits_RL = self._logits[first : first + plan.num_sequences]
            self._batcher.commit(plan, logits_RL, seconds=0.005, ended_s=1.005)
            first += plan.num_sequences

    async def _round_trip(self, call: ClassifyCall) -> None:
        permit = self._front.engines.admit(Work.CLASSIFY, [0], 1)
        try:
            await self._front.engines.classify(
                permit, lambda request_id: msgspec.structs.replace(call, request_id=request_id)
            )
        finally:
            permit.release()

    async def _answer(self, channel: Channel[ToEngine]) -> None:
        """Be the engine."""
        logits, times = self._logits.tobytes(), EngineTimes(received_s=0.0, started_s=0.0, ended_s=0.0)
        try:
            while True:
                for message in await channel.receive():
                    if isinstance(message, ClassifyCall):
                        channel.send(ClassifyDone(request_id=message.request_id, logits=logits, times=times))
        except ChannelClosed:
            return

    def _score(self) -> Scores:
        weights = [[1]] * len(self._logits)
        logits_NL = merge_windows(self._logits.tobytes(), self._logits.shape[1], weights, Pooling.MEAN)
        return score(logits_NL, head=self._text.manifest.head, as_logits=False, top_k=0)

    def _time_reply(self) -> float:
        scores = self._score()
        counts = [convert_classify.ReadCounts(num_input_tokens=27, num_dropped=0, num_windows=1)] * len(self._logits)

        def reply() -> bytes:
            return classify_pb2.ClassifyResponse(
                served_by=convert.served_by(VersionKey(model=self._text.manifest.model, version=1)),
                timings=convert.timings_of(tokenize_s=1e-3, queue_s=1e-3, run_s=1e-3),
                labels=self._text.manifest.labels,
                head=convert_classify.head_kind(self._text.manifest.head),
                results=convert_classify.classifications(scores, counts),
            ).SerializeToString()

        return _timed(reply)

    async def _time_handler(self, in_flight: int) -> float:
        """All of it as gRPC would call it, log line and metrics included."""
        interceptors = Interceptors(self._front.metrics, TokenBook.open(None))
        handler: Any = interceptors.wrap(ClassifyService(self._front).service())
        details = _Details(method="/shoal.v1.ClassifyService/Classify", invocation_metadata=())
        classify = handler.service(details).unary_unary
        return await _timed_async(lambda: classify(self._raw, _Context()), in_flight)


@dataclass(frozen=True, slots=True)
class _Details:
    method: str
    invocation_metadata: tuple[tuple[str, str], ...]


class _Context:
    """What a handler asks of gRPC."""

    def time_remaining(self) -> float:
        return 60.0

    def invocation_metadata(self) -> tuple[tuple[str, str], ...]:
        return (("user-agent", "benchmark"),)

    def set_trailing_metadata(self, metadata: object) -> None:
        """Costs nothing here."""


def _startup(folder: Path) -> Startup:
    return Startup(
        role="front",
        index=0,
        incarnation=1,
        parent_pid=os.getpid(),
        runtime_dir=str(folder),
        control_address=str(folder / "control.sock"),
        grpc_address="127.0.0.1:0",
        config=ServerConfig(),
    )


def _timed(step: Callable[[], object]) -> float:
    """Microseconds a call."""
    rounds = []
    for _ in range(NUM_ROUNDS):
        count, began_s = 0, time.process_time()
        while (ended_s := time.process_time()) < began_s + ROUND_S:
            for _ in range(16):
                step()
            count += 16
        rounds.append((ended_s - began_s) / count)
    return statistics.median(rounds) * 1e6


async def _timed_async(step: Callable[[], Awaitable[object]], in_flight: int) -> float:
    """CPU microseconds of this process a call, with so many running side by side."""
    rounds = []
    for _ in range(NUM_ROUNDS):
        count, began_s = 0, time.process_time()
        while (ended_s := time.process_time()) < began_s + ROUND_S:
            await asyncio.gather(*(step() for _ in range(in_flight)))
            count += in_flight
        rounds.append((ended_s - began_s) / count)
    return statistics.median(rounds) * 1e6
