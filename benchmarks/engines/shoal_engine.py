"""Shoal's own execution of a classifier: packed rows as the batcher plans them, through `LoadedClassifier.logits`."""

from __future__ import annotations

import argparse
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

import torch
from shoal_models.load import LoadedClassifier, load_version
from shoal_models.manifest import read_manifest
from shoal_models.packed import pack

from benchmarks.engines import work

DEVICE = torch.device("cpu")


def main() -> int:
    """Serve lines on standard input."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--version", type=Path, required=True, help="version folder")
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--texts", type=Path, required=True)
    parser.add_argument("--checked", type=int, required=True)
    options = parser.parse_args()
    dtype = getattr(torch, options.dtype)
    model = load_version(options.version, read_manifest(options.version), dtype=dtype, device=DEVICE)
    assert isinstance(model, LoadedClassifier)

    def make(threads: int) -> work.Forward:
        settled = threading.local()

        def forward(batch: list[list[int]]) -> Sequence[Sequence[float]]:
            if not hasattr(settled, "done"):
                torch.set_num_threads(threads)  # of this thread alone
                settled.done = True
            found: list[list[float]] = model.logits(pack(batch, device=DEVICE)).softmax(dim=-1).tolist()
            return found

        return forward

    work.serve(options.texts, options.checked, work.by_budget, make)
    return 0


if __name__ == "__main__":
    sys.exit(main())
