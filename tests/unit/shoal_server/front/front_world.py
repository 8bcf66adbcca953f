"""A real front in this process, between a fake control and a fake engine that speak the real messages."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import hashlib
import json
import os
import shutil
import tempfile
import time
from array import array
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import msgspec
from shoal.v1 import classify_pb2, classify_pb2_grpc, generate_pb2_grpc, model_pb2_grpc, train_pb2_grpc
from shoal_models.manifest import FileEntry, Manifest
from shoal_server.config import ServerConfig
from shoal_server.front.server import FrontServer
from shoal_server.ipc.channel import Channel, ChannelClosed, listen
from shoal_server.ipc.messages import (
    Abort,
    ClassifyCall,
    ClassifyDone,
    ControlCall,
    ControlReply,
    ControlStreamItem,
    Drain,
    EngineEndpoint,
    EngineTimes,
    FinishReason,
    FrontHello,
    GenerateCall,
    GenerateDone,
    MetricsSnapshot,
    ModelKind,
    RoutedModel,
    RoutedVersion,
    Routing,
    RoutingApplied,
    ToControl,
    ToEngine,
    TokensGenerated,
    VersionState,
)
from shoal_server.process import Startup
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

CLS, SEP, UNKNOWN = 0, 1, 2
WORDS = ["good", "bad", "fox", "dog", "the", "a"]  # ids from 3 on
MAX_TOKENS = 16


@functools.cache
def word_tokenizer() -> Tokenizer:
    """BERT-like: one token a word, [CLS] and [SEP] around texts and pairs."""
    vocabulary = {"[CLS]": CLS, "[SEP]": SEP, "[UNK]": UNKNOWN} | {word: 3 + i for i, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)],
    )
    return tokenizer


@functools.cache
def byte_tokenizer() -> Tokenizer:
    """GPT-like: one token a byte, no special tokens around texts; id of a byte is its place in the alphabet."""
    vocabulary = {character: i for i, character in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def byte_ids(text: str) -> list[int]:
    return list(byte_tokenizer().encode(text).ids)


def write_version(repository: Path, tokenizer: Tokenizer, files: dict[str, str] | None = None, **fields: Any) -> Path:
    """A version folder as far as fronts read it."""
    manifest = Manifest(
        **{
            "model": "topics",
            "version": 1,
            "kind": "classifier",
            "family": "encoder",
            "architecture": "BertForSequenceClassification",
            "head": "single_label",
            "labels": ("zero", "one", "two"),
            "max_tokens": MAX_TOKENS,
            "vocabulary_size": tokenizer.get_vocab_size(),
            "weight_dtype": "float32",
        }
        | fields
    )
    folder = repository / manifest.model / str(manifest.version)
    folder.mkdir(parents=True)
    contents = {"tokenizer.json": tokenizer.to_str()} | (files or {})
    entries = []
    for name, content in contents.items():
        (folder / name).write_text(content, encoding="utf-8")
        data = content.encode()
        entries.append(FileEntry(path=name, size_bytes=len(data), sha256=hashlib.sha256(data).hexdigest()))
    whole = dataclasses.replace(manifest, files=tuple(entries))
    (folder / "manifest.json").write_text(json.dumps(dataclasses.asdict(whole)))
    return folder


def classifier(path: Path, *, version: int = 1, state: VersionState = VersionState.LIVE, **fields: Any) -> RoutedModel:
    """The classifier `topics` with one version."""
    routed = RoutedVersion(version=version, state=state, path=str(path), engine_ids=[0])
    live = version if state is VersionState.LIVE else 0
    return RoutedModel(
        **{"name": "topics", "kind": ModelKind.CLASSIFIER, "labels": {}, "default_version": live, "versions": [routed]}
        | fields
    )


def generator(path: Path, **fields: Any) -> RoutedModel:
    """The generator `writer` with one version."""
    return classifier(path, **{"name": "writer", "kind": ModelKind.GENERATOR} | fields)


def times(started_s: float = 0.0) -> EngineTimes:
    now_s = time.monotonic()
    return EngineTimes(received_s=now_s, started_s=started_s or now_s, ended_s=now_s)


Reply = Callable[["FakeEngine", Any], None]


class FakeEngine:
    """Takes calls and answers them as told: by default Classify at once, with logits that tell what it was given."""

    def __init__(self, engine_id: int, folder: Path) -> None:
        self.endpoint = EngineEndpoint(engine_id=engine_id, address=str(folder / f"e{engine_id}.sock"), incarnation=1)
        self.received: list[ToEngine] = []
        self.on_classify: Reply = FakeEngine.answer_classify
        self.on_generate: Reply = lambda engine, call: None
        self.channel: Channel[ToEngine] | None = None
        self._server: asyncio.Server | None = None
        self._news = asyncio.Event()

    async def start(self) -> None:
        self._server = await listen(self.endpoint.address, ToEngine, self._serve)

    async def _serve(self, channel: Channel[ToEngine]) -> None:
        self.channel = channel
        try:
            while True:
                for message in await channel.receive():
                    self.received.append(message)
                    self._news.set()
                    if isinstance(message, ClassifyCall):
                        self.on_classify(self, message)
                    elif isinstance(message, GenerateCall):
                        self.on_generate(self, message)
        except ChannelClosed:
            self.channel = None

    def die(self) -> None:
        """What a SIGKILL looks like from outside."""
        assert self._server is not None
        self._server.close()
        if self.channel is not None:
            self.channel.close()

    def send(self, message: Any) -> None:
        assert self.channel is not None
        self.channel.send(message)

    def answer_classify(self, call: ClassifyCall) -> None:
        """Logits of a sequence: its length, its first content token, 0."""
        logits = array("f")
        for sequence in call.sequences:
            ids = ids_of(sequence)
            logits.extend([float(len(ids)), float(ids[min(1, len(ids) - 1)]), 0.0])
        self.send(ClassifyDone(request_id=call.request_id, logits=logits.tobytes(), times=times()))

    def say(self, call: GenerateCall, text: str, *, tokens_per_message: int = 1) -> None:
        """Send the tokens of a text."""
        ids = byte_ids(text)
        for start in range(0, len(ids), tokens_per_message):
            part = ids[start : start + tokens_per_message]
            self.send(TokensGenerated(request_id=call.request_id, token_ids=part))

    def end(
        self, call: GenerateCall, reason: FinishReason = FinishReason.LENGTH, stop_token_id: int | None = None
    ) -> None:
        now_s = time.monotonic()
        self.send(
            GenerateDone(
                request_id=call.request_id,
                reason=reason,
                stop_token_id=stop_token_id,
                times=times(),
                first_token_s=now_s,
            )
        )

    def calls(self, kind: type[Any]) -> list[Any]:
        return [message for message in self.received if isinstance(message, kind)]

    async def wait_for(self, kind: type[Any], count: int = 1) -> list[Any]:
        """Wait until `count` messages of a kind have come."""
        async with asyncio.timeout(5):
            while len(self.calls(kind)) < count:
                self._news.clear()
                await self._news.wait()
        return self.calls(kind)


def ids_of(data: bytes) -> list[int]:
    return array("i", data).tolist()


class FakeControl:
    """Takes hellos and calls; answers calls as told."""

    def __init__(self, folder: Path) -> None:
        self.address = str(folder / "c.sock")
        self.received: list[ToControl] = []
        self.answers: dict[str, Callable[[dict[str, Any]], Any]] = {}  # method -> what to answer, or raise
        self.channel: Channel[ToControl] | None = None
        self.revision = 0
        self._server: asyncio.Server | None = None
        self._news = asyncio.Event()

    async def start(self) -> None:
        self._server = await listen(self.address, ToControl, self._serve)

    async def _serve(self, channel: Channel[ToControl]) -> None:
        self.channel = channel
        try:
            while True:
                for message in await channel.receive():
                    self.received.append(message)
                    self._news.set()
                    if isinstance(message, ControlCall) and message.method in self.answers:
                        self._answer(message)
        except ChannelClosed:
            self.channel = None

    def _answer(self, call: ControlCall) -> None:
        from shoal_server.errors import ServerError

        try:
            result = self.answers[call.method](call.arguments)
        except ServerError as error:
            self.send(ControlReply(call_id=call.call_id, error=error.to_wire()))
            return
        if isinstance(result, list):
            for item in result:
                self.send(ControlStreamItem(call_id=call.call_id, item=msgspec.to_builtins(item)))
            result = {}
        self.send(ControlReply(call_id=call.call_id, result=msgspec.to_builtins(result)))

    def die(self) -> None:
        """What the end of the control process looks like from outside."""
        assert self._server is not None
        self._server.close()
        if self.channel is not None:
            self.channel.close()

    def send(self, message: Any) -> None:
        assert self.channel is not None
        self.channel.send(message)

    def calls(self, kind: type[Any]) -> list[Any]:
        return [message for message in self.received if isinstance(message, kind)]

    async def wait_for(self, kind: type[Any], when: Callable[[Any], bool] = lambda _: True) -> Any:
        """The first message of a kind that fits."""
        async with asyncio.timeout(5):
            while True:
                for message in self.calls(kind):
                    if when(message):
                        return message
                self._news.clear()
                await self._news.wait()


class World:
    """Everything that a test needs to hand."""

    def __init__(self, config: ServerConfig, folder: Path) -> None:
        self.config = config
        self.folder = folder
        self.repository = folder / "models"
        self.control = FakeControl(folder)
        self.engine = FakeEngine(0, folder)
        self.front: asyncio.Task[None] | None = None
        self.port = 0
        self._channels: list[grpc.aio.Channel] = []

    async def start(self) -> None:
        await self.control.start()
        await self.engine.start()
        startup = Startup(
            role="front",
            index=0,
            incarnation=1,
            parent_pid=os.getpid(),
            runtime_dir=str(self.folder),
            control_address=self.control.address,
            grpc_address="127.0.0.1:0",
            config=self.config,
        )
        self.server = FrontServer(startup)
        self.front = asyncio.create_task(self.server.run())
        waiting = asyncio.create_task(self.control.wait_for(FrontHello))
        await asyncio.wait({self.front, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if self.front.done():
            waiting.cancel()
            self.front.result()
        self.port = (await waiting).port

    async def route(
        self, *routed: RoutedModel, engines: list[EngineEndpoint] | None = None, serving: bool = True
    ) -> RoutingApplied:
        """Send a table and wait until it is used."""
        self.control.revision += 1
        revision = self.control.revision
        table = [self.engine.endpoint] if engines is None else engines
        self.control.send(Routing(revision=revision, engines=table, models=list(routed), serving=serving))
        applied: RoutingApplied = await self.control.wait_for(RoutingApplied, lambda m: m.revision == revision)
        return applied

    async def metrics(self) -> dict[tuple[str, ...], Any]:
        """The newest snapshot after the next one: (name, *labels) -> sample."""
        seen = len(self.control.calls(MetricsSnapshot))
        async with asyncio.timeout(5):
            while len(self.control.calls(MetricsSnapshot)) < seen + 2:  # noqa: ASYNC110 - another process would be asked so
                await asyncio.sleep(0.05)
        families = self.control.calls(MetricsSnapshot)[-1].families
        return {(family.name, *sample.labels): sample for family in families for sample in family.samples}

    def channel(self, *options: tuple[str, Any]) -> grpc.aio.Channel:
        opened = grpc.aio.insecure_channel(f"127.0.0.1:{self.port}", options=[("grpc.enable_retries", 0), *options])
        self._channels.append(opened)
        return opened

    @property
    def classify(self) -> classify_pb2_grpc.ClassifyServiceStub:
        return classify_pb2_grpc.ClassifyServiceStub(self.channel())

    @property
    def generate(self) -> generate_pb2_grpc.GenerateServiceStub:
        return generate_pb2_grpc.GenerateServiceStub(self.channel())

    @property
    def models(self) -> model_pb2_grpc.ModelServiceStub:
        return model_pb2_grpc.ModelServiceStub(self.channel())

    @property
    def train(self) -> train_pb2_grpc.TrainServiceStub:
        return train_pb2_grpc.TrainServiceStub(self.channel())

    async def stop(self) -> None:
        for channel in self._channels:
            await channel.close()
        assert self.front is not None
        if not self.front.done() and self.control.channel is not None:
            self.control.send(Drain(lame_duck_s=0, drain_s=2))
        async with asyncio.timeout(5):
            await asyncio.wait({self.front})
        self.engine.die()
        self.control.die()
        await asyncio.sleep(0.01)  # the transports close
        shutil.rmtree(self.folder)


@asynccontextmanager
async def world(config: ServerConfig | None = None) -> AsyncIterator[World]:
    """A front that listens, with an engine and a control beside it."""
    made = World(config or ServerConfig(), Path(tempfile.mkdtemp(prefix="shoal")))
    await made.start()
    try:
        yield made
    finally:
        await made.stop()


@asynccontextmanager
async def classify_world(config: ServerConfig | None = None) -> AsyncIterator[World]:
    """A world that serves topics@1."""
    async with world(config) as made:
        path = write_version(made.repository, word_tokenizer())
        await made.route(classifier(path))
        yield made


CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"


@asynccontextmanager
async def generate_world(config: ServerConfig | None = None, **fields: Any) -> AsyncIterator[World]:
    """A world that serves writer@1."""
    async with world(config) as made:
        files = {"chat_template.jinja": CHAT}
        path = write_version(
            made.repository,
            byte_tokenizer(),
            files,
            **{"model": "writer", "kind": "generator", "family": "decoder", "head": "", "labels": (), "max_tokens": 64}
            | fields,
        )
        await made.route(generator(path))
        yield made


def text_request(*texts: str, name: str = "topics", **fields: Any) -> classify_pb2.ClassifyRequest:
    inputs = [classify_pb2.ClassifyInput(text=text) for text in texts]
    return classify_pb2.ClassifyRequest(model={"name": name}, inputs=inputs, **fields)


async def rest(stream: Any) -> list[Any]:
    """What is left to read of a stream that was read from before."""
    messages = []
    while (message := await stream.read()) is not grpc.aio.EOF:
        messages.append(message)
    return messages


__all__ = ["Abort", "World", "classify_world", "generate_world", "world"]
