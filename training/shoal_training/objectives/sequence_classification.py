"""One label a row.

B rows of a batch, N rows in all, L labels.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from shoal_training.batches import Ids, TokenRow, batches_by_length, pad_batch, take_chunks
from shoal_training.data import Example
from shoal_training.evaluate import Evaluation, classification_evaluation
from shoal_training.objectives.interface import Check, Tokenized

_CHUNK_ROWS = 512
_EVALUATION_TOKENS = 4096


class SequenceClassification:
    """Cross entropy over the labels; text or text pair."""

    auto_class: ClassVar[str] = "AutoModelForSequenceClassification"
    kind: ClassVar[str] = "classifier"
    cut_means: ClassVar[str] = "their ends were cut off"

    def tokenize(self, examples: list[Example], tokenizer: Any, max_len: int, check: Check) -> Tokenized:
        """One sequence for each example; pairs lose tokens of the longer text first."""
        rows: list[TokenRow] = []
        num_cut = 0
        for chunk in take_chunks(examples, _CHUNK_ROWS, check):
            pairs = [example.pair for example in chunk] if chunk[0].pair is not None else None
            encoded = tokenizer([example.text for example in chunk], pairs, truncation=True, max_length=max_len)
            num_cut += sum(bool(encoding.overflowing) for encoding in encoded.encodings)
            type_ids = encoded.get("token_type_ids") if pairs is not None else None
            for index, example in enumerate(chunk):
                types = None if type_ids is None else _ids(type_ids[index])
                rows.append(TokenRow(ids=_ids(encoded["input_ids"][index]), type_ids=types, label=example.label))
        return Tokenized(rows=rows, num_cut=num_cut)

    def collate(self, rows: list[TokenRow], pad_id: int) -> dict[str, Tensor]:
        """Padded rows with `labels` (B,) int64."""
        return {**pad_batch(rows, pad_id), "labels": torch.tensor([row.label for row in rows], dtype=torch.int64)}

    def evaluate(
        self, model: Any, rows: list[TokenRow], labels: tuple[str, ...], pad_id: int, check: Check
    ) -> Evaluation:
        """Accuracy, macro F1, log loss, per class report, interval of the accuracy."""
        logits_NL = np.zeros((len(rows), len(labels)), dtype=np.float32)
        model.eval()
        with torch.no_grad():
            for indices in batches_by_length(rows, _EVALUATION_TOKENS):
                check()
                batch = pad_batch([rows[index] for index in indices], pad_id)
                logits_BL = model(**{key: value.to(model.device) for key, value in batch.items()}).logits
                logits_NL[indices] = logits_BL.float().cpu().numpy()
        return classification_evaluation(logits_NL, np.array([row.label for row in rows]), labels)


def _ids(values: list[int]) -> Ids:
    return np.array(values, dtype=np.int32)
