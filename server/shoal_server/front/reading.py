"""Inputs to the token sequences that a model reads: checked, tokenized, fitted. Knows no engine and no gRPC."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

from tokenizers import Encoding

from shoal_server.errors import InvalidRequest
from shoal_server.front.convert_classify import ClassifySettings, IdsInput, Input, PairInput, TextInput, check_ids
from shoal_server.front.fit import Fitted, fit_pair, fit_text, fit_token_ids
from shoal_server.front.heads import TOKEN_HEAD, check_input
from shoal_server.front.token_map import map_text, map_token_ids
from shoal_server.front.tokenizers import Text, TokenizerThreads, count_characters
from shoal_server.front.version_text import VersionText

_CHARACTERS_PER_TOKEN = 4  # a guess for the door, corrected once the tokens are counted

Refuse: TypeAlias = Callable[[int, InvalidRequest], None]


def refuse_all(_: int, error: InvalidRequest) -> None:
    """One input that cannot be read ends the whole request."""
    raise error


class Reader:
    """Reads inputs for any version."""

    def __init__(self, tokenizers: TokenizerThreads) -> None:
        self._tokenizers = tokenizers

    async def read(
        self, text: VersionText, inputs: Sequence[Input], settings: ClassifySettings, refuse: Refuse
    ) -> list[Fitted]:
        """Sequences of the inputs that can be read, in order; `refuse` hears of the others, by their index.

        What `refuse` raises ends the reading.
        """
        readable: list[tuple[int, Input]] = []
        texts: list[Text] = []
        for index, item in enumerate(inputs):
            try:
                _check(item, text, settings)
            except InvalidRequest as error:
                refuse(index, error)
                continue
            readable.append((index, item))
            if isinstance(item, TextInput):
                texts.append(item.text)
            elif isinstance(item, PairInput):
                texts.append((item.first, item.second))
        encodings = iter(await self._encode(text, texts) if texts else ())
        fitted = []
        for index, item in readable:
            encoding = None if isinstance(item, IdsInput) else next(encodings)
            try:
                fitted.append(_fit(item, encoding, text, settings))
            except InvalidRequest as error:
                refuse(index, error)
        return fitted

    async def _encode(self, text: VersionText, texts: Sequence[Text]) -> list[Encoding]:
        return await self._tokenizers.encode(
            text.tokenizer,
            texts,
            num_characters=count_characters(texts),
            with_offsets=text.manifest.head == TOKEN_HEAD,
        )


def estimate_tokens(inputs: Sequence[Input]) -> int:
    """About how many tokens they are, at no cost."""
    total = 0
    for item in inputs:
        if isinstance(item, IdsInput):
            total += len(item.ids)
        elif isinstance(item, TextInput):
            total += 2 + len(item.text) // _CHARACTERS_PER_TOKEN
        else:
            total += 3 + (len(item.first) + len(item.second)) // _CHARACTERS_PER_TOKEN
    return total


def _check(item: Input, text: VersionText, settings: ClassifySettings) -> None:
    check_input(item, settings, text.manifest.head)
    if isinstance(item, IdsInput):
        check_ids(item, text.manifest)


def _fit(item: Input, encoding: Encoding | None, text: VersionText, settings: ClassifySettings) -> Fitted:
    max_tokens, is_token_head = text.manifest.max_tokens, text.manifest.head == TOKEN_HEAD
    if isinstance(item, IdsInput):
        if is_token_head:
            return map_token_ids(item.ids, text, settings.overflow, item.field)
        return fit_token_ids(item.ids, text.single, max_tokens, settings.overflow, item.field)
    assert encoding is not None, "texts are encoded"
    if isinstance(item, TextInput):
        if is_token_head:
            return map_text(item.text, encoding, text, settings.overflow, item.field)
        return fit_text(encoding.ids, text.single, max_tokens, settings.overflow, item.field)
    ids: list[int] = encoding.ids
    owners = encoding.sequence_ids
    first = [token_id for token_id, owner in zip(ids, owners, strict=True) if owner == 0]
    second = [token_id for token_id, owner in zip(ids, owners, strict=True) if owner == 1]
    return fit_pair(first, second, text.pair, max_tokens, settings.overflow, item.field)
