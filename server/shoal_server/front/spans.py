"""Logits of tokens to spans, as transformers' token-classification pipeline makes them, with every one of its choices.

Softmax runs in float32 as it does there, so that equal scores are equal here too. Knows no tokenizer and no text.

R rows of logits of one input, L labels, M tokens that may be in spans, U units that are joined (tokens or words), G
spans
"""

from __future__ import annotations

import functools
from collections.abc import Sequence, Set
from dataclasses import dataclass
from enum import Enum
from typing import Final

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

IGNORED_BY_DEFAULT: Final = frozenset({"O"})


class Aggregation(Enum):
    """How labelled tokens become spans; documented in protos/shoal/v1/classify.proto."""

    NONE = "none"
    SIMPLE = "simple"
    FIRST = "first"
    AVERAGE = "average"
    MAX = "max"

    @property
    def needs_words(self) -> bool:
        """Whether tokens of one word are given one label."""
        return self not in (Aggregation.NONE, Aggregation.SIMPLE)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenMap:
    """The tokens of one input that may be in spans: those read, without special ones, in order."""

    num_rows: int  # of the input's logits: tokens of all its sequences, special ones included
    rows_M: Ints  # which row of the input's logits counts for each
    starts_M: Ints  # first character, or index of the token where the client gave ids
    ends_M: Ints  # one past the last
    continues_M: Bools  # whether it belongs to the word of the one before


@dataclass(frozen=True, slots=True, kw_only=True)
class Spans:
    """The spans of one input, in its order; the lists run in parallel."""

    labels: list[str]
    scores: list[float]
    starts: list[int]
    ends: list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tags:
    """What joining goes by, for each label."""

    groups: tuple[str, ...]  # names of groups, such as "PER"
    tag_ids_L: Ints  # labels with the same number may be in one span
    begins_L: Bools  # labels that always begin a span


@dataclass(frozen=True, slots=True, kw_only=True)
class _Units:
    """What is joined to spans: tokens, or words."""

    label_ids_U: Ints
    scores_U: Floats
    starts_U: Ints
    ends_U: Ints


def find_all_spans(
    logits: bytes, maps: Sequence[TokenMap], labels: tuple[str, ...], aggregation: Aggregation, ignored: Set[str]
) -> list[Spans]:
    """The spans of all inputs of a call; `logits` is float32, one row for each token of each."""
    rows_RL = np.frombuffer(logits, dtype="<f4").reshape(-1, len(labels))
    parts = np.split(rows_RL, np.cumsum([tokens.num_rows for tokens in maps])[:-1])
    return [
        find_spans(part_RL, tokens, labels, aggregation, ignored) for part_RL, tokens in zip(parts, maps, strict=True)
    ]


def find_spans(
    logits_RL: Floats, tokens: TokenMap, labels: tuple[str, ...], aggregation: Aggregation, ignored: Set[str]
) -> Spans:
    """The spans of one input, those whose label is in `ignored` left out."""
    if not len(tokens.rows_M):
        return Spans(labels=[], scores=[], starts=[], ends=[])
    scores_ML = _softmax(logits_RL[tokens.rows_M])
    units = _words(scores_ML, tokens, aggregation) if aggregation.needs_words else _tokens(scores_ML, tokens)
    if aggregation is Aggregation.NONE:
        return _report(units, labels, ignored)
    tags = _tags(labels)
    return _report(_join(units, tags), tags.groups, ignored)


def _softmax(logits_ML: Floats) -> Floats:
    powers_ML = np.exp(logits_ML - logits_ML.max(axis=1, keepdims=True))
    return np.asarray(powers_ML / powers_ML.sum(axis=1, keepdims=True))


def _tokens(scores_ML: Floats, tokens: TokenMap) -> _Units:
    best_M = scores_ML.argmax(axis=1)
    return _Units(
        label_ids_U=best_M,
        scores_U=scores_ML[np.arange(len(best_M)), best_M],
        starts_U=tokens.starts_M,
        ends_U=tokens.ends_M,
    )


def _words(scores_ML: Floats, tokens: TokenMap, aggregation: Aggregation) -> _Units:
    begins_M = ~tokens.continues_M
    begins_M[0] = True  # whatever the first token says, nothing stands before it
    firsts_U = np.flatnonzero(begins_M)
    scores_UL = _word_scores(scores_ML, firsts_U, begins_M, aggregation)
    best_U = scores_UL.argmax(axis=1)
    return _Units(
        label_ids_U=best_U,
        scores_U=scores_UL[np.arange(len(best_U)), best_U],
        starts_U=tokens.starts_M[firsts_U],
        ends_U=tokens.ends_M[_lasts(firsts_U, len(begins_M))],
    )


def _word_scores(scores_ML: Floats, firsts_U: Ints, begins_M: Bools, aggregation: Aggregation) -> Floats:
    """The scores of each word: of its first token, the mean of its tokens, or of its surest token."""
    if aggregation is Aggregation.FIRST:
        return scores_ML[firsts_U]
    if aggregation is Aggregation.AVERAGE:
        sizes_U = np.diff(firsts_U, append=len(begins_M)).astype(np.float32)
        return np.asarray(np.add.reduceat(scores_ML, firsts_U, axis=0) / sizes_U[:, None])
    surest_M = scores_ML.max(axis=1)
    words_M = np.cumsum(begins_M) - 1
    candidates = np.flatnonzero(surest_M == np.maximum.reduceat(surest_M, firsts_U)[words_M])
    _, first_of_each = np.unique(words_M[candidates], return_index=True)
    return scores_ML[candidates[first_of_each]]


def _join(units: _Units, tags: _Tags) -> _Units:
    """Neighbours with the same tag, none but the first of which begins a span."""
    tags_U = tags.tag_ids_L[units.label_ids_U]
    begins_U = tags.begins_L[units.label_ids_U]
    begins_U[1:] |= tags_U[1:] != tags_U[:-1]
    begins_U[0] = True
    firsts_G = np.flatnonzero(begins_U)
    sizes_G = np.diff(firsts_G, append=len(begins_U)).astype(np.float32)
    return _Units(
        label_ids_U=units.label_ids_U[firsts_G],
        scores_U=np.asarray(np.add.reduceat(units.scores_U, firsts_G) / sizes_G),
        starts_U=units.starts_U[firsts_G],
        ends_U=units.ends_U[_lasts(firsts_G, len(begins_U))],
    )


def _lasts(firsts: Ints, count: int) -> Ints:
    return np.append(firsts[1:], count) - 1


def _report(units: _Units, names_L: tuple[str, ...], ignored: Set[str]) -> Spans:
    told_L = np.array([name not in ignored for name in names_L])
    told_G = np.flatnonzero(told_L[units.label_ids_U])
    return Spans(
        labels=[names_L[label_id] for label_id in units.label_ids_U[told_G].tolist()],
        scores=units.scores_U[told_G].tolist(),
        starts=units.starts_U[told_G].tolist(),
        ends=units.ends_U[told_G].tolist(),
    )


@functools.lru_cache(maxsize=64)
def _tags(labels: tuple[str, ...]) -> _Tags:
    """A label without "B-" or "I-" is its tag; its group is what stands after its first hyphen, as in transformers."""
    tags = [label[2:] if label.startswith(("B-", "I-")) else label for label in labels]
    numbers = {tag: number for number, tag in enumerate(dict.fromkeys(tags))}
    return _Tags(
        groups=tuple(label.split("-", 1)[-1] for label in labels),
        tag_ids_L=np.array([numbers[tag] for tag in tags], dtype=np.int64),
        begins_L=np.array([label.startswith("B-") for label in labels], dtype=np.bool_),
    )
