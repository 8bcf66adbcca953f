"""What an objective has to know."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from torch import Tensor

from shoal_training.batches import TokenRow
from shoal_training.data import Example
from shoal_training.evaluate import Evaluation

Check = Callable[[], None]  # raises when the job must end; called between small pieces of work


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokenized:
    """Sequences made of examples."""

    rows: list[TokenRow]
    num_cut: int  # examples longer than max_len


class Objective(Protocol):
    """One thing to train for."""

    auto_class: ClassVar[str]  # transformers' class that gives a base the right head
    kind: ClassVar[str]  # the manifest's kind
    cut_means: ClassVar[str]  # what happens to an example longer than max_len

    def tokenize(self, examples: list[Example], tokenizer: Any, max_len: int, check: Check) -> Tokenized:
        """Sequences of at most `max_len` tokens."""

    def collate(self, rows: list[TokenRow], pad_id: int) -> dict[str, Tensor]:
        """A padded batch with labels, as the model's forward takes it."""

    def evaluate(
        self, model: Any, rows: list[TokenRow], labels: tuple[str, ...], pad_id: int, check: Check
    ) -> Evaluation:
        """Figures over rows, computed in eval mode; touches no random state."""
