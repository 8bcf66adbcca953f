"""Training specs as plain trees and as messages: reading with every mistake named, and writing back.

A tree has the field names of `TrainingSpec` in train.proto, enum values in lower case without their prefix, and
durations as seconds or as text such as "300s" or "1h30m". Knows no files and no YAML.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias, cast

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from shoal._words import seconds
from shoal.errors import FieldViolation, InvalidRequestError
from shoal.v1.train_pb2 import TrainingSpec

Tree: TypeAlias = dict[str, Any]

DURATION = "google.protobuf.Duration"
MAX_DURATION_S = 315_576_000_000.0
UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}
_DURATION_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_INTEGER_RANGES = {
    FieldDescriptor.CPPTYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, 2**64 - 1),
    FieldDescriptor.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
}
_FLOATS = (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT)


class _BadValueError(Exception):
    """A value does not fit its field; the message says what is wanted."""


def parse_spec(tree: Mapping[str, Any]) -> TrainingSpec:
    """Read a tree.

    Raises:
        InvalidRequestError: with a violation for every unknown field and every value that does not fit.
    """
    spec = TrainingSpec()
    violations: list[FieldViolation] = []
    _fill(spec, tree, "", violations)
    if violations:
        raise InvalidRequestError.of(violations)
    return spec


def spec_tree(spec: TrainingSpec) -> Tree:
    """The tree of a spec, with the fields that are set; `parse_spec` reads it back."""
    return _tree_of(spec)


def parse_duration_s(value: object) -> float:
    """Seconds of a number or of text such as "300s", "90m" or "1h30m".

    Raises:
        ValueError: it is neither.
    """
    total_s = math.nan
    if isinstance(value, str):
        text = value.strip()
        parts = _DURATION_PART.findall(text)
        if parts and "".join(number + unit for number, unit in parts) == text:
            total_s = sum(float(number) * UNIT_SECONDS[unit] for number, unit in parts)
        else:
            total_s = _number_in(text)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        total_s = float(value)
    if not 0 <= total_s <= MAX_DURATION_S:
        raise ValueError(f"is {value!r}; must be seconds, or a text such as 300s, 90m or 1h30m")
    return total_s


def _number_in(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _fill(message: Message, tree: Mapping[str, Any], prefix: str, violations: list[FieldViolation]) -> None:
    descriptor = cast("Descriptor", message.DESCRIPTOR)
    for key, value in tree.items():
        path = f"{prefix}{key}"
        field = descriptor.fields_by_name.get(str(key))
        if field is None:
            violations.append(FieldViolation(field=path, description=_unknown(str(key), descriptor)))
            continue
        try:
            _check_choice(field, tree)
            _set_field(message, field, value, path, violations)
        except (_BadValueError, ValueError) as mistake:
            violations.append(FieldViolation(field=path, description=str(mistake)))


def _set_field(
    message: Message, field: FieldDescriptor, value: object, path: str, violations: list[FieldViolation]
) -> None:
    below = field.message_type
    if below is None:
        if value is not None:  # null reads as unset
            setattr(message, field.name, _scalar(field, value))
    elif below.full_name == DURATION:
        if value is not None:
            getattr(message, field.name).FromNanoseconds(round(parse_duration_s(value) * 1e9))
    else:
        if not isinstance(value, Mapping | None):
            raise _BadValueError(f"is {_kind(value)}; must hold fields: {_listed(below)}")
        getattr(message, field.name).SetInParent()
        _fill(getattr(message, field.name), value or {}, f"{path}.", violations)


def _check_choice(field: FieldDescriptor, tree: Mapping[str, Any]) -> None:
    choice = field.containing_oneof
    if choice is None:
        return
    given = [other.name for other in choice.fields if other.name in tree]
    if len(given) > 1:
        raise _BadValueError(f"give only one of {', '.join(given)}")


def _scalar(field: FieldDescriptor, value: object) -> object:
    if field.enum_type is not None:
        return _enum_number(field.enum_type, value)
    if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
        if not isinstance(value, str):
            raise _BadValueError(f"is {_kind(value)}; must be text")
        return value
    if field.cpp_type == FieldDescriptor.CPPTYPE_BOOL:
        if not isinstance(value, bool):
            raise _BadValueError(f"is {_kind(value)}; must be true or false")
        return value
    return _number(field, value)


def _number(field: FieldDescriptor, value: object) -> int | float:
    # YAML reads 2e-5 (no dot) as text.
    number = _number_in(value) if isinstance(value, str) else value
    if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
        raise _BadValueError(f"is {_kind(value)}; must be a number")
    if field.cpp_type in _FLOATS:
        return float(number)
    low, high = _INTEGER_RANGES[field.cpp_type]
    if number != int(number) or not low <= number <= high:
        raise _BadValueError(f"is {value}; must be a whole number from {low} to {high}")
    return int(number)


def _enum_number(enum: EnumDescriptor, value: object) -> int:
    prefix = enum.values[0].name.removesuffix("UNSPECIFIED")
    words = {entry.name.removeprefix(prefix).lower(): entry.number for entry in enum.values if entry.number != 0}
    if not isinstance(value, str) or value not in words:
        raise _BadValueError(f"is {value!r}; allowed are {', '.join(words)}{_nearest(str(value), words)}")
    return words[value]


def _unknown(key: str, descriptor: Descriptor) -> str:
    nearest = _nearest(key, descriptor.fields_by_name)
    return f"is no field{nearest}" if nearest else f"is no field; there are {_listed(descriptor)}"


def _nearest(word: str, words: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, words, n=1, cutoff=0.5)
    return f"; did you mean {near[0]}?" if near else ""


def _listed(descriptor: Descriptor) -> str:
    return ", ".join(field.name for field in descriptor.fields) or "none"


def _kind(value: object) -> str:
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list | tuple):
        return "a list"
    return repr(value)


def _tree_of(message: Message) -> Tree:
    tree: Tree = {}
    for field, value in message.ListFields():
        if field.message_type is not None:
            is_duration = field.message_type.full_name == DURATION
            tree[field.name] = f"{seconds(value):.9g}s" if is_duration else _tree_of(value)
        elif field.enum_type is not None:
            tree[field.name] = _enum_word(field.enum_type, value)
        elif field.cpp_type == FieldDescriptor.CPPTYPE_FLOAT:
            tree[field.name] = float(f"{value:.7g}")  # 32 bits carry no more digits
        else:
            tree[field.name] = value
    return tree


def _enum_word(enum: EnumDescriptor, number: int) -> str:
    prefix = enum.values[0].name.removesuffix("UNSPECIFIED")
    entry = enum.values_by_number.get(number)
    return entry.name.removeprefix(prefix).lower() if entry is not None else f"unknown_{number}"
