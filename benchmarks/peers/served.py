"""What a peer's server is told, through its environment; read on the other side of an interpreter. Knows no torch."""

from __future__ import annotations

import dataclasses
import json
import os
from dataclasses import dataclass

VARIABLE = "PEER_SETTINGS"


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A model and how to serve it."""

    folder: str  # of the model, as transformers writes it
    dtype: str  # "float32" or "bfloat16"
    threads: int  # of torch in one worker
    workers: int  # processes, or replicas, that hold the model; 0: in the front's own process
    max_batch: int  # texts
    delay_ms: float  # that a text waits for company at most
    port: int  # on 127.0.0.1


def write_served(served: Served) -> dict[str, str]:
    """As variables of an environment."""
    return {VARIABLE: json.dumps(dataclasses.asdict(served))}


def read_served() -> Served:
    """From this process's environment."""
    return Served(**json.loads(os.environ[VARIABLE]))
