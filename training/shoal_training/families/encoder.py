"""BERT-like encoders."""

from __future__ import annotations

from shoal_training.families.pretrained import Family

FAMILY = Family(
    name="encoder",
    dropout_keys=(
        "hidden_dropout_prob",
        "attention_probs_dropout_prob",
        "classifier_dropout",
        "dropout",
        "attention_dropout",
        "seq_classif_dropout",
        "embedding_dropout",
        "mlp_dropout",
    ),
)
