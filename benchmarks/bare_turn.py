"""The turn of transformers without a server, in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import msgspec

from benchmarks import folders
from benchmarks.records import Measure, Turn
from benchmarks.turns import Slot, failed

BARE = "transformers"


def take(slot: Slot) -> Turn:
    """Measure one text after the other."""
    load = slot.loads[0]
    command = [sys.executable, "-m", "benchmarks.bare", "--model", str(folders.ensure_classifier())]
    command += ["--dtype", slot.dtype, "--round", str(slot.round), "--seconds", str(load.duration_s)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return failed(slot, done.stderr[-500:])
    measure = msgspec.json.decode(done.stdout.splitlines()[-1], type=Measure)
    return Turn(
        part=slot.part,
        dtype=slot.dtype,
        round=slot.round,
        name=slot.name,
        described="a bare forward in a loop, tokenizing included; the better number of threads",
        measures=(measure,),
    )
