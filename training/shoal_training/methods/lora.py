"""Low-rank updates beside frozen weights, merged before publication.

Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models".
"""

from __future__ import annotations

import warnings
from typing import Any

from shoal_training.compatibility import SEQUENCE_CLASSIFICATION
from shoal_training.spec import LoraMethod


class Lora:
    """An update beside every linear layer; a classifier's head is trained whole."""

    def __init__(self, settings: LoraMethod) -> None:
        self._settings = settings

    def apply(self, model: Any, objective: str) -> Any:
        """The model wrapped by peft."""
        import peft
        from transformers.pytorch_utils import Conv1D

        classifies = objective == SEQUENCE_CLASSIFICATION
        config = peft.LoraConfig(
            task_type=peft.TaskType.SEQ_CLS if classifies else peft.TaskType.CAUSAL_LM,
            r=self._settings.rank,
            lora_alpha=self._settings.alpha,  # type: ignore[arg-type]  # any number will do
            lora_dropout=self._settings.dropout,
            target_modules="all-linear",
            fan_in_fan_out=any(
                isinstance(module, Conv1D) for module in model.modules()
            ),  # GPT-2 keeps weights transposed
        )
        with warnings.catch_warnings():
            # peft still asks for a property that transformers renamed.
            warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing", category=FutureWarning)
            return peft.get_peft_model(model, config)

    def merge(self, model: Any) -> Any:
        """The base with its weights updated; the wrapped model is used up."""
        return model.merge_and_unload()
