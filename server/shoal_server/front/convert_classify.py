"""Classify messages to what the front works with, and back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from typing import Any, Final, TypeVar

import msgspec
from shoal.v1 import classify_pb2
from shoal_models.manifest import Manifest

from shoal_server.config import LimitsConfig
from shoal_server.errors import InvalidRequest
from shoal_server.front.convert import check_text, check_token_ids, unknown_enum
from shoal_server.front.fit import Overflow
from shoal_server.front.scores import Pooling, Scores
from shoal_server.front.spans import IGNORED_BY_DEFAULT, Aggregation, Spans

_Word = TypeVar("_Word")
_OVERFLOWS: Final = {
    classify_pb2.OVERFLOW_UNSPECIFIED: Overflow.REFUSE,
    classify_pb2.OVERFLOW_REFUSE: Overflow.REFUSE,
    classify_pb2.OVERFLOW_TRUNCATE_END: Overflow.TRUNCATE_END,
    classify_pb2.OVERFLOW_TRUNCATE_START: Overflow.TRUNCATE_START,
    classify_pb2.OVERFLOW_WINDOWS: Overflow.WINDOWS,
}
_POOLINGS: Final = {
    classify_pb2.WINDOW_POOLING_UNSPECIFIED: Pooling.MEAN,
    classify_pb2.WINDOW_POOLING_MEAN: Pooling.MEAN,
    classify_pb2.WINDOW_POOLING_MAX: Pooling.MAX,
}
_AGGREGATIONS: Final = {
    classify_pb2.AGGREGATION_UNSPECIFIED: Aggregation.NONE,
    classify_pb2.AGGREGATION_NONE: Aggregation.NONE,
    classify_pb2.AGGREGATION_SIMPLE: Aggregation.SIMPLE,
    classify_pb2.AGGREGATION_FIRST: Aggregation.FIRST,
    classify_pb2.AGGREGATION_AVERAGE: Aggregation.AVERAGE,
    classify_pb2.AGGREGATION_MAX: Aggregation.MAX,
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
    "token": classify_pb2.HEAD_KIND_TOKEN,
}


class ClassifySettings(msgspec.Struct, frozen=True, kw_only=True):
    """How inputs are read and what is reported of them."""

    top_k: int
    as_logits: bool
    overflow: Overflow
    pooling: Pooling
    aggregation: Aggregation
    ignore_labels: frozenset[str]
    token_option: str = ""  # field of an option that only token heads take; empty: there is none
    score_option: str = ""  # field of one that token heads do not take


class TextInput(msgspec.Struct, frozen=True, kw_only=True):
    """One text."""

    field: str  # where it stands in the request
    text: str


class PairInput(msgspec.Struct, frozen=True, kw_only=True):
    """Two texts read together."""

    field: str
    first: str
    second: str


class IdsInput(msgspec.Struct, frozen=True, kw_only=True):
    """A sequence that the client has tokenized."""

    field: str
    ids: list[int]


Input = TextInput | PairInput | IdsInput


class ReadCounts(msgspec.Struct, frozen=True, kw_only=True):
    """What became of one input on its way to the model."""

    num_input_tokens: int
    num_dropped: int
    num_windows: int


def settings(options: classify_pb2.ClassifyOptions, field: str = "options") -> ClassifySettings:
    """Raises InvalidRequest for values that mean nothing."""
    overflow = _known(_OVERFLOWS, options.overflow, f"{field}.overflow")
    as_logits = _known(_AS_LOGITS, options.scores, f"{field}.scores")
    pooling = _known(_POOLINGS, options.pooling, f"{field}.pooling")
    if options.pooling and overflow is not Overflow.WINDOWS:
        raise InvalidRequest.of(f"{field}.pooling", "is of no use without overflow OVERFLOW_WINDOWS")
    names = options.ignore_labels.names if options.HasField("ignore_labels") else IGNORED_BY_DEFAULT
    return ClassifySettings(
        top_k=options.top_k,
        as_logits=as_logits,
        overflow=overflow,
        pooling=pooling,
        aggregation=_known(_AGGREGATIONS, options.aggregation, f"{field}.aggregation"),
        ignore_labels=frozenset(names),
        token_option=_token_option(options, field),
        score_option=_score_option(options, field, as_logits),
    )


def _known(words: Mapping[Any, _Word], number: int, field: str) -> _Word:
    if number not in words:
        raise unknown_enum(field, number)
    return words[number]


def _token_option(options: classify_pb2.ClassifyOptions, field: str) -> str:
    if options.aggregation:
        return f"{field}.aggregation"
    return f"{field}.ignore_labels" if options.HasField("ignore_labels") else ""


def _score_option(options: classify_pb2.ClassifyOptions, field: str, as_logits: bool) -> str:
    if options.top_k:
        return f"{field}.top_k"
    if as_logits:
        return f"{field}.scores"
    return f"{field}.pooling" if options.pooling else ""


def inputs(messages: Sequence[classify_pb2.ClassifyInput], limits: LimitsConfig) -> list[Input]:
    """All inputs of a call.

    Raises:
        InvalidRequest: there are none or too many, or one is wrong, named by its index.
    """
    check_number(messages, "inputs", limits.max_inputs)
    return [one_input(message, f"inputs[{i}]", limits) for i, message in enumerate(messages)]


def check_number(messages: Sized, field: str, limit: int) -> None:
    """Raises InvalidRequest when there are none or too many."""
    if not len(messages):
        raise InvalidRequest.of(field, "there are none; at least 1 is needed")
    if len(messages) > limit:
        raise InvalidRequest.of(field, f"there are {len(messages):,}; limit {limit:,}")


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


def check_ids(item: IdsInput, manifest: Manifest) -> None:
    """Raises InvalidRequest for an id beyond the vocabulary, or a last one at which the model cannot read."""
    check_token_ids(item.ids, item.field, manifest.vocabulary_size)
    if manifest.eos_token_ids and item.ids[-1] not in manifest.eos_token_ids:
        raise InvalidRequest.of(
            f"{item.field}.ids",
            f"ends with {item.ids[-1]:,}; the model reads at {manifest.eos_token_ids[0]:,}, the end",
        )


def classifications(found: Scores | list[Spans], counts: Sequence[ReadCounts]) -> list[classify_pb2.Classification]:
    """What is said of each input."""
    if isinstance(found, list):
        return [_classification(count, token_spans=_spans(spans)) for spans, count in zip(found, counts, strict=True)]
    return [
        _classification(count, label_ids=label_ids, scores=values)
        for label_ids, values, count in zip(found.label_ids, found.values, counts, strict=True)
    ]


def _classification(count: ReadCounts, **found: Any) -> classify_pb2.Classification:
    return classify_pb2.Classification(
        num_input_tokens=count.num_input_tokens,
        num_dropped_tokens=count.num_dropped,
        num_windows=count.num_windows,
        **found,
    )


def _spans(spans: Spans) -> list[classify_pb2.TokenSpan]:
    columns = zip(spans.labels, spans.scores, spans.starts, spans.ends, strict=True)
    return [classify_pb2.TokenSpan(label=name, score=score, start=a, end=b) for name, score, a, b in columns]


def head_kind(head: str) -> classify_pb2.HeadKind:
    """A manifest's head as the protocol calls it."""
    return _HEADS[head]
