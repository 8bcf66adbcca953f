"""The blocking client: a facade over `AsyncClient`, which runs in an event-loop thread. Safe to share between threads.

Does not survive a fork: make a new client in the child.
"""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import CancelledError, Future
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar, Unpack

from shoal import types
from shoal._loop_thread import BlockingFeed, LoopThread, acquire_loop, release_loop, wait_for
from shoal._stream import AsyncStream
from shoal.aio import AsyncClient, GenerationStream
from shoal.channel import ClientSettings
from shoal.types import TrainingSpec

ItemT = TypeVar("ItemT")


class BlockingStream(Iterator[ItemT], Generic[ItemT]):
    """Answers as they come. Leaving a `for` over it, leaving it as a context, and `close()` all cancel the call."""

    def __init__(self, source: AsyncStream[ItemT], loop: LoopThread) -> None:
        self._source = source
        self._loop = loop
        self._awaited: Future[list[ItemT]] | None = None

    def __iter__(self) -> Generator[ItemT, None, None]:
        try:
            while True:
                try:
                    item = next(self)
                except StopIteration:
                    return
                yield item
        finally:
            self.close()

    def __next__(self) -> ItemT:
        self._awaited = self._loop.submit(self._take())
        try:
            for item in wait_for(self._awaited):
                return item
        except CancelledError:  # by `close()` in another thread
            raise StopIteration from None
        finally:
            self._awaited = None
        raise StopIteration

    def close(self) -> None:
        """End the call if it runs; a thread that waits for an answer sees the end. May be called twice."""
        awaited = self._awaited
        if awaited is not None:
            awaited.cancel()
        self._loop.finish(self._source.aclose)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def _take(self) -> list[ItemT]:
        try:
            return [await anext(self._source)]
        except StopAsyncIteration:
            return []


class BlockingGenerationStream(BlockingStream[types.GenerationDelta]):
    """Deltas as they come; `summary` is there when the last one has been read."""

    def __init__(self, source: GenerationStream, loop: LoopThread) -> None:
        super().__init__(source, loop)
        self._generation = source
        self.request_id = source.request_id

    @property
    def summary(self) -> types.GenerationSummary:
        """Finish reasons, usage and timings.

        Raises:
            RuntimeError: the stream has not been read to its end.
        """
        return self._generation.summary


class Client:
    """A client of one server that blocks. Calls are those of `AsyncClient`, which documents them.

    Args:
        address: host:port; else SHOAL_ADDRESS, else 127.0.0.1:50051.
        settings: see `ClientSettings`.

    Raises:
        ConfigurationError: address, token or TLS files are unusable.

    Example:
        with Client() as client:
            print(client.classify("topics", "Rates rise again")[0].label)
    """

    def __init__(self, address: str | None = None, **settings: Unpack[ClientSettings]) -> None:
        self._aio = AsyncClient(address, **settings)
        self._loop = acquire_loop()
        self._closed = False

    @property
    def address(self) -> str:
        """The server's address."""
        return self._aio.address

    def close(self) -> None:
        """End what is running and close the connections. May be called twice."""
        if not self._closed:
            self._closed = True
            self._loop.run(self._aio.close())
            release_loop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self.address!r})"

    # --- classify ---------------------------------------------------------------------------------------------------

    def classify(
        self,
        model: str,
        inputs: types.ClassifyInput | Iterable[types.ClassifyInput],
        **options: Unpack[types.ClassifyOptions],
    ) -> types.ClassifyResult:
        """See `AsyncClient.classify`."""
        return self._loop.run(self._aio.classify(model, inputs, **options))

    def classify_stream(
        self,
        model: str,
        inputs: Iterable[types.ClassifyInput],
        *,
        ordered: bool = True,
        max_unanswered: int = 128,
        item_timeout: float | None = 60.0,
        **options: Unpack[types.ClassifyOptions],
    ) -> BlockingStream[types.StreamedClassification]:
        """See `AsyncClient.classify_stream`. `inputs` is read by another thread while answers come."""
        source = self._aio.classify_stream(
            model,
            _Fed(inputs),
            ordered=ordered,
            max_unanswered=max_unanswered,
            item_timeout=item_timeout,
            **options,
        )
        return BlockingStream(source, self._loop)

    # --- generate ---------------------------------------------------------------------------------------------------

    def generate(
        self, model: str, prompt: str | None = None, **options: Unpack[types.GenerateOptions]
    ) -> types.GenerateResult:
        """See `AsyncClient.generate`."""
        return self._loop.run(self._aio.generate(model, prompt, **options))

    def stream_generate(
        self, model: str, prompt: str | None = None, **options: Unpack[types.GenerateOptions]
    ) -> BlockingGenerationStream:
        """See `AsyncClient.stream_generate`."""
        return BlockingGenerationStream(self._aio.stream_generate(model, prompt, **options), self._loop)

    # --- models -----------------------------------------------------------------------------------------------------

    def list_models(self, **options: Unpack[types.CallOptions]) -> list[types.Model]:
        """See `AsyncClient.list_models`."""
        return self._loop.run(self._aio.list_models(**options))

    def get_model(self, name: str, **options: Unpack[types.CallOptions]) -> types.Model:
        """See `AsyncClient.get_model`."""
        return self._loop.run(self._aio.get_model(name, **options))

    def load_model(
        self, name: str, version: int | None = None, **options: Unpack[types.CallOptions]
    ) -> types.ModelVersion:
        """See `AsyncClient.load_model`."""
        return self._loop.run(self._aio.load_model(name, version, **options))

    def unload_model(
        self, name: str, version: int | None = None, **options: Unpack[types.CallOptions]
    ) -> tuple[int, ...]:
        """See `AsyncClient.unload_model`."""
        return self._loop.run(self._aio.unload_model(name, version, **options))

    def delete_model_version(self, name: str, version: int, **options: Unpack[types.CallOptions]) -> None:
        """See `AsyncClient.delete_model_version`."""
        self._loop.run(self._aio.delete_model_version(name, version, **options))

    def set_model_label(
        self,
        name: str,
        label: str,
        version: int | None,
        *,
        expected_version: int | None = None,
        **options: Unpack[types.CallOptions],
    ) -> types.Model:
        """See `AsyncClient.set_model_label`."""
        call = self._aio.set_model_label(name, label, version, expected_version=expected_version, **options)
        return self._loop.run(call)

    # --- training ---------------------------------------------------------------------------------------------------

    def upload_dataset(
        self,
        path: str | Path,
        *,
        format: types.DataFormat | None = None,  # noqa: A002 - the word of the protocol
        on_progress: Callable[[int, int], None] | None = None,
        **options: Unpack[types.CallOptions],
    ) -> types.Dataset:
        """See `AsyncClient.upload_dataset`. `on_progress` is called in another thread."""
        return self._loop.run(self._aio.upload_dataset(path, format=format, on_progress=on_progress, **options))

    def get_dataset(self, name: str, **options: Unpack[types.CallOptions]) -> types.Dataset:
        """See `AsyncClient.get_dataset`."""
        return self._loop.run(self._aio.get_dataset(name, **options))

    def delete_dataset(self, name: str, **options: Unpack[types.CallOptions]) -> None:
        """See `AsyncClient.delete_dataset`."""
        self._loop.run(self._aio.delete_dataset(name, **options))

    def create_training_job(
        self,
        spec: TrainingSpec | Mapping[str, Any],
        *,
        validate_only: bool = False,
        **options: Unpack[types.CallOptions],
    ) -> types.TrainingJob:
        """See `AsyncClient.create_training_job`."""
        return self._loop.run(self._aio.create_training_job(spec, validate_only=validate_only, **options))

    def get_training_job(self, job_id: str, **options: Unpack[types.CallOptions]) -> types.TrainingJob:
        """See `AsyncClient.get_training_job`."""
        return self._loop.run(self._aio.get_training_job(job_id, **options))

    def list_training_jobs(
        self, *, limit: int | None = None, **options: Unpack[types.CallOptions]
    ) -> list[types.TrainingJob]:
        """See `AsyncClient.list_training_jobs`."""
        return self._loop.run(self._aio.list_training_jobs(limit=limit, **options))

    def cancel_training_job(self, job_id: str, **options: Unpack[types.CallOptions]) -> types.TrainingJob:
        """See `AsyncClient.cancel_training_job`."""
        return self._loop.run(self._aio.cancel_training_job(job_id, **options))

    def delete_training_job(self, job_id: str, **options: Unpack[types.CallOptions]) -> None:
        """See `AsyncClient.delete_training_job`."""
        self._loop.run(self._aio.delete_training_job(job_id, **options))

    def watch_training_job(
        self,
        job_id: str,
        *,
        from_sequence: int = 1,
        resume_s: float = 120.0,
        **options: Unpack[types.CallOptions],
    ) -> BlockingStream[types.TrainingEvent]:
        """See `AsyncClient.watch_training_job`."""
        source = self._aio.watch_training_job(job_id, from_sequence=from_sequence, resume_s=resume_s, **options)
        return BlockingStream(source, self._loop)


class _Fed(AsyncIterable[ItemT]):
    """A blocking iterable as an asynchronous one, whose thread starts when it is first asked."""

    def __init__(self, items: Iterable[ItemT]) -> None:
        self._items = items

    def __aiter__(self) -> AsyncIterator[ItemT]:
        return BlockingFeed(self._items).__aiter__()
