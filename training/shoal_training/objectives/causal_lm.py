"""The next token.

B rows of a batch, T tokens of its longest row, V vocabulary.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from shoal_training.batches import TokenRow, batches_by_length, pad_batch, take_chunks
from shoal_training.data import Example
from shoal_training.evaluate import Evaluation
from shoal_training.objectives.interface import Check, Tokenized

IGNORED = -100  # the label that cross entropy leaves out
_CHUNK_ROWS = 256
_EVALUATION_TOKENS = 1024  # logits of so many tokens are in memory at once
_MAX_EXPONENT = 50.0


class CausalLM:
    """Cross entropy of each next token; every row ends with the end-of-sequence token where the base has one."""

    auto_class: ClassVar[str] = "AutoModelForCausalLM"
    kind: ClassVar[str] = "generator"
    cut_means: ClassVar[str] = "they were cut into several sequences"

    def tokenize(self, examples: list[Example], tokenizer: Any, max_len: int, check: Check) -> Tokenized:
        """Sequences of each example; a longer one is cut into pieces, and no token is lost but a lone last one."""
        rows: list[TokenRow] = []
        num_cut = 0
        eos_id = tokenizer.eos_token_id
        for chunk in take_chunks(examples, _CHUNK_ROWS, check):
            for ids in tokenizer([example.text for example in chunk], verbose=False)["input_ids"]:
                if eos_id is not None and (not ids or ids[-1] != eos_id):
                    ids.append(eos_id)
                num_cut += len(ids) > max_len
                pieces = [ids[start : start + max_len] for start in range(0, len(ids), max_len)]
                rows += [TokenRow(ids=np.array(piece, dtype=np.int32)) for piece in pieces if len(piece) > 1]
        return Tokenized(rows=rows, num_cut=num_cut)

    def collate(self, rows: list[TokenRow], pad_id: int) -> dict[str, Tensor]:
        """Padded rows with `labels` (B, T): the ids themselves, padding left out (the model shifts them)."""
        batch = pad_batch(rows, pad_id)
        return {**batch, "labels": batch["input_ids"].masked_fill(batch["attention_mask"] == 0, IGNORED)}

    def evaluate(
        self,
        model: Any,
        rows: list[TokenRow],
        labels: tuple[str, ...],  # noqa: ARG002
        pad_id: int,
        check: Check,
    ) -> Evaluation:
        """Mean loss of a token in nats, its exponential, and how many tokens were predicted."""
        total_loss, num_tokens = 0.0, 0
        model.eval()
        with torch.no_grad():
            for indices in batches_by_length(rows, _EVALUATION_TOKENS):
                check()
                batch = self.collate([rows[index] for index in indices], pad_id)
                targets_BT = batch.pop("labels")[:, 1:].to(model.device)
                logits_BTV = model(
                    **{key: value.to(model.device) for key, value in batch.items()}, use_cache=False
                ).logits
                loss = functional.cross_entropy(
                    logits_BTV[:, :-1].flatten(0, 1).float(),
                    targets_BT.flatten(),
                    ignore_index=IGNORED,
                    reduction="sum",
                )
                total_loss += float(loss)
                num_tokens += int((targets_BT != IGNORED).sum())
        mean = total_loss / num_tokens
        metrics = {"loss": mean, "perplexity": math.exp(min(mean, _MAX_EXPONENT)), "tokens": float(num_tokens)}
        return Evaluation(metrics=metrics, score=(-mean,))
