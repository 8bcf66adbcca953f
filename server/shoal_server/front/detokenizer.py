"""Token ids to text as they come, never ending in half a character.

A character may be spread over several tokens, and a token's text may depend on the one before it (a leading space, a
joined word piece). So a window is decoded: the tokens of the last piece that was given out, as context, and those not
given out yet. What is new is what the window says beyond its context. Knows nothing of stop strings.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

_INCOMPLETE: Final = "\N{REPLACEMENT CHARACTER}"
MAX_PENDING_TOKENS: Final = 16  # a character has at most 4 bytes; what is incomplete for longer will never be whole


class Decoder(Protocol):
    """The part of a tokenizer that is needed here."""

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = True) -> str:
        """The text of some ids."""


class Detokenizer:
    """The text of one completion."""

    __slots__ = ("_context", "_context_text", "_decoder", "_pending")

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._context: list[int] = []
        self._context_text = ""
        self._pending: list[int] = []

    def push(self, token_ids: Sequence[int]) -> str:
        """The text that these tokens complete; empty while they end in half a character only."""
        self._pending.extend(token_ids)
        for num_held in range(min(len(self._pending), MAX_PENDING_TOKENS)):
            given = self._pending[: len(self._pending) - num_held]
            text = self._decoder.decode([*self._context, *given])
            if not text.endswith(_INCOMPLETE):
                return self._give(text, given)
        if len(self._pending) >= MAX_PENDING_TOKENS:
            return self._give(self._decoder.decode([*self._context, *self._pending]), self._pending)
        return ""

    def finish(self) -> str:
        """The rest: half a character that will never be whole becomes a replacement character."""
        if not self._pending:
            return ""
        return self._give(self._decoder.decode([*self._context, *self._pending]), self._pending)

    def _give(self, text: str, given: list[int]) -> str:
        new = text[len(self._context_text) :]
        self._pending = self._pending[len(given) :]
        given_text = self._decoder.decode(given)
        if given_text:
            self._context, self._context_text = given, given_text
        else:  # special tokens show nothing, and what follows them still depends on what came before
            self._context, self._context_text = [*self._context, *given], text
        return new
