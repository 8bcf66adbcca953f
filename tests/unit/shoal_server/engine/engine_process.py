"""A real engine process under a fake control, and a front that speaks to it over its socket."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import numpy as np
from shoal_server.config import ServerConfig
from shoal_server.errors import from_wire
from shoal_server.ipc.channel import Channel, ChannelClosed, connect, listen
from shoal_server.ipc.messages import (
    Abort,
    CallFailed,
    ClassifyCall,
    ClassifyDone,
    EngineHello,
    EngineStatistics,
    FromEngineToFront,
    GenerateCall,
    GenerateDone,
    LoadVersion,
    Message,
    ModelStatistics,
    ToControl,
    TokenLogprobs,
    TokensGenerated,
    UnloadVersion,
    VersionLoaded,
    VersionRefused,
    VersionUnloaded,
)
from shoal_server.process import Startup

PATIENCE_S = 60.0
Wanted = TypeVar("Wanted", bound=Message)


class EngineProcess:
    """Starts an engine, gives it orders, and keeps what it says."""

    def __init__(self, runtime_dir: Path, config: ServerConfig) -> None:
        self._runtime_dir = runtime_dir
        self._config = config
        self.messages: list[Message] = []
        self._news = asyncio.Condition()
        self._channel: Channel[Any] | None = None
        self.hello: EngineHello
        self.process: asyncio.subprocess.Process

    async def start(self) -> None:
        address = str(self._runtime_dir / "control.sock")
        self._server = await listen(address, ToControl, self._serve)
        startup = Startup(
            role="engine",
            index=0,
            incarnation=1,
            parent_pid=os.getpid(),
            runtime_dir=str(self._runtime_dir),
            control_address=address,
            grpc_address="",
            config=self._config,
        )
        self.process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "shoal_server.process", "shoal_server.engine.core:main"),
            stdin=asyncio.subprocess.PIPE,
        )
        self._tell(startup)
        self.hello = await self.wait_for(EngineHello)

    def _tell(self, startup: Startup) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(msgspec.json.encode(startup))
        self.process.stdin.close()

    async def stop(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()
        self._server.close()

    def disconnect(self) -> None:
        """Be a control process that has died."""
        assert self._channel is not None
        self._channel.close()

    async def load(self, path: Path) -> VersionLoaded | VersionRefused:
        """Order a version to be loaded and wait for what becomes of it."""
        since = len(self.messages)
        self.send(LoadVersion(model=path.parent.name, version=int(path.name), path=str(path)))
        return await self.wait_for(VersionLoaded, VersionRefused, since=since)

    async def unload(self, path: Path) -> VersionUnloaded:
        since = len(self.messages)
        self.send(UnloadVersion(model=path.parent.name, version=int(path.name)))
        return await self.wait_for(VersionUnloaded, since=since)

    def send(self, message: Message) -> None:
        assert self._channel is not None
        self._channel.send(message)

    async def wait_for(self, *kinds: type, since: int = 0, where: Callable[[Any], bool] = lambda _: True) -> Any:
        """The first message of these kinds, among those from number `since` on."""

        def found() -> Any:
            return next((m for m in self.messages[since:] if isinstance(m, kinds) and where(m)), None)

        async with asyncio.timeout(PATIENCE_S), self._news:
            await self._news.wait_for(lambda: found() is not None)
        return found()

    async def statistics(
        self, path: Path, where: Callable[[ModelStatistics], bool] = lambda _: True
    ) -> ModelStatistics:
        """Statistics of a version that are yet to come and satisfy `where`."""

        def of(message: EngineStatistics) -> ModelStatistics | None:
            names = (path.parent.name, int(path.name))
            return next((m for m in message.models if (m.model, m.version) == names and where(m)), None)

        return of(await self.wait_for(EngineStatistics, since=len(self.messages), where=lambda m: of(m) is not None))

    async def _serve(self, channel: Channel[Any]) -> None:
        self._channel = channel
        try:
            while True:
                received = await channel.receive()
                async with self._news:
                    self.messages += received
                    self._news.notify_all()
        except ChannelClosed:
            return


@dataclass
class Answer:
    """Everything that came for one call."""

    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    num_messages: int = 0
    end: asyncio.Future[Message] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    begun: asyncio.Event = field(default_factory=asyncio.Event)

    async def done(self) -> Any:
        """The last message; a failed call raises its error."""
        message = await asyncio.wait_for(asyncio.shield(self.end), PATIENCE_S)
        if isinstance(message, CallFailed):
            raise from_wire(message.error)
        return message


class Front:
    """One connection to an engine."""

    def __init__(self, channel: Channel[Any]) -> None:
        self._channel = channel
        self._answers: dict[int, Answer] = {}
        self._next_id = 0
        self._reader = asyncio.create_task(self._read())

    @classmethod
    async def connect(cls, address: str) -> Front:
        return cls(await connect(address, FromEngineToFront))

    async def close(self) -> None:
        self._reader.cancel()
        self._channel.close()
        await asyncio.sleep(0)

    def classify(
        self, path: Path, sequences: list[list[int]], *, type_starts: list[int] | None = None, **more: Any
    ) -> Answer:
        return self._send(
            ClassifyCall(
                request_id=self._next_id,
                model=path.parent.name,
                version=int(path.name),
                sequences=[as_bytes(ids) for ids in sequences],
                type_starts=type_starts or [-1] * len(sequences),
                **more,
            )
        )

    def generate(self, path: Path, prompt: list[int], max_new_tokens: int, **more: Any) -> Answer:
        fields = {"stop_token_ids": [], "request_id": self._next_id, **more}
        return self._send(
            GenerateCall(
                model=path.parent.name,
                version=int(path.name),
                prompt=as_bytes(prompt),
                max_new_tokens=max_new_tokens,
                **fields,
            )
        )

    def abort(self, answer: Answer) -> None:
        request_id = next(i for i, a in self._answers.items() if a is answer)
        self._channel.send(Abort(request_id=request_id))

    def _send(self, call: ClassifyCall | GenerateCall) -> Answer:
        answer = self._answers[call.request_id] = Answer()
        self._next_id += 1
        self._channel.send(call)
        return answer

    async def _read(self) -> None:
        try:
            while True:
                for message in await self._channel.receive():
                    self._take(message)
        except ChannelClosed as error:
            for answer in self._answers.values():
                if not answer.end.done():
                    answer.end.set_exception(error)
                    answer.end.exception()

    def _take(self, message: Any) -> None:
        answer = self._answers[message.request_id]
        assert not answer.end.done(), "nothing follows the end of a call"
        if isinstance(message, TokensGenerated):
            answer.token_ids += message.token_ids
            answer.logprobs += message.logprobs
            answer.num_messages += 1
            answer.begun.set()
        else:
            assert isinstance(message, ClassifyDone | GenerateDone | CallFailed)
            answer.end.set_result(message)


def as_bytes(ids: list[int]) -> bytes:
    return np.asarray(ids, dtype="<i4").tobytes()


def as_logits(done: ClassifyDone, num_sequences: int) -> np.ndarray:
    return np.frombuffer(done.logits, dtype="<f4").reshape(num_sequences, -1)
