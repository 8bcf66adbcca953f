"""Tiny data, a word tokenizer, and what tests read from a job folder."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WORDS = [f"w{index}" for index in range(40)]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFolder:
    """A job folder and what a test wants to read from it."""

    path: Path
    repository: Path

    def events(self, kind: str | None = None) -> list[dict[str, Any]]:
        lines = (self.path / "events.jsonl").read_text().splitlines()
        return [event for event in map(json.loads, lines) if kind in (None, event["kind"])]

    def states(self) -> list[str]:
        return [event["state"] for event in self.events("state")]

    def result(self) -> dict[str, Any]:
        return json.loads((self.path / "result.json").read_text())

    def version(self, number: int = 1) -> Path:
        order = json.loads((self.path / "job.json").read_text())
        return self.repository / order["spec"]["name"] / str(number)


def save_tokenizer(folder: Path, *, decoder: bool) -> None:
    """A word-level tokenizer: encoders frame a text with [CLS] and [SEP]."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    vocabulary = {word: index for index, word in enumerate(SPECIAL + WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if not decoder:
        special = [("[CLS]", vocabulary["[CLS]"]), ("[SEP]", vocabulary["[SEP]"])]
        tokenizer.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=special
        )
    names = {"eos_token": "[SEP]"} if decoder else {"cls_token": "[CLS]", "sep_token": "[SEP]"}
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", pad_token="[PAD]", model_max_length=64, **names
    )
    fast.save_pretrained(folder)


def classification_rows(number: int, seed: int = 0) -> list[tuple[str, str]]:
    """Texts of 3 to 12 words; the label says whether w0 to w9 or w10 to w19 lead them."""
    chooser = random.Random(seed)
    rows = []
    for index in range(number):
        kind = index % 2
        leading = chooser.sample(WORDS[10 * kind : 10 * kind + 10], 2)
        text = " ".join(leading + chooser.choices(WORDS[20:], k=chooser.randint(1, 10)))
        rows.append((text, ("animal", "plant")[kind]))
    return rows


def write_csv(path: Path, rows: list[tuple[str, str]]) -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows(rows)
    return path


MakeJob = Callable[..., JobFolder]
