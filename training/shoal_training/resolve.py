"""Turns a raw spec into a resolved one, every default filled in, or says what is wrong with each field. No torch here.

As a program (`python -m shoal_training.resolve`) it reads {"spec", "repository", "data_roots", "dataset_dir"} as JSON
from stdin and prints {"spec": resolved} or {"violations": [{"field", "description"}], "kind"}, both with exit code 0.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any, TypeVar

from shoal_models import manifest as manifests

from shoal_training import bases, compatibility
from shoal_training.bases import BaseFacts
from shoal_training.fields import FieldReader, Range, Violation
from shoal_training.places import PlaceError, Places, find_data
from shoal_training.spec import FULL, LORA, Base, DataSpec, FullMethod, LoraMethod, Spec

MIN_LEN = 8
DEFAULT_LEN = 128
_UNIT = Range(low=0, high=1)
_BELOW_ONE = Range(low=0, high=1, high_open=True)
_TOP_FIELDS = frozenset(field.name for field in dataclasses.fields(Spec)) - {"method"} | {
    FULL,
    LORA,
    "checkpoint_interval",
    "time_limit",
}
_DATA_FIELDS = frozenset(field.name for field in dataclasses.fields(DataSpec))
_LORA_FIELDS = frozenset(field.name for field in dataclasses.fields(LoraMethod))
_T = TypeVar("_T")


class SpecRefused(Exception):
    """A spec cannot be carried out. `kind` is "InvalidRequest", "ModelNotFound" or "DatasetNotFound"."""

    def __init__(self, violations: list[Violation], kind: str = "InvalidRequest") -> None:
        super().__init__("; ".join(f"{violation.field}: {violation.description}" for violation in violations))
        self.violations = violations
        self.kind = kind


def resolve(tree: object, places: Places) -> Spec:
    """Check a raw tree and fill in every default. Resolving a resolved tree changes nothing.

    Raises:
        SpecRefused: naming every wrong field, with limit and value.
    """
    resolver = _Resolver(tree, places)
    spec = resolver.resolve()
    if resolver.violations or spec is None:
        invalid = [item for item in resolver.violations if item not in resolver.not_found]
        kind = "InvalidRequest" if invalid or not resolver.not_found else next(iter(resolver.not_found.values()))
        raise SpecRefused(resolver.violations, kind)
    return spec


def auto_learning_rate(family: str, method: str, num_parameters: int) -> float:
    """The peak learning rate for a family, method and size; measured on small encoders, usual practice above.

    2e-5, the usual advice, is far too low below 50M parameters: BBC topics after one epoch on a 22M encoder gave an
    accuracy of 0.45 against 0.77 with 1e-4.
    """
    if family not in compatibility.FAMILIES:
        raise ValueError(f"no learning rate is known for family {family}")
    if method == LORA:
        return 2e-3 if num_parameters < 50_000_000 else 1e-3
    if num_parameters < 50_000_000:
        return 1e-4
    return 5e-5 if num_parameters < 100_000_000 else 2e-5


class _Resolver:
    """One pass over one tree; violations of all fields are collected before any is told."""

    def __init__(self, tree: object, places: Places) -> None:
        self.violations: list[Violation] = []
        self.not_found: dict[Violation, str] = {}  # violation -> kind
        self._places = places
        self._top = FieldReader(tree, "", _TOP_FIELDS, self.violations)

    def resolve(self) -> Spec | None:
        top = self._top
        name = self._name()
        facts = self._base()
        objective = self._required_choice("objective", compatibility.OBJECTIVES)
        family = self._family(facts, objective)
        method = self._method()
        method_name = LORA if isinstance(method, LoraMethod) else FULL
        if family and objective and (reason := compatibility.why_not(family, objective, method_name)):
            top.refuse("objective", reason)
        data = self._data(objective)
        patience = self._whole("early_stopping_patience", Range(low=0, high=1000), 2)
        golden = top.choice("golden", ("synthetic", "data"), "synthetic")
        if golden == "data" and not data.has_validation:
            top.refuse("golden", "data needs validation rows; set data.validation or data.validation_fraction")
        spec = Spec(
            name=name,
            base=facts.base if facts else Base(),
            family=family,
            objective=objective,
            method=method,
            data=data,
            epochs=self._real("epochs", Range(low=0, high=1000, low_open=True), 5.0),
            max_steps=top.integer("max_steps", Range(low=1, high=2**31 - 1), None),
            batch_size=self._whole("batch_size", Range(low=1, high=4096), 16),
            max_len=self._max_len(facts),
            learning_rate=self._learning_rate(facts, family, method_name),
            weight_decay=self._real("weight_decay", _UNIT, 0.01),
            warmup_fraction=self._real("warmup_fraction", _UNIT, 0.1),
            dropout=self._real("dropout", _BELOW_ONE, 0.1),
            early_stopping_patience=patience if data.has_validation else 0,
            label_smoothing=self._real("label_smoothing", _BELOW_ONE, 0.0),
            seed=self._whole("seed", Range(low=0, high=2**32 - 1), 42),
            checkpoint_interval_s=self._seconds("checkpoint_interval", 300.0),
            time_limit_s=top.duration_s("time_limit", Range(low=0, high=31_536_000, low_open=True), None),
            golden=golden,
            publish_dtype=top.choice("publish_dtype", ("float32", "bfloat16"), "float32"),
        )
        return spec if facts else None

    def _name(self) -> str:
        name = self._top.text("name")
        if not name:
            self._top.refuse("name", "is required: the model that is published")
        elif not manifests.MODEL_NAME.fullmatch(name):
            self._top.refuse("name", "must be 1 to 128 of a-z A-Z 0-9 . _ - beginning with a letter or digit")
        return name

    def _base(self) -> BaseFacts | None:
        options = ("model", "path", "hub_id")
        if not self._top.has("base"):
            self._top.refuse("base", f"is required: one of {', '.join(options)}")
            return None
        reader = FieldReader(self._top.raw("base"), "base", options, self.violations)
        chosen = reader.exactly_one(options) if isinstance(self._top.raw("base"), dict) else None
        if chosen is None or not (value := reader.text(chosen)):
            return None
        try:
            return bases.describe(Base(**{chosen: value}), self._places)
        except PlaceError as error:
            self._refuse_place(f"base.{chosen}", error)
            return None

    def _family(self, facts: BaseFacts | None, objective: str) -> str:
        asked = self._top.choice("family", compatibility.FAMILIES, "")
        told = facts.family if facts else None
        if asked and told and asked != told:
            self._top.refuse("family", f"is {asked}, but the base is of family {told}")
        if told and told not in compatibility.FAMILIES:
            self._top.refuse("base", f"is of family {told}; trained are: {', '.join(compatibility.FAMILIES)}")
            return ""
        if asked or told:
            return asked or told or ""
        if facts and facts.folder is not None:
            self._top.refuse("family", "cannot be told from the base's configuration; set it")
            return ""
        able = [family for family in compatibility.FAMILIES if (family, objective) in compatibility.TABLE]
        return able[0] if able else ""

    def _method(self) -> FullMethod | LoraMethod:
        full, lora = self._top.raw(FULL), self._top.raw(LORA)
        if full is not None and lora is not None:
            self._top.refuse("method", "has full and lora; at most one may be set")
        if lora is None:
            FieldReader(full, FULL, (), self.violations)
            return FullMethod()
        reader = FieldReader(lora, LORA, _LORA_FIELDS, self.violations)
        rank = _set(reader.integer("rank", Range(low=1, high=256), 16))
        return LoraMethod(
            rank=rank,
            alpha=_set(reader.number("alpha", Range(low=0, high=1e6, low_open=True), 2.0 * rank)),
            dropout=_set(reader.number("dropout", _BELOW_ONE, 0.05)),
        )

    def _data(self, objective: str) -> DataSpec:
        if not self._top.has("data"):
            self._top.refuse("data", "is required")
        reader = FieldReader(self._top.raw("data"), "data", _DATA_FIELDS, self.violations)
        classifies = objective == compatibility.SEQUENCE_CLASSIFICATION
        validation = self._data_file(reader, "validation")
        fraction = _set(reader.number("validation_fraction", Range(low=0, high=0.5), 0.1))
        data = DataSpec(
            train=self._data_file(reader, "train"),
            validation=validation,
            validation_fraction=0.0 if validation else fraction,
            text_column=reader.text("text_column", "text"),
            text_pair_column=reader.text("text_pair_column"),
            label_column=reader.text("label_column", "label") if classifies else "",
        )
        if self._top.has("data") and not reader.has("train"):
            reader.refuse("train", "is required: dataset://<sha256> or a path")
        if data.text_pair_column and not classifies:
            reader.refuse("text_pair_column", f"is not used by {objective or 'this objective'}")
        columns = [name for name in (data.text_column, data.text_pair_column, data.label_column) if name]
        if len(set(columns)) < len(columns):
            reader.refuse("", "text_column, text_pair_column and label_column must differ")
        return data

    def _data_file(self, reader: FieldReader, name: str) -> str:
        reference = reader.text(name)
        if not reference:
            return ""
        try:
            return find_data(reference, self._places)[0]
        except PlaceError as error:
            self._refuse_place(f"data.{name}", error)
            return ""

    def _max_len(self, facts: BaseFacts | None) -> int:
        limit = facts.max_tokens if facts and facts.max_tokens else 2**20
        return self._whole("max_len", Range(low=MIN_LEN, high=limit), min(DEFAULT_LEN, limit))

    def _learning_rate(self, facts: BaseFacts | None, family: str, method: str) -> float | None:
        if self._top.raw("learning_rate") not in (None, "auto"):
            return self._top.number("learning_rate", Range(low=0, high=1, low_open=True), None)
        if facts is None or facts.num_parameters is None or not family:
            return None
        return auto_learning_rate(family, method, facts.num_parameters)

    def _required_choice(self, name: str, allowed: tuple[str, ...]) -> str:
        if not self._top.has(name):
            self._top.refuse(name, f"is required: one of {', '.join(allowed)}")
        return self._top.choice(name, allowed, "")

    def _real(self, name: str, allowed: Range, default: float) -> float:
        return _set(self._top.number(name, allowed, default))

    def _whole(self, name: str, allowed: Range, default: int) -> int:
        return _set(self._top.integer(name, allowed, default))

    def _seconds(self, name: str, default: float) -> float:
        return _set(self._top.duration_s(name, Range(low=0, high=31_536_000, low_open=True), default))

    def _refuse_place(self, field: str, error: PlaceError) -> None:
        violation = Violation(field=field, description=error.description)
        self.violations.append(violation)
        if error.kind != "InvalidRequest":
            self.not_found[violation] = error.kind


def _set(value: _T | None) -> _T:
    """The value of a field whose default is never None."""
    assert value is not None
    return value


def answer(request: dict[str, Any]) -> dict[str, Any]:
    """The reply of the program to one request."""
    dataset_dir = request.get("dataset_dir")
    places = Places(
        repository=Path(request["repository"]),
        data_roots=tuple(Path(root) for root in request.get("data_roots") or []),
        dataset_dir=Path(dataset_dir) if dataset_dir else None,
    )
    try:
        return {"spec": resolve(request["spec"], places).to_tree()}
    except SpecRefused as refusal:
        violations = [dataclasses.asdict(violation) for violation in refusal.violations]
        return {"violations": violations, "kind": refusal.kind}


if __name__ == "__main__":
    json.dump(answer(json.load(sys.stdin)), sys.stdout)
