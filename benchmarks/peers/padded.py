"""The model as the peers run it: a padded batch through transformers. Imported inside a peer's own environment.

What a competent user of those tools writes: inference mode, the asked number type, truncation at the model's limit,
padding to the longest text of the batch. Texts are not sorted by length, since none of the tools does so by itself.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from benchmarks.peers.served import Served


class PaddedClassifier:
    """One copy of the model, called by one thread at a time."""

    def __init__(self, served: Served) -> None:
        torch.set_num_threads(served.threads)
        self._tokenizer: Any = AutoTokenizer.from_pretrained(served.folder)
        model: Any = AutoModelForSequenceClassification.from_pretrained(
            served.folder, dtype=getattr(torch, served.dtype)
        )
        self._model = model.eval()

    def scores(self, texts: list[str]) -> list[list[float]]:
        """Probabilities of the labels, in their order, for each text."""
        encoded = self._tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
        with torch.inference_mode():
            logits = self._model(**encoded).logits
        found: list[list[float]] = logits.float().softmax(dim=-1).tolist()
        return found
