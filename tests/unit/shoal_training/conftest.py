"""Fixtures: tiny random models and job folders around them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from shoal_training.places import Places
from shoal_training.resolve import resolve
from tiny_jobs import SPECIAL, WORDS, JobFolder, MakeJob, classification_rows, save_tokenizer, write_csv


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread makes resumed runs bit-exact, and quick on a busy machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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
