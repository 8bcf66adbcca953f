"""One generation: prompt to tokens, n completions at an engine, their pieces as they come, the summary at the end.

Used as an async context manager: on the way out, however it came to that, everything still open is aborted and the
permit is given back. Knows no gRPC calls.
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import TracebackType

import msgspec
from shoal.v1 import generate_pb2

from shoal_server.errors import DeadlinePassed, InvalidRequest
from shoal_server.front import convert, convert_generate
from shoal_server.front.admission import Permit, Work
from shoal_server.front.chat import FIELD as CHAT_FIELD
from shoal_server.front.completion import Completion, Ending, Piece
from shoal_server.front.convert_generate import ChatPrompt, GenerationRequest, IdsPrompt, TextPrompt
from shoal_server.front.front import Front
from shoal_server.front.generation_stream import CompletionEvent, GenerationStream
from shoal_server.front.routing import ServedVersion
from shoal_server.front.rpc import Rpc
from shoal_server.ipc.messages import GenerateCall, Priority, TokensGenerated

_SEEDS = 2**64


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionPiece:
    """More of one completion."""

    index: int
    piece: Piece


class Generation:
    """The state of one Generate or StreamGenerate call."""

    def __init__(
        self, rpc: Rpc, front: Front, served: ServedVersion, request: GenerationRequest, priority: Priority
    ) -> None:
        self._rpc = rpc
        self._front = front
        self._served = served
        self._request = request
        self._priority = priority
        self._permit: Permit | None = None
        self._stream: GenerationStream | None = None
        self._completions = [
            Completion(served.text.tokenizer, request.stop_strings, request.min_new_tokens)
            for _ in range(request.num_completions)
        ]
        self._num_prompt_tokens = 0
        self._max_new_tokens = 0
        self._sent_s = 0.0
        self._first_token_s: float | None = None
        self._last_token_s: list[float] = [0.0] * request.num_completions

    async def __aenter__(self) -> Generation:
        """Admit, tokenize, send to the engine.

        Raises:
            InvalidRequest, QueueFull, EngineLost, DeadlinePassed: nothing stays open.
        """
        try:
            await self._begin()
        except BaseException:
            self._close()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Abort what is open and give the permit back."""
        self._close()

    async def next(self) -> list[CompletionPiece] | None:
        """What has come since the last time, by completion; a slow reader gets larger pieces. None: all have ended.

        Raises:
            ServerError: the request has failed as a whole.
        """
        assert self._stream is not None, "entered"
        if all(completion.ending is not None for completion in self._completions):
            return None
        found: dict[int, Piece] = {}
        for event in await self._stream.next():
            if self._completions[event.index].ending is None:  # else a stop string has ended it: no more is wanted
                found.setdefault(event.index, Piece()).add(self._take(event))
        return [CompletionPiece(index=index, piece=piece) for index, piece in found.items()]

    def _take(self, event: CompletionEvent) -> Piece:
        assert self._stream is not None, "entered"
        completion = self._completions[event.index]
        if isinstance(event.message, TokensGenerated):
            piece = completion.take_tokens(event.message)
            self._note_tokens(event.index, len(piece.token_ids))
            if completion.ending is not None:
                self._stream.stop(event.index)
            return piece
        piece = completion.finish(event.message)
        self._check_context_full(completion)
        return piece

    def summary(self) -> generate_pb2.GenerationSummary:
        """The end of every generation; to be asked for when `next` has said None."""
        self._note_times()
        num_output_tokens = sum(completion.num_tokens for completion in self._completions)
        self._served.metrics.queue_s.observe(self._rpc.queue_s)
        summary = generate_pb2.GenerationSummary(
            served_by=convert.served_by(self._served.key),
            timings=convert.timings(self._rpc),
            usage=generate_pb2.Usage(num_prompt_tokens=self._num_prompt_tokens, num_output_tokens=num_output_tokens),
            completions=[convert_generate.completion_summary(i, c) for i, c in enumerate(self._completions)],
        )
        if self._first_token_s is not None:
            summary.time_to_first_token.CopyFrom(convert.duration(self._first_token_s - self._rpc.started_s))
        return summary

    async def _begin(self) -> None:
        text, request = self._served.text, self._request
        began_s = time.monotonic()
        self._permit = self._front.engines.admit(Work.GENERATE, self._served.engine_ids, request.num_completions)
        self._permit.resize(request.num_completions)
        prompt = await self._tokenize()
        self._num_prompt_tokens = len(prompt)
        self._max_new_tokens = convert_generate.resolve_max_new_tokens(
            request,
            self._front.config.generate,
            num_prompt_tokens=len(prompt),
            max_tokens=text.manifest.max_tokens,
        )
        for i, token_id in enumerate(request.stop_token_ids):
            if token_id >= text.manifest.vocabulary_size:
                raise InvalidRequest.of(
                    f"generation.stop.token_ids[{i}]",
                    f"is {token_id:,}; the model's vocabulary ends at {text.manifest.vocabulary_size - 1:,}",
                )
        self._sent_s = time.monotonic()
        self._rpc.tokenize_s = self._sent_s - began_s
        if self._rpc.expired():
            raise DeadlinePassed("the deadline passed while the prompt was tokenized")
        metrics = self._served.metrics
        metrics.tokenize_s.observe(self._rpc.tokenize_s)
        metrics.input_tokens.inc(len(prompt))
        self._stream = self._front.engines.generate(self._permit, self._calls(array("i", prompt).tobytes()))

    async def _tokenize(self) -> list[int]:
        text = self._served.text
        match self._request.prompt:
            case IdsPrompt(ids=ids):
                return convert.check_token_ids(ids, "generation.token_ids", text.manifest.vocabulary_size)
            case ChatPrompt(messages=messages):
                if text.chat is None:
                    raise InvalidRequest.of(CHAT_FIELD, f"{self._served.key} carries no chat template")
                limits = self._front.config.limits
                rendered = await text.chat.render(
                    messages, time_limit_s=limits.template_time_limit_s, max_characters=2 * limits.max_characters
                )
                return await self._encode(rendered, CHAT_FIELD, add_special_tokens=False)  # the template wrote them
            case TextPrompt(text=prompt):
                return await self._encode(prompt, "generation.text", add_special_tokens=True)

    async def _encode(self, prompt: str, field: str, *, add_special_tokens: bool) -> list[int]:
        (encoding,) = await self._front.tokenizers.encode(
            self._served.text.tokenizer, [prompt], num_characters=len(prompt), add_special_tokens=add_special_tokens
        )
        ids: list[int] = encoding.ids
        if not ids:
            raise InvalidRequest.of(field, "holds no tokens; at least 1 is needed")
        return ids

    def _calls(self, prompt: bytes) -> list[Callable[[int], GenerateCall]]:
        return [partial(self._call, index=i, prompt=prompt) for i in range(len(self._completions))]

    def _call(self, request_id: int, *, index: int, prompt: bytes) -> GenerateCall:
        request = self._request
        seed = (request.sampling.seed + index) % _SEEDS
        return GenerateCall(
            request_id=request_id,
            model=self._served.key.model,
            version=self._served.key.version,
            prompt=prompt,
            sampling=msgspec.structs.replace(request.sampling, seed=seed),
            stop_token_ids=request.stop_token_ids,
            max_new_tokens=self._max_new_tokens,
            min_new_tokens=request.min_new_tokens,
            ignore_eos=request.ignore_eos,
            num_logprobs=request.num_logprobs,
            priority=self._priority,
            deadline_s=self._rpc.deadline_s,
        )

    def _note_tokens(self, index: int, num_tokens: int) -> None:
        """Observe the time to the first token of all, and the time between tokens of one completion."""
        now_s = time.monotonic()
        metrics = self._served.metrics
        metrics.output_tokens.inc(num_tokens)
        if self._first_token_s is None:
            self._first_token_s = now_s
            metrics.ttft_s.observe(now_s - self._rpc.started_s)
        if self._last_token_s[index]:
            gap_s = (now_s - self._last_token_s[index]) / max(1, num_tokens)
            for _ in range(num_tokens):
                metrics.inter_token_s.observe(gap_s)
        self._last_token_s[index] = now_s

    def _note_times(self) -> None:
        """Queue and run times: the engine's where it told them, else as seen from here."""
        now_s = time.monotonic()
        started_s = [c.times.started_s if c.times else self._first_token_s or now_s for c in self._completions]
        ended_s = [c.times.ended_s if c.times else self._last_token_s[i] for i, c in enumerate(self._completions)]
        self._rpc.queue_s = max(0.0, max(started_s) - self._sent_s)
        self._rpc.run_s = max(0.0, max(ended_s) - min(started_s))

    def _check_context_full(self, completion: Completion) -> None:
        """Where the context cut the default short, it was the context that ended the completion."""
        limit = self._served.text.manifest.max_tokens
        is_full = self._num_prompt_tokens + completion.num_tokens >= limit
        if completion.ending is Ending.LENGTH and self._request.max_new_tokens is None and is_full:
            completion.ending = Ending.CONTEXT_FULL

    def _close(self) -> None:
        if self._stream is not None:
            self._stream.close()
        if self._permit is not None:
            self._permit.release()
