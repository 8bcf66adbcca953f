"""Golden outputs: logits recorded in float32 when a version was published, met again before it is served."""

from __future__ import annotations


class GoldenMismatch(Exception):
    """A loaded version does not compute what it computed when it was published; the message says where and by how much."""
