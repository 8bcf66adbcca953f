"""Classify messages to what the front works with, and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from shoal.v1 import classify_pb2

from shoal_server.config import LimitsConfig
from shoal_server.errors import InvalidRequest
from shoal_server.front.convert import check_text, check_token_ids, unknown_enum
from shoal_server.front.fit import Overflow
from shoal_server.front.scores import Scores

_OVERFLOWS: Final = {
    classify_pb2.OVERFLOW_UNSPECIFIED: Overflow.REFUSE,
    classify_pb2.OVERFLOW_REFUSE: Overflow.REFUSE,
    classify_pb2.OVERFLOW_TRUNCATE_END: Overflow.TRUNCATE_END,
    classify_pb2.OVERFLOW_TRUNCATE_START: Overflow.TRUNCATE_START,
    classify_pb2.OVERFLOW_WINDOWS: Overflow.WINDOWS,
}
_AS_LOGITS: Final = {
    classify_pb2.SCORE_KIND_UNSPECIFIED: False,
    classify_pb2.SCORE_KIND_PROBABILITIES: False,
    classify_pb2.SCORE_KIND_LOGITS: True,
}
_HEADS: Final = {
    "single_label": classify_pb2.HEAD_KIND_SINGLE_LABEL,
    "multi_label": classify_pb2.HEAD_KIND_MULTI_LABEL,
    "regression": classify_pb2.HEAD_KIND_REGRESSION,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassifySettings:
    """How inputs are read and what is reported of them."""

    top_k: int
    as_logits: bool
    overflow: Overflow


@dataclass(frozen=True, slots=True, kw_only=True)
class TextInput:
    """One text."""

    field: str  # where it stands in the request
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PairInput:
    """Two texts read together."""

    field: str
    first: str
    second: str


@dataclass(frozen=True, slots=True, kw_only=True)
class IdsInput:
    """A sequence that the client has tokenized."""

    field: str
    ids: list[int]


Input = TextInput | PairInput | IdsInput


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadCounts:
    """What became of one input on its way to the model."""

    num_input_tokens: int
    num_dropped: int
    num_windows: int


def settings(options: classify_pb2.ClassifyOptions, field: str = "options") -> ClassifySettings:
    """Raises InvalidRequest for values that mean nothing."""
    overflow = _OVERFLOWS.get(options.overflow)
    if overflow is None:
        raise unknown_enum(f"{field}.overflow", options.overflow)
    as_logits = _AS_LOGITS.get(options.scores)
    if as_logits is None:
        raise unknown_enum(f"{field}.scores", options.scores)
    return ClassifySettings(top_k=options.top_k, as_logits=as_logits, overflow=overflow)


def inputs(messages: Sequence[classify_pb2.ClassifyInput], limits: LimitsConfig) -> list[Input]:
    """All inputs of a call.

    Raises:
        InvalidRequest: there are none or too many, or one is wrong, named by its index.
    """
    if not messages:
        raise InvalidRequest.of("inputs", "there are none; at least 1 is needed")
    if len(messages) > limits.max_inputs:
        raise InvalidRequest.of("inputs", f"there are {len(messages):,}; limit {limits.max_inputs:,}")
    return [one_input(message, f"inputs[{i}]", limits) for i, message in enumerate(messages)]


def one_input(message: classify_pb2.ClassifyInput, field: str, limits: LimitsConfig) -> Input:
    """One input. Raises InvalidRequest when it is empty or above the limit of characters."""
    match message.WhichOneof("content"):
        case "text":
            name = f"{field}.text"
            return TextInput(field=name, text=check_text(message.text, name, limits.max_characters))
        case "pair":
            first = check_text(message.pair.first, f"{field}.pair.first", limits.max_characters)
            second = check_text(message.pair.second, f"{field}.pair.second", limits.max_characters)
            return PairInput(field=f"{field}.pair", first=first, second=second)
        case "token_ids":
            ids = list(message.token_ids.ids)
            if not ids:
                raise InvalidRequest.of(f"{field}.token_ids", "is empty; at least 1 token id is needed")
            return IdsInput(field=f"{field}.token_ids", ids=ids)
        case _:
            raise InvalidRequest.of(field, "has no content; one of text, pair and token_ids is needed")


def check_ids(item: IdsInput, vocabulary_size: int) -> None:
    """Raises InvalidRequest for an id beyond the vocabulary."""
    check_token_ids(item.ids, item.field, vocabulary_size)


def classifications(scores: Scores, counts: Sequence[ReadCounts]) -> list[classify_pb2.Classification]:
    """What is said of each input."""
    return [
        classify_pb2.Classification(
            label_ids=label_ids,
            scores=values,
            num_input_tokens=count.num_input_tokens,
            num_dropped_tokens=count.num_dropped,
            num_windows=count.num_windows,
        )
        for label_ids, values, count in zip(scores.label_ids, scores.values, counts, strict=True)
    ]


def head_kind(head: str) -> classify_pb2.HeadKind:
    """A manifest's head as the protocol calls it."""
    return _HEADS[head]
