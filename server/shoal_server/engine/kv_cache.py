"""Which sequence holds which KV blocks. Knows numbers only; the tensors lie in `model_runner`.

One allocator for each generator version, since a cache is never read by other weights than those that wrote it.
"""

from __future__ import annotations

from shoal_server.engine.request import CallKey


class KVCacheCorruption(Exception):
    """A block is both free and in use, or in nobody's hands: a mistake of ours."""


class BlockAllocator:
    """Free blocks, and for each sequence the table of those it holds, in the order of its tokens."""

    def __init__(self, *, num_blocks: int, block_tokens: int) -> None:
        self.num_blocks = num_blocks
        self.block_tokens = block_tokens
        self._free = list(range(num_blocks - 1, -1, -1))
        self._tables: dict[CallKey, tuple[int, ...]] = {}
        self.num_touched = 0  # blocks that were ever used: those used last are used first again

    @property
    def num_free(self) -> int:
        """Blocks that nobody holds."""
        return len(self._free)

    @property
    def num_used(self) -> int:
        """Blocks in tables."""
        return self.num_blocks - len(self._free)

    def blocks_for(self, num_tokens: int) -> int:
        """Blocks that so many tokens of one sequence fill."""
        return -(-num_tokens // self.block_tokens)

    def allocate(self, key: CallKey, num_tokens: int) -> bool:
        """Let the table of a sequence cover its first `num_tokens` tokens.

        All or nothing: on False no block has moved and the caller may preempt. Cost O(blocks added), nothing where the
        table is long enough already.
        """
        table = self._tables.get(key, ())
        missing = self.blocks_for(num_tokens) - len(table)
        if missing > len(self._free):
            return False
        if missing > 0:
            self._tables[key] = table + tuple(self._free.pop() for _ in range(missing))
            self.num_touched = max(self.num_touched, self.num_used)
        return True

    def table(self, key: CallKey) -> tuple[int, ...]:
        """The blocks of a sequence; empty when it holds none."""
        return self._tables.get(key, ())

    def release(self, key: CallKey) -> None:
        """Take all blocks of a sequence back; nothing happens when it holds none."""
        self._free.extend(reversed(self._tables.pop(key, ())))

    def check(self) -> None:
        """Raises KVCacheCorruption unless every block is free or in one table, once."""
        held = [block for table in self._tables.values() for block in table]
        if sorted(held + self._free) != list(range(self.num_blocks)):
            raise KVCacheCorruption(f"{len(held)} blocks held and {len(self._free)} free do not make {self.num_blocks}")
