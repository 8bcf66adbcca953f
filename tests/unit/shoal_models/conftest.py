"""A small tokenizer, and versions of tiny models."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import transformers as tf
from shoal_models.save import publish_model
from tiny_models import VOCABULARY, Published, draft
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """A byte-level BPE tokenizer of 120 ids with the usual special tokens."""
    plain = Tokenizer(models.BPE())
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())[:100]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=special, initial_alphabet=letters, show_progress=False
    )
    plain.train_from_iterator(["the quick brown fox jumps over the lazy dog"] * 3, trainer)
    plain.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]"
    )


@pytest.fixture
def publish(tmp_path: Path, tokenizer: Any) -> Callable[..., Published]:
    """Publishes a model into a repository of the test's own."""

    def publish_tiny(model: Any, kind: str, *, name: str = "tiny", weight_dtype: str = "float32") -> Published:
        manifest = publish_model(model, tokenizer, tmp_path / "models", draft(name, kind, weight_dtype))
        return Published(path=tmp_path / "models" / name / str(manifest.version), manifest=manifest, model=model)

    return publish_tiny
