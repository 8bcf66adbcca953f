"""Whether a server answers what transformers answers: its scores against those of single forwards in float32."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import folders
from benchmarks.calls import Classifying
from benchmarks.news import Workload

NUM_CHECKED = 128
IN_FLIGHT = 32  # so that they meet in batches
TOLERANCES = {"float32": 1e-4, "bfloat16": 2e-2, "int8": 0.1}  # largest difference of a probability
MIN_AGREEMENT = {"float32": 1.0, "bfloat16": 0.97, "int8": 0.85}  # share of texts with the reference's best label
CLEAR_MARGIN = 1e-3  # between the two best labels of the reference; nearer ones may change places in any arithmetic


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What a comparison came to."""

    dtype: str
    count: int
    agreement: float  # share of texts with the same best label
    max_difference: float  # of a probability

    @property
    def passed(self) -> bool:
        """Whether both are within what the number type may do."""
        return self.max_difference <= TOLERANCES[self.dtype] and self.agreement >= MIN_AGREEMENT[self.dtype]

    def text(self) -> str:
        """Such as "100 %, 3e-07"."""
        return f"{self.agreement:.1%}, {self.max_difference:.0e}" + ("" if self.passed else " WRONG")


def compare(dtype: str, answers: Sequence[Sequence[float]], reference: Sequence[Sequence[float]]) -> Check:
    """Both hold probabilities of the labels for the same texts."""
    pairs = list(zip(answers, reference, strict=True))
    return Check(
        dtype=dtype,
        count=len(pairs),
        agreement=sum(_agree(found, wanted) for found, wanted in pairs) / len(pairs),
        max_difference=max(abs(a - b) for found, wanted in pairs for a, b in zip(found, wanted, strict=True)),
    )


def _agree(found: Sequence[float], wanted: Sequence[float]) -> bool:
    best = max(range(len(found)), key=found.__getitem__)
    return wanted[best] >= max(wanted) - CLEAR_MARGIN


async def check(caller: Classifying, dtype: str, workload: Workload, reference: Sequence[Sequence[float]]) -> Check:
    """Ask for the first texts, many at a time.

    Raises:
        CallFailed: one was not answered.
    """
    gate = asyncio.Semaphore(IN_FLIGHT)

    async def ask(text: str) -> list[float]:
        async with gate:
            return await caller.scores(text)

    count = min(NUM_CHECKED, len(reference))
    answers = await asyncio.gather(*(ask(text) for text in workload.texts[:count]))
    return compare(dtype, answers, reference[:count])


def ensure_reference(workload: Workload) -> list[list[float]]:
    """Probabilities of the first texts, one forward of transformers each, in float32; kept beside the workload."""
    path = folders.OUT / f"reference-{workload.digest}.json"
    if not path.exists():
        path.write_text(json.dumps(_reference(folders.ensure_classifier(), list(workload.texts[:NUM_CHECKED]))))
    found: list[list[float]] = json.loads(path.read_text())
    return found


def _reference(model: Path, texts: list[str]) -> list[list[float]]:
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    found: Any = AutoModelForSequenceClassification.from_pretrained(model).eval()
    with torch.inference_mode():
        return [
            found(**tokenizer(text, truncation=True, return_tensors="pt")).logits[0].softmax(dim=-1).tolist()
            for text in texts
        ]
