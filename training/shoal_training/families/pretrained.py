"""Opens transformers folders for training: safetensors only, never remote code, always in float32."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from shoal_training.failures import BaseMissing, InvalidSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What bases of one family have in common."""

    name: str
    dropout_keys: tuple[str, ...]  # keys of the configuration that hold a dropout probability, where present

    def build(self, folder: Path, auto_class: str, dropout: float, labels: tuple[str, ...]) -> Any:
        """The base in `folder` with the head of `auto_class`, in float32, on the CPU.

        A classifier's head is kept only where it was trained for exactly these labels; otherwise a new one is drawn
        from torch's current random state.

        Raises:
            BaseMissing: the folder cannot be opened.
        """
        try:
            config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
            fresh_head = bool(labels) and not _has_labels(config, labels)
            self._prepare(config, dropout, labels)
            model = getattr(transformers, auto_class).from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,
                local_files_only=True,
                use_safetensors=True,
                ignore_mismatched_sizes=True,
            )
        except (OSError, ValueError, KeyError) as error:
            raise BaseMissing(f"the base cannot be opened as {auto_class}: {type(error).__name__}") from error
        if fresh_head:
            _draw_head(model)
        return model

    def _prepare(self, config: Any, dropout: float, labels: tuple[str, ...]) -> None:
        for key in self.dropout_keys:
            if isinstance(getattr(config, key, None), float | int) or key == "classifier_dropout":
                setattr(config, key, dropout)
        if labels:
            config.num_labels = len(labels)
            config.id2label = dict(enumerate(labels))
            config.label2id = {label: index for index, label in enumerate(labels)}
            config.problem_type = "single_label_classification"


def load_tokenizer(folder: Path) -> Any:
    """The fast tokenizer of a transformers folder.

    Raises:
        InvalidSpec: it has none; a version needs a tokenizer.json.
        BaseMissing: it cannot be read.
    """
    try:
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise BaseMissing(f"the base's tokenizer cannot be opened: {type(error).__name__}") from error
    if not tokenizer.is_fast:
        raise InvalidSpec("the base has no tokenizer.json; a version cannot be served without one")
    return tokenizer


def _has_labels(config: Any, labels: tuple[str, ...]) -> bool:
    known = getattr(config, "id2label", None) or {}
    trained = any("ForSequenceClassification" in name for name in config.architectures or [])
    return trained and tuple(known[index] for index in sorted(known)) == labels


def _draw_head(model: Any) -> None:
    """Draw every weight outside the base model anew: a head of other labels must not shine through."""
    body = model.base_model
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.Linear) and not any(module is inner for inner in body.modules()):
                module.weight.normal_(mean=0.0, std=float(getattr(model.config, "initializer_range", 0.02)))
                if module.bias is not None:
                    module.bias.zero_()
