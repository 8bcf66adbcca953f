"""Greedy decoding over the paged cache gives token for token what transformers' `generate` gives.

Sequences join and leave at random, prompts come in chunks, and a sequence's blocks lie scattered in the cache.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import psutil
import pytest
import torch
from shoal_models.generator import LoadedGenerator
from shoal_models.load import LoadError
from shoal_models.packed import CacheShape, PackedRow, PagedCache
from tiny_models import CPU, GENERATORS, VOCABULARY, Published, tiny_model

BLOCK_TOKENS = 4
NEW_TOKENS = 24


@dataclass(slots=True, kw_only=True)
class _Sequence:
    """One request of a toy scheduler."""

    prompt: list[int]
    output: list[int] = field(default_factory=list)
    done: int = 0  # tokens in the cache
    blocks: list[int] = field(default_factory=list)

    @property
    def tokens(self) -> list[int]:
        return self.prompt + self.output


def _run(loaded: LoadedGenerator, sequences: list[_Sequence], chooser: random.Random) -> int:
    """Serve all sequences greedily; returns the number of steps."""
    need = max(len(s.prompt) for s in sequences) + NEW_TOKENS
    cache = loaded.new_cache(len(sequences) * -(-need // BLOCK_TOKENS), BLOCK_TOKENS)
    cache.blocks.fill_(float("nan"))  # what a careless predecessor left
    free = list(range(cache.num_blocks))
    chooser.shuffle(free)
    waiting, running, steps = list(sequences), [], 0
    while waiting or running:
        while waiting and (not running or chooser.random() < 0.3):
            running.append(waiting.pop())
        chooser.shuffle(running)
        chunks = [(s, 1 if s.output else min(chooser.randint(1, 9), len(s.prompt) - s.done)) for s in running]
        _step(loaded, cache, chunks, free)
        for s in [s for s in running if len(s.output) == NEW_TOKENS]:
            running.remove(s)
            free.extend(s.blocks)
        steps += 1
    return steps


def _step(loaded: LoadedGenerator, cache: PagedCache, chunks: list[tuple[_Sequence, int]], free: list[int]) -> None:
    ids, positions, starts, wanted, askers = [], [], [0], [], []
    for s, new in chunks:
        while len(s.blocks) * BLOCK_TOKENS < s.done + new:
            s.blocks.append(free.pop())
        ids += s.tokens[s.done : s.done + new]
        positions += range(s.done, s.done + new)
        starts.append(starts[-1] + new)
        if s.done + new == len(s.tokens):
            wanted.append(starts[-1] - 1)
            askers.append(s)
    row = PackedRow(
        ids_T=torch.tensor(ids),
        positions_T=torch.tensor(positions),
        starts=tuple(starts),
        cache=cache,
        block_tables=tuple(tuple(s.blocks) for s, _ in chunks),
        context_lens=tuple(s.done for s, _ in chunks),
    )
    logits_WV = loaded.logits(row, torch.tensor(wanted, dtype=torch.int64))
    assert logits_WV.shape == (len(wanted), VOCABULARY)
    assert logits_WV.dtype == torch.float32
    for s, new in chunks:
        s.done += new
    for s, token in zip(askers, logits_WV.argmax(-1).tolist(), strict=True):
        s.output.append(token)


def _reference(model: Any, prompt: list[int]) -> list[int]:
    with torch.no_grad():
        out = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.int64),
            do_sample=False,
            max_new_tokens=NEW_TOKENS,
            min_new_tokens=NEW_TOKENS,
            eos_token_id=None,
            pad_token_id=0,
        )
    return list(out[0, len(prompt) :].tolist())


@pytest.mark.parametrize("architecture", sorted(GENERATORS))
def test_paged_decoding_equals_generate(architecture: str, publish: Callable[..., Published]) -> None:
    published = publish(tiny_model(architecture, GENERATORS[architecture]()), "generator")
    loaded = published.load()
    assert isinstance(loaded, LoadedGenerator)
    assert loaded.execution == "packed"
    chooser = random.Random(11)
    sequences = [
        _Sequence(prompt=[chooser.randrange(4, VOCABULARY) for _ in range(chooser.randint(1, 60))]) for _ in range(8)
    ]
    steps = _run(loaded, sequences, chooser)
    assert steps < sum(len(s.prompt) + NEW_TOKENS for s in sequences) / 2, "steps were shared"
    for s in sequences:
        assert s.output == _reference(published.model, s.prompt)


def test_cache_bytes_count_keys_and_values_of_all_layers(publish: Callable[..., Published]) -> None:
    """2 layers x (keys + values) x 2 heads x 8 numbers x 4 bytes = 256 bytes a token."""
    config = GENERATORS["LlamaForCausalLM"]()
    loaded = publish(tiny_model("LlamaForCausalLM", config), "generator").load()
    assert isinstance(loaded, LoadedGenerator)
    assert loaded.cache_bytes_per_token == 256
    assert loaded.new_cache(5, 16).num_bytes == 256 * 5 * 16


def test_a_decoder_that_cannot_page_its_cache_is_refused(publish: Callable[..., Published]) -> None:
    import transformers as tf

    config = tf.BloomConfig(vocab_size=VOCABULARY, hidden_size=32, n_layer=2, n_head=4)
    published = publish(tiny_model("BloomForCausalLM", config), "generator")
    with pytest.raises(
        LoadError, match=r"BloomForCausalLM cannot run over a paged cache: .*0 calls of packed attention"
    ):
        published.load()


def test_two_runs_of_a_row_agree_to_the_bit(publish: Callable[..., Published]) -> None:
    loaded = publish(tiny_model("LlamaForCausalLM", GENERATORS["LlamaForCausalLM"]()), "generator").load()
    assert isinstance(loaded, LoadedGenerator)
    chooser = random.Random(5)
    prompts = [[chooser.randrange(4, VOCABULARY) for _ in range(20)] for _ in range(4)]
    runs = []
    for _ in range(2):
        sequences = [_Sequence(prompt=list(prompt)) for prompt in prompts]
        _run(loaded, sequences, random.Random(3))
        runs.append([s.output for s in sequences])
    assert runs[0] == runs[1]


def test_a_cache_takes_memory_as_its_blocks_are_written_to() -> None:
    """512 MB in 728 blocks; a block is 0.7 MB, spread over 180 places."""
    shape = CacheShape(num_layers=30, num_heads=3, head_size=64)
    process = psutil.Process()
    before = process.memory_info().rss
    cache = PagedCache(shape, num_blocks=728, block_tokens=16, dtype=torch.float32, device=CPU)
    assert cache.num_bytes > 500 * 2**20
    cache.blocks[:, :, :, 0] = 1.0
    assert process.memory_info().rss - before < 32 * 2**20
    assert cache.blocks[:, :, :, 1].count_nonzero() == 0
