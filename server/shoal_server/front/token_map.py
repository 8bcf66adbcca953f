"""Inputs of token heads: fitted to what the model takes, with where each token stands and which logits count for it.

They are fitted like any other input (`fit`), only that positions are, in place of ids, so that each row of the model's
answer is known by the position it reads. A token read in several windows takes the row of the window in which it
stands farthest from a cut, the earlier one of two. Knows no logits and no labels.

T tokens of an input, special ones included; M tokens that may be in spans
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

import msgspec
import numpy as np
from tokenizers import Encoding

from shoal_server.front.fit import Fitted, Overflow, fit_text, fit_token_ids, special_tokens_of
from shoal_server.front.spans import Bools, Ints, TokenMap
from shoal_server.front.version_text import Frame, VersionText
from shoal_server.front.words import continues_word

_Fit = Callable[[list[int], Frame, int, Overflow, str], Fitted]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tokens:
    """Everything that is known of the tokens of an input."""

    ids: list[int]
    starts_T: Ints
    ends_T: Ints
    continues_T: Bools
    is_special_T: Bools


def map_text(text: str, encoding: Encoding, version: VersionText, overflow: Overflow, field: str) -> Fitted:
    """Fit a text; `encoding` has offsets. Raises InvalidRequest as `fit_text` does."""
    flat = chain.from_iterable(encoding.offsets)  # twice as fast as an array of tuples
    offsets_T2 = np.fromiter(flat, dtype=np.int64).reshape(-1, 2)
    tokens = _Tokens(
        ids=encoding.ids,
        starts_T=offsets_T2[:, 0],
        ends_T=offsets_T2[:, 1],
        continues_T=continues_word(version.words, text, encoding, offsets_T2),
        is_special_T=np.array(encoding.special_tokens_mask, dtype=np.bool_),
    )
    return _fit(fit_text, tokens, version.single, version.manifest.max_tokens, overflow, field)


def map_token_ids(ids: list[int], version: VersionText, overflow: Overflow, field: str) -> Fitted:
    """Fit ids that a client made, which stand where their index says. Raises InvalidRequest as `fit_token_ids` does."""
    frame = special_tokens_of(ids, version.single)
    positions_T = np.arange(len(ids))
    tokens = _Tokens(
        ids=ids,
        starts_T=positions_T,
        ends_T=positions_T + 1,
        continues_T=np.zeros(len(ids), dtype=np.bool_),
        is_special_T=(positions_T < len(frame.prefix)) | (positions_T >= len(ids) - len(frame.suffix)),
    )
    return _fit(fit_token_ids, tokens, frame, version.manifest.max_tokens, overflow, field)


def _fit(fit: _Fit, tokens: _Tokens, frame: Frame, max_tokens: int, overflow: Overflow, field: str) -> Fitted:
    positions = list(range(len(tokens.ids)))
    suffix = tuple(positions[len(positions) - len(frame.suffix) :])
    by_position = fit(
        positions, Frame(prefix=tuple(positions[: len(frame.prefix)]), suffix=suffix), max_tokens, overflow, field
    )
    positions_M, rows_M = _choose_rows(by_position.sequences, tokens.is_special_T)
    return msgspec.structs.replace(
        by_position,
        sequences=[[tokens.ids[position] for position in sequence] for sequence in by_position.sequences],
        tokens=TokenMap(
            num_rows=by_position.num_tokens,
            rows_M=rows_M,
            starts_M=tokens.starts_T[positions_M],
            ends_M=tokens.ends_T[positions_M],
            continues_M=tokens.continues_T[positions_M],
        ),
    )


def _choose_rows(sequences: Sequence[Sequence[int]], is_special_T: Bools) -> tuple[Ints, Ints]:
    """The positions that are read and not special, and for each the row that counts."""
    content = np.flatnonzero(~is_special_T)
    depths_T, rows_T = np.full(len(is_special_T), -1), np.zeros(len(is_special_T), dtype=np.int64)
    num_rows = 0
    for sequence in sequences:
        positions = np.array(sequence, dtype=np.int64)
        inside = np.flatnonzero(~is_special_T[positions])
        read = positions[inside]
        depths = _distances_to_cuts(read, content)
        better = depths > depths_T[read]
        depths_T[read[better]] = depths[better]
        rows_T[read[better]] = num_rows + inside[better]
        num_rows += len(sequence)
    positions_M = np.flatnonzero(depths_T >= 0)
    return positions_M, rows_T[positions_M]


def _distances_to_cuts(read: Ints, content: Ints) -> Ints:
    """How far each token of a sequence stands from its nearer end that is no end of the input."""
    far = len(content)
    places = np.arange(len(read))
    before = places if len(read) and read[0] != content[0] else np.full(len(read), far)
    after = places[::-1] if len(read) and read[-1] != content[-1] else np.full(len(read), far)
    nearer: Ints = np.minimum(before, after)
    return nearer
