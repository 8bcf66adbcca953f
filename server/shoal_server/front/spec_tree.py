"""`TrainingSpec` messages to plain trees and back, by walking their descriptors.

A tree has the proto's field names; enum values are lower case without their prefix, durations are seconds under the
name with `_s`. Fields that are unset are absent. Defaults and meaning are not known here: `shoal_training.resolve`
fills them in.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message
from shoal.v1 import train_pb2

from shoal_server.errors import InvalidRequest
from shoal_server.front.convert import unknown_enum

_DURATION: Final = "google.protobuf.Duration"
_SECONDS_SUFFIX: Final = "_s"
_FLOATS: Final = (FieldDescriptor.CPPTYPE_DOUBLE, FieldDescriptor.CPPTYPE_FLOAT)
_INTEGERS: Final = (
    FieldDescriptor.CPPTYPE_INT32,
    FieldDescriptor.CPPTYPE_INT64,
    FieldDescriptor.CPPTYPE_UINT32,
    FieldDescriptor.CPPTYPE_UINT64,
)


def to_tree(message: Message, field: str = "spec") -> dict[str, Any]:
    """The plain tree of a message, with what the client set.

    Raises:
        InvalidRequest: an enum value or duration means nothing, or a number is not finite.
    """
    tree: dict[str, Any] = {}
    for descriptor, value in message.ListFields():
        path = f"{field}.{descriptor.name}"
        if descriptor.message_type is not None:
            if descriptor.message_type.full_name == _DURATION:
                tree[descriptor.name + _SECONDS_SUFFIX] = _seconds(value, path)
            else:
                tree[descriptor.name] = to_tree(value, path)
        elif descriptor.enum_type is not None:
            tree[descriptor.name] = _enum_word(descriptor.enum_type, value, path)
        elif descriptor.cpp_type in _FLOATS and not math.isfinite(value):
            raise InvalidRequest.of(path, f"is {value}; a finite number is needed")
        else:
            tree[descriptor.name] = (
                _short_float(value) if descriptor.cpp_type == FieldDescriptor.CPPTYPE_FLOAT else value
            )
    return tree


def to_spec(tree: Mapping[str, Any]) -> train_pb2.TrainingSpec:
    """The message of a tree that control sent; None means unset, and what the protocol has no field for is left out."""
    spec = train_pb2.TrainingSpec()
    _fill(spec, tree)
    return spec


def enum_word(enum: EnumDescriptor, number: int) -> str:
    """A value's name in lower case without the enum's prefix. Raises KeyError for a number without a name."""
    name: str = enum.values_by_number[number].name
    return name.removeprefix(_prefix(enum)).lower()


def enum_number(enum: Any, word: str) -> int:
    """The number of a value by its lower-case name. Raises KeyError for a word that names none."""
    number: int = enum.values_by_name[_prefix(enum) + word.upper()].number
    return number


def _enum_word(enum: EnumDescriptor, number: int, path: str) -> str:
    try:
        return enum_word(enum, number)
    except KeyError:
        raise unknown_enum(path, number) from None


def _prefix(enum: EnumDescriptor) -> str:
    """`JOB_STATE_` of `JobState`: what all names share, told by the zero value."""
    zero: str = enum.values_by_number[0].name
    return zero.removesuffix("UNSPECIFIED")


def _seconds(duration: Any, path: str) -> float:
    seconds = duration.seconds + duration.nanos / 1e9
    if seconds < 0:
        raise InvalidRequest.of(path, f"is {seconds:g} s; 0 or more is needed")
    return float(seconds)


def _short_float(value: float) -> float:
    """0.05 for a 32-bit 0.05, which as a 64-bit number reads 0.05000000074505806."""
    return float(f"{value:.7g}")


def _fill(message: Message, tree: Mapping[str, Any]) -> None:
    for descriptor in message.DESCRIPTOR.fields:
        is_message = descriptor.message_type is not None
        is_duration = descriptor.message_type is not None and descriptor.message_type.full_name == _DURATION
        value = tree.get(descriptor.name + _SECONDS_SUFFIX if is_duration else descriptor.name)
        if value is None:
            continue
        if is_duration:
            getattr(message, descriptor.name).FromNanoseconds(round(value * 1e9))
        elif is_message:
            below = getattr(message, descriptor.name)
            below.SetInParent()
            _fill(below, value)
        elif descriptor.enum_type is not None:
            setattr(message, descriptor.name, enum_number(descriptor.enum_type, value))
        else:
            setattr(message, descriptor.name, int(value) if descriptor.cpp_type in _INTEGERS else value)
