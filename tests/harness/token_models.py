"""Tiny token-classification models with random weights, tokenizers of each kind, and texts that are hard on them.

What a front makes of a model's logits is compared with transformers' own pipeline over the same model.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from shoal_models.manifest import FileEntry, Manifest

LABELS = ("O", "B-PER", "I-PER", "B-LOC", "I-LOC", "MISC", "I-MISC", "X-Y")
KINDS = ("wordpiece", "byte", "metaspace")
MAX_TOKENS = 96
_SAMPLE = (
    "Alice Müller flew from Zürich to New York; Bob's dog, Rex, stayed in São Paulo. 東京は晴れ 🙂👍🏽 naïve café 3.14 "
    "e-mail the quick brown fox jumps over the lazy dog while seven wizards brew coffee in an old town"
)
_RARE = (*"🙂éﬁ東x-Ω\u00a0\t\n\u200b", "👩\u200d👩\u200d👧", "e\u0301", "  ", "...", "[SEP]")


def texts(seed: int, count: int, longest: int = 14) -> list[str]:
    """Words of the sample, cut, glued and mixed with rare characters."""
    rng = random.Random(seed)
    words = _SAMPLE.split()

    def piece() -> str:
        word = rng.choice(words)
        return rng.choice([word, word, word[: rng.randint(1, len(word))], rng.choice(_RARE), word + rng.choice(_RARE)])

    made = [rng.choice(["", " "]).join(piece() for _ in range(rng.randint(1, 3))) for _ in range(count * longest)]
    return [" ".join(rng.sample(made, rng.randint(1, longest))) for _ in range(count)]


def _core(kind: str) -> Any:
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    corpus = [" ".join(_SAMPLE.split()[i:]) for i in range(20)]
    options: dict[str, Any] = {"vocab_size": 320, "special_tokens": specials, "show_progress": False}
    if kind == "wordpiece":
        core = Tokenizer(models.WordPiece(unk_token="[UNK]"))
        core.normalizer = normalizers.BertNormalizer(lowercase=True)
        core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        trainer: Any = trainers.WordPieceTrainer(**options)
    elif kind == "byte":
        core = Tokenizer(models.BPE())
        core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        core.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), **options)
    else:
        core = Tokenizer(models.Unigram())
        core.normalizer = normalizers.NFKC()
        core.pre_tokenizer = pre_tokenizers.Metaspace()
        core.decoder = decoders.Metaspace()
        trainer = trainers.UnigramTrainer(unk_token="[UNK]", **options)
    core.train_from_iterator(corpus, trainer)
    if kind == "byte":
        core.post_processor = processors.RobertaProcessing(("[SEP]", 3), ("[CLS]", 2), add_prefix_space=False)
    else:
        core.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    return core


def tokenizer(kind: str) -> Any:
    """As transformers wraps it."""
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=_core(kind),
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=MAX_TOKENS,
        model_input_names=["input_ids", "attention_mask"],
    )


def model(kind: str, vocabulary_size: int, *, seed: int = 0) -> Any:
    """A model whose logits differ from token to token: BERT for WordPiece, RoBERTa for bytes, DeBERTa for Metaspace."""
    import torch
    import transformers as t

    torch.manual_seed(seed)
    shared: dict[str, Any] = {
        "vocab_size": vocabulary_size,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 16,
        "pad_token_id": 0,
        "id2label": dict(enumerate(LABELS)),
        "label2id": {name: i for i, name in enumerate(LABELS)},
    }
    if kind == "wordpiece":
        made: Any = t.BertForTokenClassification(t.BertConfig(**shared, max_position_embeddings=MAX_TOKENS))
    elif kind == "byte":  # positions begin after the padding id
        made = t.RobertaForTokenClassification(t.RobertaConfig(**shared, max_position_embeddings=MAX_TOKENS + 1))
    else:
        made = t.DebertaV2ForTokenClassification(t.DebertaV2Config(**shared, max_position_embeddings=MAX_TOKENS))
    with torch.no_grad():
        for weight in made.parameters():
            if weight.dim() > 1:
                weight.normal_(0.0, 0.4)
    return made.eval()


def save(kind: str, folder: Path) -> Path:
    """Write such a model with its tokenizer as a transformers folder and return it."""
    wrapped = tokenizer(kind)
    model(kind, len(wrapped)).save_pretrained(folder)
    wrapped.save_pretrained(folder)
    return folder


def logits(network: Any, ids: list[int]) -> NDArray[np.float32]:
    """One row for each token."""
    import torch

    with torch.no_grad():
        return np.asarray(network(input_ids=torch.tensor([ids])).logits[0].numpy(), dtype=np.float32)


def write_version(repository: Path, wrapped: Any) -> Path:
    """A version folder as far as fronts read it."""
    folder = repository / "ner" / "1"
    wrapped.save_pretrained(folder)
    files = [
        FileEntry(path=path.name, size_bytes=path.stat().st_size, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
        for path in sorted(folder.iterdir())
        if path.name in ("tokenizer.json", "tokenizer_config.json")
    ]
    manifest = Manifest(
        model="ner",
        version=1,
        kind="classifier",
        family="encoder",
        architecture="BertForTokenClassification",
        head="token",
        labels=LABELS,
        max_tokens=MAX_TOKENS,
        vocabulary_size=len(wrapped),
        weight_dtype="float32",
        files=tuple(files),
    )
    (folder / "manifest.json").write_text(json.dumps(dataclasses.asdict(manifest)))
    return folder
