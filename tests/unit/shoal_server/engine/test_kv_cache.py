"""The block allocator: all or nothing, nothing doubled, nothing leaked."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shoal_server.engine.kv_cache import BlockAllocator, KVCacheCorruption
from shoal_server.engine.request import CallKey

ONE, TWO = CallKey(1, 1), CallKey(1, 2)


def test_a_table_covers_its_tokens_in_whole_blocks():
    """17 tokens in blocks of 16 take 2; up to 32 take no more."""
    blocks = BlockAllocator(num_blocks=4, block_tokens=16)
    assert blocks.allocate(ONE, 17)
    table = blocks.table(ONE)
    assert len(table) == 2
    assert blocks.allocate(ONE, 32)
    assert blocks.table(ONE) == table
    assert blocks.allocate(ONE, 33)
    assert blocks.table(ONE)[:2] == table, "what a sequence has written stays where it is"


def test_allocation_is_all_or_nothing():
    blocks = BlockAllocator(num_blocks=3, block_tokens=16)
    assert blocks.allocate(ONE, 32)
    assert not blocks.allocate(TWO, 32)
    assert blocks.table(TWO) == ()
    assert blocks.num_free == 1


def test_released_blocks_are_free_and_an_unknown_sequence_releases_nothing():
    blocks = BlockAllocator(num_blocks=3, block_tokens=16)
    blocks.allocate(ONE, 48)
    blocks.release(ONE)
    blocks.release(ONE)
    assert blocks.num_free == 3
    assert blocks.allocate(TWO, 48)


def test_a_block_in_two_tables_is_noticed():
    blocks = BlockAllocator(num_blocks=2, block_tokens=16)
    blocks.allocate(ONE, 16)
    blocks._tables[TWO] = blocks.table(ONE)
    with pytest.raises(KVCacheCorruption):
        blocks.check()


@settings(max_examples=500, deadline=None)
@given(
    num_blocks=st.integers(1, 12),
    block_tokens=st.integers(1, 5),
    steps=st.lists(st.tuples(st.integers(0, 4), st.integers(0, 40)), max_size=50),
)
def test_whatever_happens_every_block_is_free_or_in_one_table(num_blocks, block_tokens, steps):
    """(sequence, tokens) allocates, (sequence, 0) releases; refusal happens exactly when too few are free."""
    blocks = BlockAllocator(num_blocks=num_blocks, block_tokens=block_tokens)
    for sequence, num_tokens in steps:
        key = CallKey(0, sequence)
        before, free = blocks.table(key), blocks.num_free
        if num_tokens == 0:
            blocks.release(key)
            assert blocks.num_free == free + len(before)
        else:
            missing = max(0, -(-num_tokens // block_tokens) - len(before))
            assert blocks.allocate(key, num_tokens) == (missing <= free)
            assert blocks.table(key)[: len(before)] == before
        blocks.check()
    for sequence in range(5):
        blocks.release(CallKey(0, sequence))
    assert blocks.num_free == num_blocks
