"""The device of the tests in this folder.

A GPU; or what SHOAL_TEST_DEVICE names, so that `SHOAL_TEST_DEVICE=cpu` shows on any machine that the tests themselves
run. Captured forwards are then ordinary ones.
"""

from __future__ import annotations

import os

import pytest
import torch

DEVICE = torch.device(os.environ.get("SHOAL_TEST_DEVICE", "cuda"))
IS_GPU = DEVICE.type == "cuda"
MARKS = [
    pytest.mark.gpu,
    pytest.mark.skipif(IS_GPU and not torch.cuda.is_available(), reason="this machine has no CUDA device"),
]
