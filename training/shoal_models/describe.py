"""Reads off a model and its tokenizer what a manifest says of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

_SEQUENCE_HEAD = "ForSequenceClassification"
_TOKEN_HEAD = "ForTokenClassification"  # noqa: S105
_NEXT_SENTENCE_HEAD = "ForNextSentencePrediction"
_NEXT_SENTENCE_LABELS = ("is_next", "not_next")  # in the order of the pretraining of all of them
_GENERATORS = frozenset(
    name
    for names in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    for name in ((names,) if isinstance(names, str) else names)
)
_ENCODERS_AMONG_THEM = ("Bert", "Electra", "XLMRoberta", "Camembert", "Roberta", "Ernie")
_HEADS = {
    "single_label_classification": "single_label",
    "multi_label_classification": "multi_label",
    "regression": "regression",
}
_LENGTH_KEYS = ("max_position_embeddings", "n_positions", "max_sequence_length", "seq_length")
_GROWING_ROPES = ("dynamic", "longrope")
_UNLIMITED_TOKENS = 32768  # for architectures without a limit of their own
_TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<|end_of_text|>", "<|endoftext|>")


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """Fields of a manifest; see there."""

    family: str
    architecture: str
    head: str
    labels: tuple[str, ...]
    max_tokens: int
    vocabulary_size: int
    chat: bool
    eos_token_ids: tuple[int, ...]


def kind_of(architecture: str) -> str:
    """What a model of this class can be asked for: "classifier", "generator" or "base"."""
    if architecture.endswith((_SEQUENCE_HEAD, _TOKEN_HEAD, _NEXT_SENTENCE_HEAD)):
        return "classifier"
    is_encoder = architecture.startswith(_ENCODERS_AMONG_THEM)
    return "generator" if architecture in _GENERATORS and not is_encoder else "base"


def describe(model: Any, tokenizer: Any, kind: str) -> Description:
    """Everything that model and tokenizer tell."""
    config = model.config
    return Description(
        family=_family(config, type(model).__name__),
        architecture=type(model).__name__,
        head=head_of(model) if kind == "classifier" else "",
        labels=labels_of(model) if kind == "classifier" else (),
        max_tokens=max_tokens_of(model, tokenizer),
        vocabulary_size=int(config.get_text_config().vocab_size),
        chat=kind == "generator" and bool(getattr(tokenizer, "chat_template", None)),
        eos_token_ids=_ends_of(model, tokenizer, kind),
    )


def labels_of(model: Any) -> tuple[str, ...]:
    """Names by label id."""
    config = model.config
    if has_next_sentence_head(type(model).__name__):  # its two outputs are no matter of the configuration
        names = tuple(str(name) for _, name in sorted(config.id2label.items()))
        return names if len(names) == 2 and "LABEL_0" not in names else _NEXT_SENTENCE_LABELS
    return tuple(str(config.id2label[i]) for i in range(int(config.num_labels)))


def head_of(model: Any) -> str:
    """What the logits of a classifier mean."""
    architecture = type(model).__name__
    if has_token_head(architecture):
        return "token"
    if has_next_sentence_head(architecture):
        return "single_label"
    default = "regression" if int(model.config.num_labels) == 1 else "single_label"
    return _HEADS.get(getattr(model.config, "problem_type", None) or "", default)


def has_token_head(architecture: str) -> bool:
    """Whether models of this class label every token."""
    return architecture.endswith(_TOKEN_HEAD)


def has_next_sentence_head(architecture: str) -> bool:
    """Whether models of this class tell if the second text follows the first."""
    return architecture.endswith(_NEXT_SENTENCE_HEAD)


def max_tokens_of(model: Any, tokenizer: Any) -> int:
    """Most tokens of one sequence: what positions allow, and what the tokenizer was made for."""
    config = model.config
    limits = [
        int(value) for name in _LENGTH_KEYS if isinstance(value := getattr(config, name, None), int) and value > 0
    ]
    limit = limits[0] if limits else _UNLIMITED_TOKENS
    table = getattr(getattr(model.base_model, "embeddings", None), "position_embeddings", None)
    padding_id = getattr(table, "padding_idx", None)
    if padding_id is not None:
        limit -= int(padding_id) + 1  # RoBERTa and its kin begin to count behind the padding id
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") in _GROWING_ROPES:
        limit = min(limit, int(rope.get("original_max_position_embeddings") or limit))
    wanted = getattr(tokenizer, "model_max_length", None)
    return min(limit, int(wanted)) if isinstance(wanted, int | float) and 1 < wanted < 10**9 else limit


def eos_token_ids_of(model: Any, tokenizer: Any) -> tuple[int, ...]:
    """Every id after which generation ends, sorted: by configurations, tokenizer, and its chat's end of turn."""
    found: set[int] = set()
    for holder in (getattr(model, "generation_config", None), model.config):
        value = getattr(holder, "eos_token_id", None)
        found.update(value if isinstance(value, list | tuple) else [] if value is None else [value])
    if tokenizer.eos_token_id is not None:
        found.add(int(tokenizer.eos_token_id))
    template = getattr(tokenizer, "chat_template", None)
    texts = template.values() if isinstance(template, dict) else [template or ""]
    vocabulary = tokenizer.get_vocab()
    found.update(vocabulary[end] for end in _TURN_ENDS if end in vocabulary and any(end in text for text in texts))
    return tuple(sorted(token for token in found if 0 <= token < int(model.config.vocab_size)))


def end_id_of(config: Any) -> int | None:
    """The token that every sequence of an encoder-decoder's classifier must end with, since it reads there."""
    end_id = getattr(config, "eos_token_id", None)
    return end_id if config.is_encoder_decoder and isinstance(end_id, int) else None


def _ends_of(model: Any, tokenizer: Any, kind: str) -> tuple[int, ...]:
    if kind == "generator":
        return eos_token_ids_of(model, tokenizer)
    end_id = end_id_of(model.config) if kind == "classifier" else None
    return () if end_id is None else (end_id,)


def _family(config: Any, architecture: str) -> str:
    if getattr(config, "is_encoder_decoder", False):
        return "encoder_decoder"
    if kind_of(architecture) == "generator" or getattr(config, "is_decoder", False):
        return "decoder"
    names = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type, ())
    causal = (names,) if isinstance(names, str) else tuple(names)
    return "decoder" if any(kind_of(name) == "generator" for name in causal) else "encoder"
