"""`python -m benchmarks COMMAND ...`."""

from __future__ import annotations

import importlib
import sys

COMMANDS = {
    "front-budget": "benchmarks.front_budget",
    "gpu": "benchmarks.gpu_classify",
    "loadgen": "benchmarks.cli",
    "naive-server": "benchmarks.naive_server",
    "side-by-side": "benchmarks.side_by_side",
    "sweep": "benchmarks.peers.sweep",
    "swaps": "benchmarks.swap_benchmark",
}

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        sys.exit(f"usage: python -m benchmarks {'|'.join(COMMANDS)} ...")
    sys.exit(importlib.import_module(COMMANDS[sys.argv[1]]).main(sys.argv[2:]))
