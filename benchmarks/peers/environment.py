"""A peer's own virtual environment, made when it is first needed and again when its requirements change."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ENVIRONMENTS = ROOT / ".venv-peers"
CONSTRAINTS = Path(__file__).resolve().parent / "constraints.txt"
TORCH = "torch==2.13.0"  # first and plain: so pip takes the build that this machine offers
INSTALL_LIMIT_S = 900.0
_STAMP = ".ready"


class InstallError(Exception):
    """A peer cannot be installed here; the message is the last that pip said."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """The environment of `requirements`, below `ENVIRONMENTS`."""

    name: str
    requirements: Path
    interpreter: str = sys.executable  # that makes it

    @property
    def folder(self) -> Path:
        """Where it lies."""
        return ENVIRONMENTS / self.name

    @property
    def python(self) -> Path:
        """Its interpreter."""
        return self.folder / "bin" / "python"

    def is_ready(self) -> bool:
        """Whether it was made for what the requirements say now."""
        stamp = self.folder / _STAMP
        return stamp.exists() and stamp.read_text() == self._wanted()

    def ensure(self) -> None:
        """Make it unless it is ready; takes about a minute.

        Raises:
            InstallError: pip could not.
        """
        if self.is_ready():
            return
        if not self.python.exists():
            _run([self.interpreter, "-m", "venv", str(self.folder)])
        pip = [str(self.python), "-m", "pip", "--disable-pip-version-check", "--quiet", "install"]
        _run([*pip, TORCH])
        _run([*pip, "-c", str(CONSTRAINTS), "-r", str(self.requirements)])
        (self.folder / _STAMP).write_text(self._wanted())

    def _wanted(self) -> str:
        text = TORCH + CONSTRAINTS.read_text() + self.requirements.read_text()
        return hashlib.sha256(text.encode()).hexdigest()


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=INSTALL_LIMIT_S, check=False)
    except subprocess.TimeoutExpired:
        raise InstallError(f"{' '.join(command[-3:])}: not done within {INSTALL_LIMIT_S:g} s") from None
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise InstallError(lines[-1][:300] if lines else f"pip ended with {done.returncode}")
