"""An argument parser that lets options stand anywhere between positional arguments."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any


class FreeOrderParser(argparse.ArgumentParser):
    """Reads `MODEL --chat PROMPT` as `MODEL PROMPT --chat`, which argparse refuses where PROMPT may be absent."""

    _inside = False

    def parse_known_args(  # type: ignore[override]  # the overloads of typeshed say the same
        self, args: Sequence[str] | None = None, namespace: Any = None
    ) -> tuple[Any, list[str]]:
        """Parse in two passes, options first; a parser with subcommands has only the usual one."""
        has_subcommands = any(action.nargs == argparse.PARSER for action in self._actions)
        if self._inside or has_subcommands:
            return super().parse_known_args(args, namespace)
        self._inside = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._inside = False
