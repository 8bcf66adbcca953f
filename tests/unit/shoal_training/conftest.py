"""Tiny random models with a word tokenizer, tiny data, and job folders around them."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from shoal_training.places import Places
from shoal_training.resolve import resolve

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


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of tiny random models: bert, llama and gpt2."""
    import torch
    from transformers import (
        BertConfig,
        BertModel,
        GPT2Config,
        GPT2LMHeadModel,
        LlamaConfig,
        LlamaForCausalLM,
    )

    root = tmp_path_factory.mktemp("bases")
    torch.manual_seed(0)
    size = {"vocab_size": len(SPECIAL + WORDS), "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    eos = {"eos_token_id": 3, "bos_token_id": 3, "pad_token_id": 0}
    models = {
        "bert": BertModel(BertConfig(**size, intermediate_size=64, max_position_embeddings=64, pad_token_id=0)),
        "llama": LlamaForCausalLM(LlamaConfig(**size, intermediate_size=64, max_position_embeddings=64, **eos)),
        "gpt2": GPT2LMHeadModel(
            GPT2Config(vocab_size=size["vocab_size"], n_embd=32, n_layer=2, n_head=4, n_positions=64, **eos)
        ),
    }
    for name, model in models.items():
        model.save_pretrained(root / name)
        save_tokenizer(root / name, decoder=name != "bert")
    return {name: root / name for name in models}


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


@pytest.fixture
def make_job(tmp_path: Path, bases: dict[str, Path]) -> MakeJob:
    """Makes a job folder: `base` is bert, llama or gpt2; other keywords are fields of the spec."""

    def make(base: str = "bert", *, folder: str = "job", repository: Path | None = None, **fields: Any) -> JobFolder:
        data = tmp_path / "train.csv"
        if not data.exists():
            write_csv(data, classification_rows(64))
        objective = "sequence_classification" if base == "bert" else "causal_lm"
        tree = {
            "name": "tiny",
            "base": {"path": str(bases[base])},
            "objective": objective,
            "data": {"train": str(data), "validation_fraction": 0.25},
            "batch_size": 8,
            "max_len": 16,
            "epochs": 2,
            "learning_rate": 3e-3,
            **fields,
        }
        repository = repository or tmp_path / "models"
        places = Places(repository=repository, data_roots=(Path("/"),), dataset_dir=None)
        path = tmp_path / folder
        path.mkdir()
        order = {
            "job_id": f"job-{folder}",
            "spec": resolve(tree, places).to_tree(),
            "repository": str(repository),
            "dataset_dir": None,
            "data_roots": ["/"],
            "attempt": 1,
            "num_threads": 1,
        }
        (path / "job.json").write_text(json.dumps(order))
        return JobFolder(path=path, repository=repository)

    return make
