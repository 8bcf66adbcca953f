"""Generate messages to what the front works with, and back."""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from shoal.v1 import generate_pb2

from shoal_server.config import GenerateConfig, LimitsConfig
from shoal_server.errors import InvalidRequest
from shoal_server.front.chat import ChatMessage
from shoal_server.front.completion import Completion, Ending, Piece
from shoal_server.front.convert import check_text, in_range, unknown_enum
from shoal_server.ipc.messages import Sampling, TokenLogprobs

FIELD: Final = "generation"
MAX_STOP_STRINGS: Final = 16
MAX_STOP_CHARACTERS: Final = 256
MAX_STOP_TOKENS: Final = 64
MAX_LOGPROBS: Final = 20
MAX_TOP_K: Final = 2**31 - 1
_ROLES: Final = {
    generate_pb2.CHAT_ROLE_SYSTEM: "system",
    generate_pb2.CHAT_ROLE_USER: "user",
    generate_pb2.CHAT_ROLE_ASSISTANT: "assistant",
}
_FINISH_REASONS: Final = {
    Ending.END_OF_SEQUENCE: generate_pb2.FINISH_REASON_END_OF_SEQUENCE,
    Ending.STOP_STRING: generate_pb2.FINISH_REASON_STOP_STRING,
    Ending.STOP_TOKEN: generate_pb2.FINISH_REASON_STOP_TOKEN,
    Ending.LENGTH: generate_pb2.FINISH_REASON_LENGTH,
    Ending.CONTEXT_FULL: generate_pb2.FINISH_REASON_CONTEXT_FULL,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPrompt:
    """Plain text."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatPrompt:
    """A conversation, to be rendered by the model's template."""

    messages: list[ChatMessage]


@dataclass(frozen=True, slots=True, kw_only=True)
class IdsPrompt:
    """Token ids made by the client; not yet compared with the vocabulary."""

    ids: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """A checked `GenerationSpec`; what depends on the model is checked later."""

    prompt: TextPrompt | ChatPrompt | IdsPrompt
    sampling: Sampling
    stop_strings: list[str]
    stop_token_ids: list[int]
    max_new_tokens: int | None  # None: the default, as far as the context has room
    min_new_tokens: int
    ignore_eos: bool
    num_logprobs: int | None
    num_completions: int


def generation_request(spec: generate_pb2.GenerationSpec, limits: LimitsConfig) -> GenerationRequest:
    """Raises InvalidRequest naming field, limit and value."""
    stop = spec.stop
    max_new_tokens = stop.max_new_tokens if stop.HasField("max_new_tokens") else None
    if max_new_tokens == 0:
        raise InvalidRequest.of(f"{FIELD}.stop.max_new_tokens", "is 0; at least 1 is needed")
    _check_min_new_tokens(stop.min_new_tokens, max_new_tokens)
    num_logprobs = spec.logprobs if spec.HasField("logprobs") else None
    if num_logprobs is not None:
        in_range(num_logprobs, f"{FIELD}.logprobs", low=0, high=MAX_LOGPROBS)
    num_completions = spec.num_completions or 1
    in_range(num_completions, f"{FIELD}.num_completions", low=1, high=limits.max_completions)
    return GenerationRequest(
        prompt=_prompt(spec, limits),
        sampling=_sampling(spec.sampling),
        stop_strings=_stop_strings(stop.strings),
        stop_token_ids=_stop_token_ids(stop.token_ids),
        max_new_tokens=max_new_tokens,
        min_new_tokens=stop.min_new_tokens,
        ignore_eos=stop.ignore_eos,
        num_logprobs=num_logprobs,
        num_completions=num_completions,
    )


def resolve_max_new_tokens(
    request: GenerationRequest, config: GenerateConfig, *, num_prompt_tokens: int, max_tokens: int
) -> int:
    """New tokens that one completion may have, given the prompt and the model's context.

    Raises:
        InvalidRequest: the prompt leaves no room, or less than the client asks for.
    """
    room = max_tokens - num_prompt_tokens
    if room < 1:
        raise InvalidRequest.of(
            f"{FIELD}.{_prompt_field(request)}",
            f"has {num_prompt_tokens:,} tokens; limit {max_tokens - 1:,}, so that 1 more fits the context",
        )
    wanted = request.max_new_tokens
    if wanted is None:
        allowed = min(config.default_max_new_tokens, room)
        _check_min_new_tokens(request.min_new_tokens, allowed)
        return allowed
    if wanted > room:
        raise InvalidRequest.of(
            f"{FIELD}.stop.max_new_tokens",
            f"is {wanted:,}; the prompt of {num_prompt_tokens:,} tokens leaves {room:,} of {max_tokens:,}",
        )
    return wanted


def completion_summary(index: int, completion: Completion) -> generate_pb2.CompletionSummary:
    """How a completion ended."""
    assert completion.ending is not None, "summed up after its end"
    return generate_pb2.CompletionSummary(
        index=index,
        finish_reason=_FINISH_REASONS[completion.ending],
        stop_string=completion.stop_string,
        stop_token_id=completion.stop_token_id,
        num_output_tokens=completion.num_tokens,
    )


def whole_completion(piece: Piece) -> generate_pb2.Completion:
    """A completion that is sent at once."""
    return generate_pb2.Completion(text=piece.text, token_ids=piece.token_ids, logprobs=_logprobs(piece))


def delta(index: int, piece: Piece) -> generate_pb2.GenerationDelta:
    """A piece of a completion that is streamed."""
    return generate_pb2.GenerationDelta(
        index=index, text=piece.text, token_ids=piece.token_ids, logprobs=_logprobs(piece)
    )


def _prompt(spec: generate_pb2.GenerationSpec, limits: LimitsConfig) -> TextPrompt | ChatPrompt | IdsPrompt:
    match spec.WhichOneof("prompt"):
        case "text":
            return TextPrompt(text=check_text(spec.text, f"{FIELD}.text", limits.max_characters))
        case "chat":
            return ChatPrompt(messages=_messages(spec.chat.messages, limits.max_characters))
        case "token_ids":
            ids = list(spec.token_ids.ids)
            if not ids:
                raise InvalidRequest.of(f"{FIELD}.token_ids", "is empty; at least 1 token id is needed")
            return IdsPrompt(ids=ids)
        case _:
            raise InvalidRequest.of(FIELD, "has no prompt; one of text, chat and token_ids is needed")


def _prompt_field(request: GenerationRequest) -> str:
    match request.prompt:
        case TextPrompt():
            return "text"
        case ChatPrompt():
            return "chat"
        case IdsPrompt():
            return "token_ids"


def _messages(messages: Sequence[generate_pb2.ChatMessage], max_characters: int) -> list[ChatMessage]:
    if not messages:
        raise InvalidRequest.of(f"{FIELD}.chat.messages", "there are none; at least 1 is needed")
    num_characters = sum(len(message.content) for message in messages)
    if num_characters > max_characters:
        raise InvalidRequest.of(
            f"{FIELD}.chat.messages", f"have {num_characters:,} characters; limit {max_characters:,}"
        )
    found = []
    for i, message in enumerate(messages):
        role = _ROLES.get(message.role)
        if role is None:
            raise unknown_enum(f"{FIELD}.chat.messages[{i}].role", message.role)
        found.append(ChatMessage(role=role, content=message.content))
    return found


def _sampling(params: generate_pb2.SamplingParams) -> Sampling:
    field = f"{FIELD}.sampling"
    temperature = params.temperature if params.HasField("temperature") else 1.0
    top_p = params.top_p if params.HasField("top_p") else 1.0
    penalty = params.repetition_penalty if params.HasField("repetition_penalty") else 1.0
    _check_number(temperature, f"{field}.temperature", low=0, high=10)
    _check_number(top_p, f"{field}.top_p", low=0, high=1, above_low=True)
    _check_number(params.min_p, f"{field}.min_p", low=0, high=1)
    _check_number(penalty, f"{field}.repetition_penalty", low=0, high=10, above_low=True)
    in_range(params.top_k, f"{field}.top_k", low=0, high=MAX_TOP_K)
    return Sampling(
        temperature=temperature,
        top_k=params.top_k,
        top_p=top_p,
        min_p=params.min_p,
        repetition_penalty=penalty,
        seed=params.seed if params.HasField("seed") else secrets.randbits(64),
    )


def _check_number(value: float, field: str, *, low: float, high: float, above_low: bool = False) -> None:
    if not (math.isfinite(value) and low <= value <= high and not (above_low and value == low)):
        allowed = f"above {low:g}, up to {high:g}" if above_low else f"{low:g} to {high:g}"
        raise InvalidRequest.of(field, f"is {value:g}; allowed is {allowed}")


def _check_min_new_tokens(min_new_tokens: int, max_new_tokens: int | None) -> None:
    if max_new_tokens is not None and min_new_tokens > max_new_tokens:
        raise InvalidRequest.of(
            f"{FIELD}.stop.min_new_tokens", f"is {min_new_tokens:,}; max_new_tokens is {max_new_tokens:,}"
        )


def _stop_strings(strings: Sequence[str]) -> list[str]:
    field = f"{FIELD}.stop.strings"
    if len(strings) > MAX_STOP_STRINGS:
        raise InvalidRequest.of(field, f"there are {len(strings):,}; limit {MAX_STOP_STRINGS}")
    for i, string in enumerate(strings):
        if not 1 <= len(string) <= MAX_STOP_CHARACTERS:
            raise InvalidRequest.of(
                f"{field}[{i}]", f"has {len(string):,} characters; allowed are 1 to {MAX_STOP_CHARACTERS}"
            )
    return list(strings)


def _stop_token_ids(ids: Sequence[int]) -> list[int]:
    if len(ids) > MAX_STOP_TOKENS:
        raise InvalidRequest.of(f"{FIELD}.stop.token_ids", f"there are {len(ids):,}; limit {MAX_STOP_TOKENS}")
    return list(ids)


def _logprobs(piece: Piece) -> list[generate_pb2.TokenLogprob]:
    return [
        _token_logprob(token_id, found)
        for token_id, found in zip(piece.token_ids, piece.logprobs, strict=bool(piece.logprobs))
    ]


def _token_logprob(token_id: int, found: TokenLogprobs) -> generate_pb2.TokenLogprob:
    alternatives = [
        generate_pb2.TokenAlternative(token_id=other, logprob=logprob)
        for other, logprob in zip(found.token_ids, found.logprobs, strict=True)
    ]
    return generate_pb2.TokenLogprob(token_id=token_id, logprob=found.logprob, alternatives=alternatives)
