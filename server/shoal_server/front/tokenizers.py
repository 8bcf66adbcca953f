"""Texts to token ids, without holding up anyone else.

Short texts are tokenized where they are; longer ones in threads, through the methods that let go of the interpreter
lock: `encode_batch_fast`, or `encode_batch` where offsets are wanted. Very long ones have threads of their own, so
that they wait for each other only. Callers bound characters before. Knows no gRPC.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from tokenizers import Encoding, Tokenizer

INLINE_CHARACTERS: Final = 512  # about 0.1 ms; below, a thread costs more than it saves
LONG_CHARACTERS: Final = 32_768
NUM_THREADS: Final = 2  # for texts up to LONG_CHARACTERS, and as many for longer ones

Text = str | tuple[str, str]  # one text, or a pair read together


class TokenizerThreads:
    """The threads that tokenize for one front."""

    def __init__(self) -> None:
        self._medium = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="tokenize")
        self._long = ThreadPoolExecutor(NUM_THREADS, thread_name_prefix="tokenize-long")

    async def encode(
        self,
        tokenizer: Tokenizer,
        texts: Sequence[Text],
        *,
        num_characters: int,
        add_special_tokens: bool = True,
        with_offsets: bool = False,
    ) -> list[Encoding]:
        """Encode texts of `num_characters` in all. A caller that is cancelled leaves nothing queued behind."""
        encode = tokenizer.encode_batch if with_offsets else tokenizer.encode_batch_fast
        if num_characters <= INLINE_CHARACTERS:
            return _encode(encode, texts, add_special_tokens)
        threads = self._medium if num_characters <= LONG_CHARACTERS else self._long
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(threads, _encode, encode, texts, add_special_tokens)

    def close(self) -> None:
        """Take no more work; what runs is not waited for."""
        self._medium.shutdown(wait=False, cancel_futures=True)
        self._long.shutdown(wait=False, cancel_futures=True)


def count_characters(texts: Sequence[Text]) -> int:
    """Characters over all texts."""
    return sum(len(text) if isinstance(text, str) else len(text[0]) + len(text[1]) for text in texts)


def _encode(encode: Callable[..., list[Encoding]], texts: Sequence[Text], add_special_tokens: bool) -> list[Encoding]:
    return encode(list(texts), add_special_tokens=add_special_tokens)
