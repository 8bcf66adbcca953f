"""Tiny random models of many architectures, made from transformers' configurations."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from shoal_models.load import LoadedClassifier, LoadedGenerator, load_version
from shoal_models.manifest import Manifest

CPU = torch.device("cpu")
VOCABULARY = 120
_ENCODER: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 160,
    "num_labels": 3,
    "initializer_range": 0.4,
}
_DECODER: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 160,
    "initializer_range": 0.4,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_SPECIALS: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
CLASSIFIERS: dict[str, Callable[[], Any]] = {
    "Bert": lambda: tf.BertConfig(**_ENCODER),
    "Roberta": lambda: tf.RobertaConfig(**_ENCODER, type_vocab_size=1),
    "XLMRoberta": lambda: tf.XLMRobertaConfig(**_ENCODER, type_vocab_size=1),
    "DistilBert": lambda: tf.DistilBertConfig(
        vocab_size=VOCABULARY,
        dim=32,
        n_layers=3,
        n_heads=4,
        hidden_dim=48,
        max_position_embeddings=160,
        num_labels=3,
        initializer_range=0.4,
    ),
    "Electra": lambda: tf.ElectraConfig(**_ENCODER, embedding_size=16),
    "Albert": lambda: tf.AlbertConfig(**_ENCODER, embedding_size=16),
    "ModernBert": lambda: modern_bert_config("mean"),
    "MPNet": lambda: tf.MPNetConfig(**_ENCODER),
    "DebertaV2": lambda: tf.DebertaV2Config(
        **_ENCODER,
        relative_attention=True,
        pos_att_type=["p2c", "c2p"],
        position_buckets=8,
        max_relative_positions=-1,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        conv_kernel_size=3,
        position_biased_input=False,
        type_vocab_size=0,
    ),
}
OTHER_CLASSIFIERS: dict[str, Callable[[], Any]] = {
    "Deberta": lambda: tf.DebertaConfig(
        **_ENCODER, relative_attention=True, pos_att_type=["p2c", "c2p"], type_vocab_size=0
    ),
    "XLNet": lambda: tf.XLNetConfig(
        vocab_size=VOCABULARY,
        d_model=32,
        n_layer=2,
        n_head=4,
        d_inner=48,
        num_labels=3,
        initializer_range=0.4,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "GPT2": lambda: tf.GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=160,
        num_labels=3,
        initializer_range=0.4,
        **_SPECIALS,
    ),
    "Llama": lambda: tf.LlamaConfig(**_DECODER, num_labels=3),
    "Qwen2": lambda: tf.Qwen2Config(**_DECODER, num_labels=3),
    "BigBird": lambda: tf.BigBirdConfig(**_ENCODER, **_SPECIALS, block_size=4, num_random_blocks=1),
    "FNet": lambda: tf.FNetConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        intermediate_size=48,
        max_position_embeddings=160,
        num_labels=3,
        initializer_range=0.4,
        **_SPECIALS,
    ),
    "Funnel": lambda: tf.FunnelConfig(
        vocab_size=VOCABULARY,
        d_model=32,
        block_sizes=[1, 1],
        n_head=4,
        d_head=8,
        d_inner=48,
        num_labels=3,
        initializer_std=0.4,
        pad_token_id=0,
    ),
    "T5": lambda: tf.T5Config(
        vocab_size=VOCABULARY,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        num_labels=3,
        initializer_factor=1.0,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=2,
    ),
    "Bart": lambda: tf.BartConfig(
        vocab_size=VOCABULARY,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_position_embeddings=160,
        num_labels=3,
        init_std=0.4,
        decoder_start_token_id=2,
        **_SPECIALS,
    ),
}


def modern_bert_config(pooling: str) -> Any:
    """A ModernBERT of local and global layers, its sequence head on the mean or on the first token ("cls")."""
    return tf.ModernBertConfig(
        **_ENCODER,
        **_SPECIALS,
        cls_token_id=1,
        sep_token_id=2,
        local_attention=8,
        global_attn_every_n_layers=2,
        classifier_pooling=pooling,
    )


GENERATORS: dict[str, Callable[[], Any]] = {
    "GPT2LMHeadModel": lambda: tf.GPT2Config(
        vocab_size=VOCABULARY,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=160,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "LlamaForCausalLM": lambda: tf.LlamaConfig(**_DECODER),
    "Qwen2ForCausalLM": lambda: tf.Qwen2Config(**_DECODER),
    "Qwen3ForCausalLM": lambda: tf.Qwen3Config(**_DECODER, head_dim=8),
    "MistralForCausalLM": lambda: tf.MistralConfig(**_DECODER, sliding_window=6),
    "Gemma2ForCausalLM": lambda: tf.Gemma2Config(**_DECODER, head_dim=8, sliding_window=6),
}


def tiny_model(architecture: str, config: Any, seed: int = 0) -> Any:
    """Random weights, in float32 and eval mode."""
    torch.manual_seed(seed)
    return getattr(tf, architecture)(config).eval()


def draft(name: str, kind: str, weight_dtype: str = "float32") -> Manifest:
    """A manifest in which everything that can be read off a model is left out."""
    return Manifest(
        model=name,
        version=0,
        kind=kind,
        family="",
        architecture="",
        max_tokens=0,
        vocabulary_size=0,
        weight_dtype=weight_dtype,
    )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Published:
    """A version and the model it was made from."""

    path: Path
    manifest: Manifest
    model: Any

    def load(self, dtype: torch.dtype = torch.float32) -> LoadedClassifier | LoadedGenerator:
        """The version, as an engine has it."""
        return load_version(self.path, self.manifest, dtype=dtype, device=CPU)
