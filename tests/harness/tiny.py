"""Tiny models with random weights, as transformers folders, and the texts to try them on.

Their weights are drawn wider than transformers would, so that logits differ enough for comparisons to mean something.
"""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from harness import tiny_encoders

SENTENCE = (
    "the quick brown fox jumps over a lazy dog while seven wizards quietly brew strong coffee in an old town and "
    "nobody asks why rain keeps falling on green hills markets rise fall trade ministers speak players score late goals"
)
WORDS = tuple(SENTENCE.split())
ENCODERS = ("bert", "roberta", "distilbert")
DECODERS = ("gpt2", "llama", "qwen2")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def text(rng: random.Random, num_words: int) -> str:
    """Made-up text of so many words."""
    return " ".join(rng.choice(WORDS) for _ in range(num_words))


def texts(seed: int, count: int, longest: int = 40) -> list[str]:
    """Texts of 1 to `longest` words."""
    rng = random.Random(seed)
    return [text(rng, rng.randint(1, longest)) for _ in range(count)]


def _corpus() -> list[str]:
    return texts(0, 400)


def wordpiece_tokenizer(*, type_ids: bool) -> Any:
    """A WordPiece tokenizer like BERT's, or without type ids like DistilBERT's."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    core.normalizer = normalizers.BertNormalizer(lowercase=True)
    core.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    specials = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    core.train_from_iterator(
        _corpus(), trainers.WordPieceTrainer(vocab_size=300, special_tokens=specials, show_progress=False)
    )
    cls, sep = core.token_to_id("[CLS]"), core.token_to_id("[SEP]")
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", cls), ("[SEP]", sep)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="[UNK]",
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_input_names=["input_ids", *(["token_type_ids"] if type_ids else []), "attention_mask"],
    )


def byte_tokenizer(*, roberta: bool = False) -> Any:
    """A byte-level BPE tokenizer, like GPT-2's or RoBERTa's."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    specials = ["<s>", "<pad>", "</s>", "<|user|>", "<|assistant|>", "<|system|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=specials, initial_alphabet=alphabet, show_progress=False
    )
    core.train_from_iterator(_corpus(), trainer)
    if roberta:
        core.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        **({"cls_token": "<s>", "sep_token": "</s>"} if roberta else {}),
    )
    if not roberta:
        fast.chat_template = CHAT_TEMPLATE
    return fast


def _encoder(kind: str, head: str, num_labels: int, problem: str) -> tuple[Any, Any]:
    has_types = kind in tiny_encoders.WITH_TOKEN_TYPES
    tokenizer = byte_tokenizer(roberta=True) if kind == "roberta" else wordpiece_tokenizer(type_ids=has_types)
    return tiny_encoders.encoder(kind, tokenizer, head=head, num_labels=num_labels, problem=problem), tokenizer


def _decoder(kind: str) -> tuple[Any, Any]:
    import transformers as t

    tokenizer = byte_tokenizer()
    shared: dict[str, Any] = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1}
    wide = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 64,
    }
    if kind == "gpt2":
        return t.GPT2LMHeadModel(t.GPT2Config(**shared, n_embd=32, n_layer=2, n_head=4, n_positions=256)), tokenizer
    if kind == "llama":
        return t.LlamaForCausalLM(t.LlamaConfig(**shared, **wide, max_position_embeddings=256)), tokenizer
    return t.Qwen2ForCausalLM(t.Qwen2Config(**shared, **wide, max_position_embeddings=256)), tokenizer


def make(
    kind: str,
    folder: Path,
    *,
    seed: int = 0,
    num_labels: int = 3,
    problem: str = "single_label_classification",
    head: str = "sequence",
) -> Path:
    """Write a tiny model of `kind`, one of `DECODERS` or `tiny_encoders.ARCHITECTURES`, as a transformers folder.

    The `head` of an encoder is one of `tiny_encoders.HEADS`.
    """
    import torch

    torch.manual_seed(seed)
    is_encoder = kind in tiny_encoders.ARCHITECTURES
    model, tokenizer = _encoder(kind, head, num_labels, problem) if is_encoder else _decoder(kind)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() > 1 and "position" not in name:
                weight.normal_(0.0, 0.25)
    if is_encoder and head != "next-sentence":
        model.config.id2label = {i: f"label-{i}" for i in range(num_labels)}
        model.config.label2id = {f"label-{i}": i for i in range(num_labels)}
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
