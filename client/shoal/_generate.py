"""Calls of GenerateService: building requests, reading answers."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Unpack

import grpc

from shoal import types
from shoal._connection import Connection, Ticket
from shoal._methods import GENERATE, STREAM_GENERATE
from shoal._refs import model_ref, priority_number, read_served_by, read_timings
from shoal._stream import AsyncStream
from shoal._words import Words, optional_seconds
from shoal.errors import FieldViolation, InvalidRequestError, ServerFaultError
from shoal.v1 import common_pb2, generate_pb2

ROLES = Words(generate_pb2.ChatRole)
FINISH_REASONS = Words(generate_pb2.FinishReason)


class GenerationStream(AsyncStream[types.GenerationDelta]):
    """Deltas as they come; `summary` is there when the last one has been read."""

    def __init__(self, connection: Connection, request: generate_pb2.StreamGenerateRequest, ticket: Ticket) -> None:
        super().__init__(self._read(connection, request, ticket))
        self.request_id = ticket.request_id
        self._summary: types.GenerationSummary | None = None

    @property
    def summary(self) -> types.GenerationSummary:
        """Finish reasons, usage and timings.

        Raises:
            RuntimeError: the stream has not been read to its end.
        """
        if self._summary is None:
            raise RuntimeError("the summary comes with the end of the stream, which has not been read")
        return self._summary

    async def _read(
        self, connection: Connection, request: generate_pb2.StreamGenerateRequest, ticket: Ticket
    ) -> AsyncGenerator[types.GenerationDelta, None]:
        async with aclosing(connection.stream(STREAM_GENERATE, request, ticket)) as responses:
            async for response in responses:
                if response.WhichOneof("event") == "delta":
                    yield _read_delta(response.delta)
                elif response.HasField("summary"):
                    self._summary = _read_summary(response.summary, ticket.request_id)
        if self._summary is None:
            raise ServerFaultError(
                "the stream ended without a summary", code=grpc.StatusCode.INTERNAL, request_id=ticket.request_id
            )


class GenerateCalls:
    """What `AsyncClient` offers of GenerateService."""

    _connection: Connection

    async def generate(
        self, model: str, prompt: str | None = None, **options: Unpack[types.GenerateOptions]
    ) -> types.GenerateResult:
        """Continue a prompt, a conversation (`messages`) or token ids, and answer once with everything.

        Never sent twice by the client itself. Default deadline: 300 s.

        Raises:
            RpcError: see `shoal.errors`.
        """
        ticket = self._connection.ticket(GENERATE, options)
        request = generate_pb2.GenerateRequest(
            model=model_ref(model, options),
            generation=build_generation(prompt, options),
            priority=priority_number(options),
        )
        response = await self._connection.unary(GENERATE, request, ticket)
        summary = _read_summary(response.summary, ticket.request_id)
        return types.GenerateResult(
            completions=tuple(map(_read_completion, response.completions, summary.completions)), summary=summary
        )

    def stream_generate(
        self, model: str, prompt: str | None = None, **options: Unpack[types.GenerateOptions]
    ) -> GenerationStream:
        """As `generate`, but deltas as they come; leaving the stream early ends the work in the server.

        Raises:
            RpcError: at once for arguments that cannot be sent, else while iterating.
        """
        request = generate_pb2.StreamGenerateRequest(
            model=model_ref(model, options),
            generation=build_generation(prompt, options),
            priority=priority_number(options),
        )
        return GenerationStream(self._connection, request, self._connection.ticket(STREAM_GENERATE, options))


def build_generation(prompt: str | None, options: types.GenerateOptions) -> generate_pb2.GenerationSpec:
    """What to generate and how, as it is sent; ranges are for the server to judge.

    Raises:
        InvalidRequestError: not exactly one kind of prompt, or a value of a type or size that cannot be sent.
    """
    messages, token_ids = options.get("messages"), options.get("token_ids")
    if sum(given is not None for given in (prompt, messages, token_ids)) != 1:
        description = "give exactly one of prompt, messages and token_ids"
        raise InvalidRequestError.of([FieldViolation(field="generation.prompt", description=description)])
    try:
        return generate_pb2.GenerationSpec(
            text=prompt,
            chat=_build_chat(messages) if messages is not None else None,
            token_ids=common_pb2.TokenIds(ids=token_ids) if token_ids is not None else None,
            sampling=_build_sampling(options),
            stop=_build_stop(options),
            logprobs=options.get("logprobs"),
            num_completions=options.get("num_completions"),
        )
    except (TypeError, ValueError) as error:
        raise InvalidRequestError.of([FieldViolation(field="generation", description=str(error))]) from None


def _build_chat(messages: Sequence[types.AnyChatMessage]) -> generate_pb2.Chat:
    chat = generate_pb2.Chat()
    for index, message in enumerate(messages):
        role, content = _role_and_content(message)
        number = ROLES.number(f"generation.chat.messages[{index}].role", role)
        chat.messages.add(role=number, content=content)
    return chat


def _role_and_content(message: types.AnyChatMessage) -> tuple[str, str]:
    if isinstance(message, types.ChatMessage):
        return message.role, message.content
    if isinstance(message, tuple):
        role, content = message
        return role, content
    return message.get("role", ""), message.get("content", "")


def _build_sampling(options: types.GenerateOptions) -> generate_pb2.SamplingParams:
    return generate_pb2.SamplingParams(
        temperature=options.get("temperature"),
        top_k=options.get("top_k"),
        top_p=options.get("top_p"),
        min_p=options.get("min_p"),
        repetition_penalty=options.get("repetition_penalty"),
        seed=options.get("seed"),
    )


def _build_stop(options: types.GenerateOptions) -> generate_pb2.StopConditions:
    strings = options.get("stop", ())
    return generate_pb2.StopConditions(
        strings=[strings] if isinstance(strings, str) else strings,
        token_ids=options.get("stop_token_ids"),
        max_new_tokens=options.get("max_new_tokens"),
        min_new_tokens=options.get("min_new_tokens"),
        ignore_eos=options.get("ignore_eos", False),
    )


def _read_logprobs(logprobs: Sequence[generate_pb2.TokenLogprob]) -> tuple[types.TokenLogprob, ...]:
    return tuple(
        types.TokenLogprob(
            token_id=entry.token_id,
            logprob=entry.logprob,
            alternatives=tuple(types.TokenAlternative(a.token_id, a.logprob) for a in entry.alternatives),
        )
        for entry in logprobs
    )


def _read_delta(delta: generate_pb2.GenerationDelta) -> types.GenerationDelta:
    return types.GenerationDelta(
        index=delta.index,
        text=delta.text,
        token_ids=tuple(delta.token_ids),
        logprobs=_read_logprobs(delta.logprobs) if delta.logprobs else (),
    )


def _read_completion(completion: generate_pb2.Completion, summary: types.CompletionSummary) -> types.Completion:
    return types.Completion(
        text=completion.text,
        token_ids=tuple(completion.token_ids),
        logprobs=_read_logprobs(completion.logprobs),
        finish_reason=summary.finish_reason,
        stop_string=summary.stop_string,
        stop_token_id=summary.stop_token_id,
        num_output_tokens=summary.num_output_tokens,
    )


def _read_summary(summary: generate_pb2.GenerationSummary, request_id: str) -> types.GenerationSummary:
    return types.GenerationSummary(
        served_by=read_served_by(summary.served_by),
        timings=read_timings(summary.timings),
        time_to_first_token_s=optional_seconds(summary, "time_to_first_token"),
        num_prompt_tokens=summary.usage.num_prompt_tokens,
        num_output_tokens=summary.usage.num_output_tokens,
        completions=tuple(
            types.CompletionSummary(
                index=entry.index,
                finish_reason=FINISH_REASONS.word(entry.finish_reason),
                stop_string=entry.stop_string or None,
                stop_token_id=entry.stop_token_id if entry.HasField("stop_token_id") else None,
                num_output_tokens=entry.num_output_tokens,
            )
            for entry in summary.completions
        ),
        request_id=request_id,
    )
