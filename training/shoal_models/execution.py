"""The ways in which a classifier's sequences can run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from shoal_models.heads import Reads
from shoal_models.padded import Side

Way = Literal["packed", "padded", "one by one"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """How sequences run together, and why not in a faster way."""

    way: Way
    why: str = ""  # for people; empty for packed rows, of which nothing is faster
    reads: Reads = "first"  # packed rows: what the head reads
    lean: bool = False  # packed rows: layers of our own stand in for transformers', see post_norm.py
    side: Side = "right"  # padded batches: where padding goes
    forward_tokens: int = 0  # padded batches: what a forward costs beside its tokens

    @property
    def text(self) -> str:
        """For people: "packed", "padded: <why>" or "one by one: <why>"."""
        return f"{self.way}: {self.why}" if self.why else self.way


ONE_BY_ONE = Execution(way="one by one")
