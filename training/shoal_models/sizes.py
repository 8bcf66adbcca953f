"""Few sizes, to which numbers of rows are rounded up: oneDNN compiles and keeps a kernel for each that it meets."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

_FINE_FROM = 256  # from here on a kernel costs less than the padding that it saves
_FINE_STEP = 16
_COARSE_FROM = 1024  # oneDNN keeps 1,024 kernels, and a model needs several for each size
_COARSE_STEP = 32


def few_sizes(count: int) -> int:
    """The next of 1 to 8, 10, 12, 14, 16, 20 ..., four an octave; from 256 on in steps of 16, from 1,024 on of 32."""
    if count > _COARSE_FROM:
        step = _COARSE_STEP
    elif count > _FINE_FROM:
        step = _FINE_STEP
    else:
        step = max(1, 1 << max((count - 1).bit_length() - 3, 0))
    return -(-count // step) * step


def filled_up(rows_TI: Tensor) -> Tensor:
    """The rows and as many of zeros behind them as make their number one of the few."""
    padding = few_sizes(len(rows_TI)) - len(rows_TI)
    return F.pad(rows_TI, (0, 0, 0, padding)) if padding else rows_TI
