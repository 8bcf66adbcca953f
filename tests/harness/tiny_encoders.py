"""Tiny encoders of many architectures, with heads of every kind that exists for them."""

from __future__ import annotations

from typing import Any

ARCHITECTURES = {
    "bert": "Bert",
    "roberta": "Roberta",
    "distilbert": "DistilBert",
    "electra": "Electra",
    "albert": "Albert",
    "modernbert": "ModernBert",
    "mpnet": "MPNet",
    "deberta-v2": "DebertaV2",
}
HEADS = {
    "sequence": "ForSequenceClassification",
    "token": "ForTokenClassification",
    "next-sentence": "ForNextSentencePrediction",
}
WITH_TOKEN_TYPES = ("bert", "electra", "albert")
_WIDE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
_DISTIL = {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48}


def encoder(kind: str, tokenizer: Any, *, head: str, num_labels: int, problem: str) -> Any:
    """A model of `kind` for the vocabulary of `tokenizer`, its weights as transformers draws them."""
    import transformers

    config_class = getattr(transformers, f"{ARCHITECTURES[kind]}Config")
    config = config_class(
        vocab_size=len(tokenizer),
        num_labels=num_labels,
        pad_token_id=tokenizer.pad_token_id,
        problem_type=problem,
        **(_DISTIL if kind == "distilbert" else _WIDE),
        **_own_options(kind, tokenizer),
    )
    return getattr(transformers, ARCHITECTURES[kind] + HEADS[head])(config)


def _own_options(kind: str, tokenizer: Any) -> dict[str, Any]:
    if kind in {"roberta", "mpnet"}:  # positions begin behind the padding id, which is 1, in MPNet whatever is said
        return {"max_position_embeddings": 66, **({"type_vocab_size": 1} if kind == "roberta" else {})}
    options: dict[str, Any] = {"max_position_embeddings": 64}
    if kind in {"electra", "albert"}:
        options |= {"embedding_size": 16}
    if kind == "modernbert":
        special = {"cls_token_id": tokenizer.cls_token_id, "sep_token_id": tokenizer.sep_token_id}
        ends = {"bos_token_id": tokenizer.cls_token_id, "eos_token_id": tokenizer.sep_token_id}
        options |= {**special, **ends, "local_attention": 8, "global_attn_every_n_layers": 2}
    if kind == "deberta-v2":
        options |= {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8}
        options |= {"share_att_key": True, "norm_rel_ebd": "layer_norm", "position_biased_input": False}
        options |= {"type_vocab_size": 0}
    return options
