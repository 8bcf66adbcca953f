"""Finds out, at load, which is the fastest way that gives a classifier's sequences the answers they have alone.

Made-up sequences of unlike lengths, with token types and in pairs where the model tells them apart and with special
tokens in some, go through transformers' own forward one by one and then through packed rows or padded batches. What
gives any other answer is never served.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

from torch import Tensor

from shoal_models.attention import PackedAttentionError
from shoal_models.classifier import LoadedClassifier
from shoal_models.execution import ONE_BY_ONE, Execution, Way
from shoal_models.heads import reads_of
from shoal_models.packed import PackedRow, pack
from shoal_models.padded import Side
from shoal_models.probe import ProbeFailure, compare, first_line, made_up_sequences, special_ids

_LENGTHS = (7, 1, 12, 3, 9, 9, 100)  # the last reaches beyond the windows of local attention
_LONGEST_MINIMUM = 8  # Funnel's forward fails for fewer than 3 tokens
_SECOND_STARTS = (-1, -1, 5, 2, 8, 1, 60)  # where the second text begins
_WITH_SPECIALS = (2, 4, 6)
_ONE_BATCH = 10**6  # a forward is so dear that all sequences share one
_FORWARD_TOKENS = {"cpu": 32, "cuda": 2048}  # tokens that cost as much as one more forward, see ARCHITECTURE.md


def choose_execution(loaded: LoadedClassifier, model: Any) -> Execution:
    """The fastest way that is proven right; `loaded` runs it from now on.

    Raises:
        ProbeFailure: transformers' own forward fails.
    """
    loaded.run(ONE_BY_ONE)
    rows, expected = _expected(loaded, model.config.get_text_config())
    failures: dict[Way, str] = {}
    for candidate in _candidates(loaded, model):
        try:
            for trial in _trials(candidate):
                loaded.run(trial)
                for row, logits in zip(rows, expected, strict=True):
                    compare(_logits(loaded, row), logits)
        except ProbeFailure as failure:
            failures[candidate.way] = str(failure)
        else:
            chosen = candidate if candidate.way == "packed" else dataclasses.replace(candidate, why=failures["packed"])
            loaded.run(chosen)
            return chosen
    why = "; ".join(f"{way}, {failure}" for way, failure in failures.items())
    chosen = dataclasses.replace(ONE_BY_ONE, why=why)
    loaded.run(chosen)
    return chosen


def _candidates(loaded: LoadedClassifier, model: Any) -> Iterator[Execution]:
    """Fastest first."""
    reads = reads_of(model)
    if loaded.has_lean_layers:
        yield Execution(way="packed", reads=reads, lean=True)
    yield Execution(way="packed", reads=reads)
    if reads != "tokens":
        yield Execution(way="packed", reads="sequence")
    sides: tuple[Side, ...] = ("right", "left")
    for side in sides:
        yield Execution(way="padded", side=side, forward_tokens=_FORWARD_TOKENS[loaded.device.type])


def _trials(candidate: Execution) -> Iterator[Execution]:
    yield candidate
    if candidate.way == "padded":
        yield dataclasses.replace(candidate, forward_tokens=_ONE_BATCH)


def _logits(loaded: LoadedClassifier, row: PackedRow) -> Tensor:
    try:
        return loaded.logits(row)
    except PackedAttentionError as error:
        raise ProbeFailure(str(error)) from error
    except Exception as error:
        raise ProbeFailure(first_line(error)) from error


def _fewest_tokens(loaded: LoadedClassifier) -> int:
    """The shortest sequence that the model's own forward takes."""
    for num_tokens in range(1, _LONGEST_MINIMUM):
        with contextlib.suppress(ProbeFailure):
            _logits(loaded, loaded.trial_row(num_tokens))
            return num_tokens
    _logits(loaded, loaded.trial_row(_LONGEST_MINIMUM))
    return _LONGEST_MINIMUM


def _expected(loaded: LoadedClassifier, config: Any) -> tuple[list[PackedRow], list[Tensor]]:
    """Rows, with special tokens unless the model's own forward fails for them, and what it answers."""
    fewest_tokens = _fewest_tokens(loaded)
    class_id = loaded.manifest.class_token_id
    specials = [*special_ids(config), *([class_id] if class_id >= 0 else [])]
    rows = _rows(loaded, config, fewest_tokens, specials)
    try:
        return rows, [_logits(loaded, row) for row in rows]
    except ProbeFailure:
        rows = _rows(loaded, config, fewest_tokens, [])
        return rows, [_logits(loaded, row) for row in rows]


def _rows(loaded: LoadedClassifier, config: Any, fewest_tokens: int, specials: list[int]) -> list[PackedRow]:
    """All sequences together, with types where they are told apart; and the shortest alone."""
    limit = loaded.manifest.max_tokens
    lengths = tuple(min(max(n, fewest_tokens), limit) for n in _LENGTHS)
    sequences = made_up_sequences(lengths, int(config.vocab_size), frozenset(special_ids(config)))
    for index in _WITH_SPECIALS:
        for place, special in zip(range(1, len(sequences[index]) - 1), specials, strict=False):
            sequences[index][place] = special
    if loaded.end_id is not None:
        for sequence in sequences:
            sequence[-1] = loaded.end_id
    seconds = [second if second < len(ids) else -1 for second, ids in zip(_SECOND_STARTS, sequences, strict=True)]
    rows = [pack(sequences, device=loaded.device)]
    if loaded.takes_types:
        rows.append(pack(sequences, device=loaded.device, second_starts=seconds))
    return [*rows, pack(sequences[1:2], device=loaded.device)]
