"""What a method has to know."""

from __future__ import annotations

from typing import Any, Protocol


class Method(Protocol):
    """One way to train a model."""

    def apply(self, model: Any, objective: str) -> Any:
        """The model to train, its learnt parameters requiring gradients. Draws from torch's random state."""

    def merge(self, model: Any) -> Any:
        """The plain transformers model that computes the same as the trained one."""
