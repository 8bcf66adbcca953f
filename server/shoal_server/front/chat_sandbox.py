"""Jinja2's immutable sandbox, with bounds on values that one operation could make huge.

An exception raised from outside reaches a thread only between two steps of the interpreter. What happens within one
step (`"x" * 10**10`, `"%999999999d"`, a chain of doublings) must therefore be bounded before it runs.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sized
from typing import Any, Final

from jinja2 import nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

MAX_SIZE: Final = 2**21  # characters or elements of one value
MAX_EXPONENT: Final = 64
MAX_INTEGER: Final = 2**256
_HUGE_FIELD = re.compile(
    r"\d{5,}|%[^a-zA-Z%]*\*|\{[^}]*\{"
)  # a large width, or one that an argument gives, in a format string


class TooLarge(Exception):
    """A value would be, or is, larger than allowed."""


class _BoundedCodeGenerator(CodeGenerator):
    """Compiles `a ~ b` into a call that bounds the result."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802 - named by jinja2
        self.write("environment.bounded_concat((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """The environment that chat templates run in."""

    intercepted_binops = frozenset({"+", "*", "**", "%"})
    code_generator_class = _BoundedCodeGenerator

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.filters = {name: _bounded_filter(name, function) for name, function in self.filters.items()}
        self.globals.pop("lipsum", None)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Apply an operator whose result may be large.

        Raises:
            TooLarge: it would be.
        """
        if operator == "**":
            _require(isinstance(right, int | float) and abs(right) <= MAX_EXPONENT, "an exponent")
        elif operator == "%" and isinstance(left, str):
            _check_format(left)
        elif operator == "*":
            _require(_size(left) * _count(right) <= MAX_SIZE and _size(right) * _count(left) <= MAX_SIZE, "a product")
        elif operator == "+":
            _require(_size(left) + _size(right) <= MAX_SIZE, "a sum")
        return _checked(super().call_binop(context, operator, left, right))

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805 - named by jinja2
        """Call a function or method of the template's values.

        Raises:
            TooLarge: an argument asks for a huge result, or the result is huge.
        """
        method = getattr(__obj, "__wrapped__", __obj)  # the sandbox wraps str.format
        owner = getattr(method, "__self__", None)
        if isinstance(owner, str):
            _check_string_call(method.__name__, owner, (*args, *kwargs.values()))
        return _checked(super().call(__context, __obj, *args, **kwargs))

    def bounded_concat(self, parts: tuple[Any, ...]) -> str:
        """What `~` does.

        Raises:
            TooLarge: the result would be huge.
        """
        texts = [str(part) for part in parts]
        _require(sum(map(len, texts)) <= MAX_SIZE, "a concatenation")
        return "".join(texts)


def _bounded_filter(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)  # keeps the marks that ask for environment or context
    def bounded(*args: Any, **kwargs: Any) -> Any:
        values = [*args, *kwargs.values()]
        _require(all(not isinstance(value, int) or abs(value) <= MAX_SIZE for value in values), "a number")
        texts = [value for value in values if isinstance(value, str)]
        if name == "format":
            _check_format("".join(texts[:1]))
        elif name == "replace" and len(texts) >= 3:
            _check_replace(*texts[:3])
        elif name == "join":
            _check_join(values)
        elif name == "indent":
            lines = texts[0].count("\n") + 1 if texts else 1
            _require(lines * max([4, *(v for v in values if isinstance(v, int))]) <= MAX_SIZE, "an indentation")
        return _checked(function(*args, **kwargs))

    return bounded


def _check_string_call(name: str, owner: str, args: tuple[Any, ...]) -> None:
    _require(all(not isinstance(value, int) or abs(value) <= MAX_SIZE for value in args), "a number")
    if name in {"format", "format_map"}:
        _check_format(owner)
    elif name == "replace" and len(args) >= 2 and all(isinstance(value, str) for value in args[:2]):
        _check_replace(owner, args[0], args[1])
    elif name == "join":
        _check_join([owner, *args])
    elif name == "expandtabs":
        _require(owner.count("\t") * max([8, *(v for v in args if isinstance(v, int))]) <= MAX_SIZE, "a width")
    elif name == "translate":
        raise TooLarge("str.translate")


def _check_format(pattern: str) -> None:
    _require(not _HUGE_FIELD.search(pattern), "a width")
    _require(len(re.findall(r"%|\{", pattern)) <= 1000, "a number of placeholders")


def _check_replace(text: str, old: str, new: str) -> None:
    _require((text.count(old) if old else len(text) + 1) * len(new) <= MAX_SIZE, "a replacement")


def _check_join(values: list[Any]) -> None:
    """Bound separator times elements; elements themselves are bounded, and counted where they are strings."""
    separator = max((len(value) for value in values if isinstance(value, str)), default=0)
    for value in values:
        if isinstance(value, list | tuple):
            total = sum(len(part) for part in value if isinstance(part, str))
            _require(total + len(value) * separator <= MAX_SIZE, "a join")


def _checked(value: Any) -> Any:
    _require(_size(value) <= MAX_SIZE, "a value")
    if isinstance(value, int):
        _require(abs(value) <= MAX_INTEGER, "an integer")
    return value


def _size(value: Any) -> int:
    return len(value) if isinstance(value, Sized) and isinstance(value, str | bytes | list | tuple | dict | set) else 0


def _count(value: Any) -> int:
    return max(0, value) if isinstance(value, int) else 0


def _require(holds: bool, what: str) -> None:
    if not holds:
        raise TooLarge(what)
