"""What defines a training job: the typed spec, its plain tree and how YAML is read.

The tree has the field names of `TrainingSpec` in protos/shoal/v1/train.proto, with enum values in lower case and
durations as seconds (`checkpoint_interval_s`, `time_limit_s`). A `Spec` is always resolved: every default is filled
in. Nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FULL = "full"
LORA = "lora"


class SpecFileError(Exception):
    """A YAML spec cannot be read; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """Where a job starts from; exactly one is not empty."""

    model: str = ""  # name@version in the repository
    path: str = ""  # absolute, of a transformers folder
    hub_id: str = ""  # such as "org/name"

    def __str__(self) -> str:
        return self.model or self.path or self.hub_id


@dataclass(frozen=True, slots=True, kw_only=True)
class FullMethod:
    """All weights are trained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraMethod:
    """Low-rank updates beside frozen weights, merged before publication."""

    rank: int
    alpha: float
    dropout: float


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSpec:
    """What a job learns from."""

    train: str  # dataset://<sha256> or an absolute path
    validation: str  # like `train`; empty: `validation_fraction` of `train` is set aside
    validation_fraction: float
    text_column: str
    text_pair_column: str  # empty: none
    label_column: str  # empty unless the objective has labels

    @property
    def has_validation(self) -> bool:
        """Whether there will be validation rows."""
        return bool(self.validation) or self.validation_fraction > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Spec:
    """A resolved job. Fields are documented in train.proto."""

    name: str
    base: Base
    family: str
    objective: str
    method: FullMethod | LoraMethod
    data: DataSpec
    epochs: float
    max_steps: int | None
    batch_size: int
    max_len: int
    learning_rate: float | None  # None only for hub bases, whose size is known once they are fetched
    weight_decay: float
    warmup_fraction: float
    dropout: float
    early_stopping_patience: int  # 0: off
    label_smoothing: float
    seed: int
    checkpoint_interval_s: float
    time_limit_s: float | None
    golden: str  # "synthetic" or "data"
    publish_dtype: str  # "float32" or "bfloat16"

    @property
    def method_name(self) -> str:
        """The method's word in tables, manifests and trees."""
        return LORA if isinstance(self.method, LoraMethod) else FULL

    def to_tree(self) -> dict[str, Any]:
        """The plain tree; unset options are left out."""
        tree: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name == "method":
                tree[self.method_name] = dataclasses.asdict(value)
            elif dataclasses.is_dataclass(value) and not isinstance(value, type):
                tree[field.name] = {key: item for key, item in dataclasses.asdict(value).items() if item != ""}
            elif value is not None:
                tree[field.name] = value
        return tree

    def digest(self) -> str:
        """SHA-256 over the canonical tree, hexadecimal."""
        return hashlib.sha256(json.dumps(self.to_tree(), sort_keys=True).encode()).hexdigest()


def from_tree(tree: dict[str, Any]) -> Spec:
    """The spec of a tree that `Spec.to_tree` made.

    Raises:
        TypeError, KeyError: the tree is no such thing; trees of people go through `resolve`.
    """
    values = dict(tree)
    method: FullMethod | LoraMethod
    method = LoraMethod(**values.pop(LORA)) if LORA in values else FullMethod(**values.pop(FULL))
    data = {"validation": "", "text_pair_column": "", "label_column": "", **values.pop("data")}
    optional = {"max_steps": None, "learning_rate": None, "time_limit_s": None}
    return Spec(base=Base(**values.pop("base")), data=DataSpec(**data), method=method, **{**optional, **values})


def load_yaml(path: Path) -> dict[str, Any]:
    """The tree of a YAML (or JSON) spec, unchecked beyond being a mapping.

    Raises:
        SpecFileError: the file cannot be read or is not a mapping.
    """
    import yaml

    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SpecFileError(f"{path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise SpecFileError(f"{path}: not UTF-8") from None
    except yaml.YAMLError as error:
        raise SpecFileError(f"{path}: not YAML: {error}") from None
    if not isinstance(tree, dict):
        raise SpecFileError(f"{path}: the top level must be a mapping of fields")
    return tree
