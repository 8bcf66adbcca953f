"""Tokenizing: short texts inline, longer ones in threads, and nobody waits for a stranger's huge text."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator

import pytest
from front_world import byte_tokenizer, word_tokenizer
from shoal_server.front.tokenizers import INLINE_CHARACTERS, LONG_CHARACTERS, NUM_THREADS, TokenizerThreads


class SlowTokenizer:
    """Hangs on texts that begin with "hang" until it is released, and notes in which thread it was asked."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.num_hanging = 0
        self.threads: list[str] = []

    def encode_batch_fast(self, texts: list[str], add_special_tokens: bool) -> list[str]:
        self.threads.append(threading.current_thread().name)
        if texts[0].startswith("hang"):
            self.num_hanging += 1
            assert self.release.wait(10)
        return texts


@pytest.fixture
def threads() -> Iterator[TokenizerThreads]:
    made = TokenizerThreads()
    yield made
    made.close()


async def test_huge_texts_that_hang_hold_up_only_each_other(threads: TokenizerThreads) -> None:
    slow = SlowTokenizer()
    hanging = [
        asyncio.create_task(threads.encode(slow, ["hang"], num_characters=LONG_CHARACTERS + 1))
        for _ in range(NUM_THREADS + 3)
    ]
    began = time.monotonic()
    for size in (1, INLINE_CHARACTERS + 1, LONG_CHARACTERS):
        assert await threads.encode(slow, ["text"], num_characters=size) == ["text"]
    assert time.monotonic() - began < 5
    assert slow.num_hanging <= NUM_THREADS
    slow.release.set()
    await asyncio.gather(*hanging)


async def test_who_is_cancelled_leaves_nothing_queued(threads: TokenizerThreads) -> None:
    slow = SlowTokenizer()
    hanging = [
        asyncio.create_task(threads.encode(slow, ["hang"], num_characters=LONG_CHARACTERS + 1)) for _ in range(10)
    ]
    await asyncio.sleep(0.05)
    for task in hanging:
        task.cancel()
    await asyncio.gather(*hanging, return_exceptions=True)
    slow.release.set()
    assert await threads.encode(slow, ["next"], num_characters=LONG_CHARACTERS + 1) == ["next"]
    assert slow.num_hanging == NUM_THREADS


async def test_short_texts_stay_in_the_event_loops_thread(threads: TokenizerThreads) -> None:
    slow = SlowTokenizer()
    await threads.encode(slow, ["x"], num_characters=INLINE_CHARACTERS)
    await threads.encode(slow, ["x"], num_characters=INLINE_CHARACTERS + 1)
    assert slow.threads[0] == threading.current_thread().name
    assert slow.threads[1].startswith("tokenize")


@pytest.mark.parametrize("num_words", [3, 3000])
async def test_inline_and_threads_agree_with_the_library(threads: TokenizerThreads, num_words: int) -> None:
    for tokenizer in (word_tokenizer(), byte_tokenizer()):
        texts = ["good fox " * num_words, ("the dog", "a fox " * num_words)]
        found = await threads.encode(tokenizer, texts, num_characters=9 * num_words)
        assert [e.ids for e in found] == [tokenizer.encode(texts[0]).ids, tokenizer.encode(*texts[1]).ids]
