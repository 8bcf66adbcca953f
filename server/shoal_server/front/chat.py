"""A model's own chat template, rendered in jinja2's immutable sandbox within bounds of time and size.

Templates come with models, so they are not trusted: a loop without end is stopped by raising an exception inside its
thread, and operations that could build a huge value in one step, where no exception reaches them, are refused before
they run. Variables and extensions are those that templates written for transformers expect. Knows no gRPC and no
tokenizer.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, NoReturn

import jinja2
from jinja2.ext import Extension, loopcontrols
from jinja2.nodes import Node
from jinja2.parser import Parser

from shoal_server.errors import InvalidRequest, QueueFull
from shoal_server.front.chat_sandbox import BoundedEnvironment, TooLarge

FIELD: Final = "generation.chat"
MAX_RENDERS: Final = 8  # at once; a stuck template holds its place until it lets go
_STOP_INTERVAL_S: Final = 0.05


_FAILURES: Final = (
    jinja2.TemplateError, ArithmeticError, AttributeError, LookupError, MemoryError, RecursionError,
    TypeError, ValueError,
)  # fmt: skip


class TemplateRefused(Exception):
    """A template cannot be compiled; the message says where."""


class _Refusal(Exception):
    """The template called `raise_exception`."""


class _TimeUp(BaseException):
    """Raised inside a render that took too long; not an `Exception`, so that no filter swallows it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatMessage:
    """One message of a conversation."""

    role: str  # "system", "user" or "assistant"
    content: str


class _GenerationTag(Extension):
    """`{% generation %}`: marks what the model says, for training; rendered as if it were not there."""

    tags: frozenset[str] = frozenset({"generation"})  # type: ignore[assignment]

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class ChatTemplate:
    """A compiled template with the model's special tokens; never changed, shared by all renders."""

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        """Compile.

        Raises:
            TemplateRefused: the source is no template.
        """
        environment = BoundedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols], autoescape=False
        )
        environment.filters["tojson"] = _to_json
        environment.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)
        try:
            self._template = environment.from_string(source)
        except (jinja2.TemplateError, RecursionError) as error:
            line = getattr(error, "lineno", None)
            raise TemplateRefused(f"the chat template is malformed at line {line}: {type(error).__name__}") from None
        self._source = source
        self._special_tokens = dict(special_tokens)

    async def render(self, messages: Sequence[ChatMessage], *, time_limit_s: float, max_characters: int) -> str:
        """The prompt for a conversation, up to where the model speaks.

        Raises:
            InvalidRequest: the template refuses the conversation, takes too long or writes too much.
            QueueFull: too many renders are under way.
        """
        if _Render.num_running >= MAX_RENDERS:
            raise QueueFull(f"{MAX_RENDERS} chat templates are being rendered", retry_after_s=time_limit_s)
        render = _Render(self, messages, max_characters)
        return await render.run(time_limit_s)

    def write(self, messages: Sequence[ChatMessage], max_characters: int) -> str:
        """Render in this thread, unbounded in time.

        Raises:
            InvalidRequest: the template refuses the conversation or writes too much.
        """
        variables = {
            **self._special_tokens,
            "messages": [{"role": message.role, "content": message.content} for message in messages],
            "add_generation_prompt": True,
            "tools": None,
            "documents": None,
        }
        pieces: list[str] = []
        num_characters = 0
        try:
            for piece in self._template.generate(variables):
                pieces.append(piece)
                num_characters += len(piece)
                if num_characters > max_characters:
                    raise InvalidRequest.of(FIELD, f"renders to more than {max_characters:,} characters")
        except _Refusal as refusal:
            raise InvalidRequest.of(FIELD, self._explain(str(refusal))) from None
        except TooLarge as error:
            raise InvalidRequest.of(FIELD, f"the model's template builds too large a value: {error}") from None
        except _FAILURES as error:
            raise InvalidRequest.of(FIELD, f"the model's template failed: {type(error).__name__}") from None
        return "".join(pieces)

    def _explain(self, refusal: str) -> str:
        """The template's own words, unless they were made from the conversation."""
        return f"the model's template says: {refusal}" if refusal in self._source else "refused by the model's template"


class _Render:
    """One render in a thread of its own, which can be stopped."""

    num_running = 0  # in this process; changed in the event loop only

    def __init__(self, template: ChatTemplate, messages: Sequence[ChatMessage], max_characters: int) -> None:
        self._template = template
        self._messages = messages
        self._max_characters = max_characters
        self._loop = asyncio.get_running_loop()
        self._ended = asyncio.Event()
        self._lock = threading.Lock()  # held while the outcome is set, or while the thread is told to stop
        self._outcome: str | Exception | None = None

    async def run(self, time_limit_s: float) -> str:
        thread = threading.Thread(target=self._work, name="chat-template", daemon=True)
        _Render.num_running += 1
        thread.start()
        try:
            await asyncio.wait_for(self._ended.wait(), time_limit_s)
        except TimeoutError:
            raise InvalidRequest.of(FIELD, f"the model's template took longer than {time_limit_s:g} s") from None
        finally:
            if not self._ended.is_set():
                threading.Thread(target=self._stop, args=(thread,), name="chat-template-stop", daemon=True).start()
        if isinstance(self._outcome, Exception):
            raise self._outcome
        assert self._outcome is not None, "set before the event"
        return self._outcome

    def _work(self) -> None:
        outcome: str | Exception = TimeoutError("stopped")
        try:
            try:
                outcome = self._template.write(self._messages, self._max_characters)
            except Exception as error:
                outcome = error
        except _TimeUp:
            outcome = TimeoutError("stopped")
        while self._outcome is None:
            try:
                with self._lock:
                    self._outcome = outcome
            except _TimeUp:  # told to stop once more, just before the lock; from here on never again
                continue
        self._loop.call_soon_threadsafe(self._finish)

    def _finish(self) -> None:
        _Render.num_running -= 1
        self._ended.set()

    def _stop(self, thread: threading.Thread) -> None:
        """Raise in the thread, again and again, until it has heard."""
        assert thread.ident is not None, "started"
        while True:
            with self._lock:
                if self._outcome is not None or not thread.is_alive():
                    return
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(_TimeUp))
            time.sleep(_STOP_INTERVAL_S)


def _raise_exception(message: object) -> NoReturn:
    raise _Refusal(str(message))


def _strftime_now(pattern: str) -> str:
    return datetime.now().astimezone().strftime(pattern)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
