"""Which tokens continue the word of the token before, told as transformers' token-classification pipeline tells it.

WordPiece marks what continues a word; the text of such a token is shorter than the token. All other tokenizers are
taken to begin a word wherever a space stands at the seam, since nothing in their tokens can be relied on. Knows no
logits.

T tokens
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding, Tokenizer

_SPACE: Final = ord(" ")


@dataclass(frozen=True, slots=True, kw_only=True)
class WordRule:
    """How the words of one version's tokenizer are told."""

    marks_continuations: bool = False
    unknown_id: int | None = None  # this token stands for what the vocabulary lacks, and is a word of its own


def word_rule(tokenizer: Tokenizer, settings: Mapping[str, Any]) -> WordRule:
    """The rule for a tokenizer; `settings` are those of tokenizer_config.json, empty where there is none."""
    unknown = settings.get("unk_token") or getattr(tokenizer.model, "unk_token", None)
    name = unknown.get("content") if isinstance(unknown, dict) else unknown
    return WordRule(
        marks_continuations=bool(getattr(tokenizer.model, "continuing_subword_prefix", None)),
        unknown_id=tokenizer.token_to_id(name) if isinstance(name, str) else None,
    )


def continues_word(rule: WordRule, text: str, encoding: Encoding, offsets_T2: NDArray[np.int64]) -> NDArray[np.bool_]:
    """For each token, special ones included, whether it continues the word of the token before it."""
    starts_T, ends_T = offsets_T2[:, 0], offsets_T2[:, 1]
    if rule.marks_continuations:
        lengths_T = np.fromiter(map(len, encoding.tokens), dtype=np.int64, count=len(offsets_T2))
        continues_T: NDArray[np.bool_] = lengths_T != ends_T - starts_T
    else:
        continues_T = ~_has_space_at(text, starts_T)
    if rule.unknown_id is not None:
        continues_T &= np.array(encoding.ids, dtype=np.int64) != rule.unknown_id
    return continues_T


def _has_space_at(text: str, starts_T: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Whether a token begins the text, begins with a space or comes after one."""
    is_space = np.frombuffer(text.encode("utf-32-le"), dtype="<u4") == _SPACE
    before = np.concatenate(([True], is_space))
    at = np.concatenate((is_space, [False]))
    found: NDArray[np.bool_] = before[starts_T] | at[starts_T]
    return found
