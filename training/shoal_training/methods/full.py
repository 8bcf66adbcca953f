"""All weights are trained."""

from __future__ import annotations

from typing import Any


class Full:
    """Changes nothing."""

    def apply(self, model: Any, objective: str) -> Any:  # noqa: ARG002
        """The model itself."""
        return model.requires_grad_(True)

    def merge(self, model: Any) -> Any:
        """The model itself."""
        return model
