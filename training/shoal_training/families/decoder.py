"""GPT-like decoders."""

from __future__ import annotations

from shoal_training.families.pretrained import Family

FAMILY = Family(
    name="decoder",
    dropout_keys=("resid_pdrop", "embd_pdrop", "attn_pdrop", "attention_dropout", "hidden_dropout", "dropout"),
)
