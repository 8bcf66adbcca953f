"""Few sizes, to which numbers of rows are rounded up: oneDNN compiles and keeps a kernel for each that it meets."""

from __future__ import annotations

_FINE_FROM = 256  # from here on a kernel costs less than the padding that it saves
_FINE_STEP = 32


def few_sizes(count: int) -> int:
    """The next of 1 to 8, 10, 12, 14, 16, 20 ..., four an octave; from 256 on in steps of 32."""
    step = max(1, 1 << max((count - 1).bit_length() - 3, 0)) if count <= _FINE_FROM else _FINE_STEP
    return -(-count // step) * step
