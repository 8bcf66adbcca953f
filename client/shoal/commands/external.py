"""Commands that other parts of the distribution own, found by the entry-point group `shoal.commands`.

An entry is a function `(argv: list[str]) -> int`. What it needs beyond the bare client comes with an extra; where that
is not installed, the message names it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import cast

from shoal.errors import ConfigurationError

GROUP = "shoal.commands"
EXTRA_OF = {"serve": "server", "config": "server", "import": "training", "train-local": "training"}
HELP_OF = {
    "serve": "run a server",
    "config": "show or check a server's configuration",
    "import": "turn a transformers folder, a GGUF file or a hub id into a version of the repository",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExternalCommand:
    """A command of another package and the arguments for it."""

    name: str
    argv: list[str]

    def run(self) -> int:
        """Load and run it.

        Raises:
            ConfigurationError: it, or something it needs, is not installed.
        """
        entry = _entries().get(self.name)
        if entry is None:
            raise self._missing("")
        try:
            function = cast("Callable[[list[str]], int]", entry.load())
            return function(self.argv)
        except ModuleNotFoundError as error:
            raise self._missing(f" ({error.name} is not installed)") from error

    def _missing(self, why: str) -> ConfigurationError:
        extra = EXTRA_OF.get(self.name)
        shown = "train --local" if self.name == "train-local" else self.name
        hint = f"; install it: pip install 'shoal[{extra}]'" if extra else ""
        return ConfigurationError(f"`shoal {shown}` is not part of the bare client{why}{hint}")


def find(argv: list[str]) -> ExternalCommand | None:
    """The external command that `argv` asks for, None when it asks for one of the client's own."""
    if not argv:
        return None
    if argv[0] == "train" and "--local" in argv:
        return ExternalCommand(name="train-local", argv=[word for word in argv[1:] if word != "--local"])
    if argv[0] in known_commands():
        return ExternalCommand(name=argv[0], argv=argv[1:])
    return None


def known_commands() -> dict[str, str]:
    """Names and help of external commands, installed or not."""
    own = {"train-local"} | set(HELP_OF)
    others = {name: f"from {entry.value.partition(':')[0]}" for name, entry in _entries().items() if name not in own}
    return {**HELP_OF, **others}


def _entries() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}
