"""Loads one classifier as cheaply as gRPC for Python can, in a process of its own: `python -m benchmarks.front_load`.

Requests are serialised before anything is measured; answers are parsed, since what is not an answer must not count.
At both ends of the measured window the CPU seconds of the server's processes are read, so that what the load itself
costs, which shares the cores, is not taken for the server's. Prints one JSON object, a `Measured`.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import itertools
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import grpc
import msgspec
import psutil
import uvloop
from shoal.v1 import classify_pb2, common_pb2
from shoal_server.process import ENGINE_IO_THREAD

from benchmarks import workload

UNARY = "/shoal.v1.ClassifyService/Classify"
STREAM = "/shoal.v1.ClassifyService/StreamClassify"
NUM_REQUESTS = 64  # serialised once, then sent over and over
VOCABULARY = range(1000, 30_000)  # ids that are words
CALL_TIMEOUT_S = 60.0
WARMUP_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """How texts are sent."""

    streamed: bool  # by StreamClassify instead of Classify
    texts: int  # in a message
    ids: bool  # token ids instead of text
    in_flight: int  # messages not yet answered

    @property
    def name(self) -> str:
        """Such as "32 texts a call, token ids, 8 in flight"."""
        unit = "message of a stream" if self.streamed else "call"
        texts = "1 text" if self.texts == 1 else f"{self.texts} texts"
        return f"{texts} a {unit}, {'token ids' if self.ids else 'text'}, {self.in_flight} in flight"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cpu:
    """CPU seconds of a process."""

    all_s: float
    io_s: float  # of an engine's IO thread; 0 in other processes

    @classmethod
    def of(cls, pid: int) -> Cpu:
        """What it has used so far."""
        process = psutil.Process(pid)
        times = process.cpu_times()
        io_s = sum(
            t.user_time + t.system_time for t in process.threads() if _thread_name(pid, t.id) == ENGINE_IO_THREAD
        )
        return cls(all_s=times.user + times.system, io_s=io_s)

    def since(self, before: Cpu) -> Cpu:
        """What was used in between."""
        return Cpu(all_s=self.all_s - before.all_s, io_s=self.io_s - before.io_s)


def _thread_name(pid: int, thread_id: int) -> str:
    """Its name; empty when it has ended meanwhile."""
    try:
        return Path(f"/proc/{pid}/task/{thread_id}/comm").read_text().strip()
    except OSError:
        return ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What happened in the window."""

    seconds: float
    num_texts: int  # answered
    num_errors: int
    load: Cpu
    processes: tuple[Cpu, ...]  # in the order in which they were named


def measure(address: str, model: str, shape: Shape, *, pids: Sequence[int], seconds: float) -> Measured:
    """Load a server from a process of its own; `pids` are those whose CPU seconds are read."""
    command = [sys.executable, "-m", "benchmarks.front_load", address, model, json.dumps(dataclasses.asdict(shape))]
    command += ["--warmup", str(WARMUP_S), "--seconds", str(seconds), "--pids", *map(str, pids)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return msgspec.json.decode(done.stdout, type=Measured)


def main(arguments: list[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.front_load", description=__doc__)
    parser.add_argument("address")
    parser.add_argument("model")
    parser.add_argument("shape", help="a Shape as JSON")
    parser.add_argument("--seconds", type=float, default=4.0, help="measured (default %(default)s)")
    parser.add_argument("--warmup", type=float, default=WARMUP_S, help="seconds before that (default %(default)s)")
    parser.add_argument("--channels", type=int, default=2, help="connections (default %(default)s)")
    parser.add_argument("--pids", type=int, nargs="*", default=[], help="processes whose CPU seconds are read")
    options = parser.parse_args(arguments)
    measured = uvloop.run(_run(options, Shape(**json.loads(options.shape))))
    json.dump(dataclasses.asdict(measured), sys.stdout)
    return 0


class _Load:
    """Sends, and counts what was answered."""

    def __init__(self, model: str, shape: Shape) -> None:
        self._shape = shape
        self._model = common_pb2.ModelRef(name=model)
        self._requests = self._serialise_stream() if shape.streamed else self._serialise_calls()
        self.num_texts = 0
        self.num_errors = 0

    async def send(self, channel: grpc.aio.Channel, num_lanes: int) -> None:
        """Keep so many messages of this connection in flight until cancelled."""
        if self._shape.streamed:
            await self._stream(channel, num_lanes)
        else:
            await asyncio.gather(*(self._call(channel, lane) for lane in range(num_lanes)))

    async def _call(self, channel: grpc.aio.Channel, lane: int) -> None:
        call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(UNARY)
        for raw in itertools.cycle(self._requests[lane:] + self._requests[:lane]):
            try:
                reply = classify_pb2.ClassifyResponse.FromString(await call(raw, timeout=CALL_TIMEOUT_S))
            except grpc.aio.AioRpcError:
                self.num_errors += 1
                continue
            self.num_texts += len(reply.results)

    async def _stream(self, channel: grpc.aio.Channel, num_lanes: int) -> None:
        opened: grpc.aio.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(STREAM)
        call = opened()
        start = classify_pb2.StreamClassifyStart(model=self._model)
        await call.write(classify_pb2.StreamClassifyRequest(start=start).SerializeToString())
        room = asyncio.Semaphore(num_lanes)
        await asyncio.gather(self._write(call, room), self._read(call, room))

    async def _write(self, call: grpc.aio.StreamStreamCall[bytes, bytes], room: asyncio.Semaphore) -> None:
        for raw in itertools.cycle(self._requests):
            await room.acquire()
            await call.write(raw)

    async def _read(self, call: grpc.aio.StreamStreamCall[bytes, bytes], room: asyncio.Semaphore) -> None:
        while isinstance(raw := await call.read(), bytes):
            answers = classify_pb2.StreamClassifyResponse.FromString(raw).answers
            num_results = sum(answer.HasField("result") for answer in answers)
            self.num_texts += num_results
            self.num_errors += len(answers) - num_results
            room.release()

    def _serialise_calls(self) -> list[bytes]:
        rng = random.Random(0)
        return [
            classify_pb2.ClassifyRequest(
                model=self._model, inputs=[classify_input(rng, ids=self._shape.ids) for _ in range(self._shape.texts)]
            ).SerializeToString()
            for _ in range(NUM_REQUESTS)
        ]

    def _serialise_stream(self) -> list[bytes]:
        """Four times as many as are in flight, so that no id comes back before it was answered."""
        rng = random.Random(0)
        ids = itertools.count()
        return [
            classify_pb2.StreamClassifyRequest(
                items=[
                    classify_pb2.StreamClassifyItem(id=next(ids), input=classify_input(rng, ids=self._shape.ids))
                    for _ in range(self._shape.texts)
                ]
            ).SerializeToString()
            for _ in range(4 * self._shape.in_flight)
        ]


def classify_input(rng: random.Random, *, ids: bool) -> classify_pb2.ClassifyInput:
    """A text or token ids, of the workload's lengths."""
    length = workload.CLASSIFY_LENGTHS.draw(rng)
    if ids:
        return classify_pb2.ClassifyInput(token_ids=common_pb2.TokenIds(ids=rng.choices(VOCABULARY, k=length)))
    return classify_pb2.ClassifyInput(text=workload.text(rng, max(1, length - workload.NUM_SPECIAL_TOKENS)))


async def _run(options: argparse.Namespace, shape: Shape) -> Measured:
    load = _Load(options.model, shape)
    # A pool of its own for each channel: connections of one pool would be shared and pinned to one front.
    settings = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", 64 * 2**20)]
    channels = [grpc.aio.insecure_channel(options.address, options=settings) for _ in range(options.channels)]
    await asyncio.gather(*(channel.channel_ready() for channel in channels))
    lanes = [len(range(i, shape.in_flight, options.channels)) for i in range(options.channels)]
    sending = asyncio.gather(*(load.send(c, num) for c, num in zip(channels, lanes, strict=True) if num))
    try:
        return await _measure(load, sending, options)
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
        await asyncio.gather(*(channel.close() for channel in channels))


async def _measure(load: _Load, sending: asyncio.Future[list[None]], options: argparse.Namespace) -> Measured:
    pids: Sequence[int] = [os.getpid(), *options.pids]
    await asyncio.wait([sending], timeout=options.warmup)
    texts, errors, began_s, before = load.num_texts, load.num_errors, time.perf_counter(), [Cpu.of(p) for p in pids]
    await asyncio.wait([sending], timeout=options.seconds)
    ended_s, after = time.perf_counter(), [Cpu.of(p) for p in pids]
    if sending.done():
        sending.result()  # raises: nothing ends by itself
    used = [now.since(then) for now, then in zip(after, before, strict=True)]
    return Measured(
        seconds=ended_s - began_s,
        num_texts=load.num_texts - texts,
        num_errors=load.num_errors - errors,
        load=used[0],
        processes=tuple(used[1:]),
    )


if __name__ == "__main__":
    raise SystemExit(main())
