"""transformers alone, one text after the other in a loop: what a request costs at least when nobody serves it.

Tokenizing is included, everything else that a server does is not. Tries each number of threads up to the cores, and
prints the measures as JSON.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

import msgspec
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from benchmarks import news
from benchmarks.records import Load, Measure
from benchmarks.summary import percentiles


def main(arguments: list[str] | None = None) -> int:
    """Measure; the measures go to standard output."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bare", description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="transformers folder")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), required=True)
    parser.add_argument("--seconds", type=float, default=5.0, help="for each number of threads (default %(default)s)")
    parser.add_argument("--round", type=int, default=0, help="begins elsewhere in the texts (default %(default)s)")
    options = parser.parse_args(arguments)
    tokenizer: Any = AutoTokenizer.from_pretrained(options.model)
    model: Any = AutoModelForSequenceClassification.from_pretrained(options.model, dtype=getattr(torch, options.dtype))
    texts = news.ensure().in_round(options.round)
    found = []
    for threads in range(1, len(os.sched_getaffinity(0)) + 1):
        torch.set_num_threads(threads)
        _loop(tokenizer, model.eval(), texts, 1.0)
        found.append(_measure(_loop(tokenizer, model, texts, options.seconds), options.seconds))
    sys.stdout.buffer.write(msgspec.json.encode(min(found, key=lambda measure: measure.p50_s or 0.0)) + b"\n")
    return 0


def _loop(tokenizer: Any, model: Any, texts: tuple[str, ...], seconds: float) -> list[float]:
    """Seconds that each text took."""
    taken: list[float] = []
    end = time.perf_counter() + seconds
    with torch.inference_mode():
        while (began := time.perf_counter()) < end:
            encoded = tokenizer(texts[len(taken) % len(texts)], truncation=True, return_tensors="pt")
            model(**encoded).logits.float().softmax(dim=-1).tolist()
            taken.append(time.perf_counter() - began)
    return taken


def _measure(taken_s: list[float], seconds: float) -> Measure:
    found = percentiles(taken_s)
    return Measure(
        load=Load(in_flight=1, warmup_s=1.0, duration_s=seconds),
        rate=len(taken_s) / sum(taken_s),
        num_calls=len(taken_s),
        p50_s=found.p50_s,
        p95_s=found.p95_s,
        p99_s=found.p99_s,
    )


if __name__ == "__main__":
    raise SystemExit(main())
