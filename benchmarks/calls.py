"""One call to a server, timed from outside: what came back, when, and how it ended. Speaks shoal.v1 directly."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol, Self

import grpc
from shoal.v1 import classify_pb2, classify_pb2_grpc, common_pb2, generate_pb2, generate_pb2_grpc

from benchmarks.workload import ClassifyItem, GenerateItem, Item

OK = "OK"


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """A message with tokens."""

    at_s: float  # time.perf_counter()
    num_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One call. Times are `time.perf_counter()` seconds."""

    intended_s: float  # when it ought to have been sent; latency counts from here
    ended_s: float
    code: str  # gRPC status name, such as "OK" or "UNAVAILABLE"
    version: int = 0  # that answered; 0 when none did
    num_input_tokens: int = 0  # as the server counted them
    num_inputs: int = 0  # of a Classify call
    arrivals: tuple[Arrival, ...] = ()  # of a StreamGenerate call
    top_labels: frozenset[str] = frozenset()  # the best label of each input of a Classify call

    @property
    def latency_s(self) -> float:
        """From the intended time of sending to the end."""
        return self.ended_s - self.intended_s

    @property
    def num_output_tokens(self) -> int:
        """Tokens that arrived."""
        return sum(arrival.num_tokens for arrival in self.arrivals)

    @property
    def first_token_s(self) -> float | None:
        """From the intended time of sending to the first token."""
        return self.arrivals[0].at_s - self.intended_s if self.arrivals else None

    @property
    def inter_token_s(self) -> list[float]:
        """Waits between its tokens."""
        return inter_token_s(self.arrivals)


def inter_token_s(arrivals: Sequence[Arrival]) -> list[float]:
    """Waits between tokens of one stream; those that came in one message waited for nothing after its first."""
    gaps: list[float] = []
    for before, after in itertools.pairwise(arrivals):
        gaps.append(after.at_s - before.at_s)
        gaps.extend([0.0] * (after.num_tokens - 1))
    return gaps


class Caller(Protocol):
    """Whatever carries out items: what the load generator knows of a server."""

    async def call(self, item: Item, intended_s: float, arrivals: list[Arrival]) -> Outcome:
        """Carry out one item. A status is an outcome, not an exception; cancellation passes through.

        Tokens are noted in `arrivals` as they come, so that those of a cancelled call are not lost.
        """
        ...


class Classifying(Caller, Protocol):
    """A caller that also tells what was answered. Used as an async context manager."""

    async def scores(self, text: str) -> list[float]:
        """Probabilities of the labels, in their order.

        Raises:
            CallFailed: with what the server said.
        """
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class CallFailed(Exception):
    """A server did not answer with scores."""


class ShoalCaller:
    """Calls one model of one server. Use as an async context manager.

    One connection is the cheapest for both ends (front and client together take 0.57 ms a call instead of 0.64 with
    four, 32 in flight); a server of several fronts needs several, since each goes to one of them.
    """

    def __init__(self, address: str, model: str, *, timeout_s: float, num_channels: int = 1) -> None:
        self._address = address
        self._model = common_pb2.ModelRef(name=model)
        self._timeout_s = timeout_s
        self._num_channels = num_channels
        self._channels: list[grpc.aio.Channel] = []
        self._next = 0

    async def __aenter__(self) -> Self:
        # A pool of its own for each channel: connections of one pool would be shared and pinned to one front.
        options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", 64 * 2**20)]
        self._channels = [grpc.aio.insecure_channel(self._address, options=options) for _ in range(self._num_channels)]
        await asyncio.wait_for(asyncio.gather(*(channel.channel_ready() for channel in self._channels)), timeout=30)
        self._classify = [classify_pb2_grpc.ClassifyServiceStub(c) for c in self._channels]  # type: ignore[no-untyped-call]
        self._generate = [generate_pb2_grpc.GenerateServiceStub(c) for c in self._channels]  # type: ignore[no-untyped-call]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.gather(*(channel.close() for channel in self._channels))

    async def call(self, item: Item, intended_s: float, arrivals: list[Arrival]) -> Outcome:
        """As the protocol says."""
        self._next = (self._next + 1) % self._num_channels
        if isinstance(item, ClassifyItem):
            return await self._call_classify(item, intended_s, self._next)
        return await self._call_generate(item, intended_s, self._next, arrivals)

    async def scores(self, text: str) -> list[float]:
        """As the protocol says."""
        request = classify_pb2.ClassifyRequest(model=self._model, inputs=[classify_pb2.ClassifyInput(text=text)])
        try:
            reply = await self._classify[0].Classify(request, timeout=self._timeout_s)
        except grpc.aio.AioRpcError as error:
            raise CallFailed(f"{error.code().name}: {error.details()}") from None
        result = reply.results[0]
        by_label = dict(zip(result.label_ids, result.scores, strict=True))
        return [by_label[label] for label in range(len(reply.labels))]

    async def _call_classify(self, item: ClassifyItem, intended_s: float, lane: int) -> Outcome:
        request = classify_pb2.ClassifyRequest(
            model=self._model, inputs=[classify_pb2.ClassifyInput(text=text) for text in item.texts]
        )
        try:
            reply = await self._classify[lane].Classify(request, timeout=self._timeout_s)
        except grpc.aio.AioRpcError as error:
            return _failed(intended_s, error, ())
        return Outcome(
            intended_s=intended_s,
            ended_s=time.perf_counter(),
            code=OK,
            version=reply.served_by.version,
            num_input_tokens=sum(result.num_input_tokens for result in reply.results),
            num_inputs=len(reply.results),
            top_labels=frozenset(reply.labels[result.label_ids[0]] for result in reply.results),
        )

    async def _call_generate(
        self, item: GenerateItem, intended_s: float, lane: int, arrivals: list[Arrival]
    ) -> Outcome:
        spec = generate_pb2.GenerationSpec(
            text=item.prompt,
            sampling=generate_pb2.SamplingParams(temperature=0.0),
            stop=generate_pb2.StopConditions(
                max_new_tokens=item.num_new_tokens, min_new_tokens=item.num_new_tokens, ignore_eos=True
            ),
        )
        request = generate_pb2.StreamGenerateRequest(model=self._model, generation=spec)
        summary: generate_pb2.GenerationSummary | None = None
        try:
            async for reply in self._generate[lane].StreamGenerate(request, timeout=self._timeout_s):
                if reply.HasField("summary"):
                    summary = reply.summary
                elif reply.delta.token_ids:
                    arrivals.append(Arrival(at_s=time.perf_counter(), num_tokens=len(reply.delta.token_ids)))
        except grpc.aio.AioRpcError as error:
            return _failed(intended_s, error, tuple(arrivals))
        return Outcome(
            intended_s=intended_s,
            ended_s=time.perf_counter(),
            code=OK if summary is not None else "NO_SUMMARY",
            version=summary.served_by.version if summary is not None else 0,
            num_input_tokens=summary.usage.num_prompt_tokens if summary is not None else 0,
            arrivals=tuple(arrivals),
        )


def _failed(intended_s: float, error: grpc.aio.AioRpcError, arrivals: tuple[Arrival, ...]) -> Outcome:
    return Outcome(intended_s=intended_s, ended_s=time.perf_counter(), code=error.code().name, arrivals=arrivals)
