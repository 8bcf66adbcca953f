"""Programs that `scripts/install_tools.sh` puts into .tools/bin."""

from __future__ import annotations

import platform
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def tool(name: str) -> str:
    """Path of a program: ours, else the system's.

    Skips the test only where the program cannot be had; where it can, its absence is a failure.
    """
    own = ROOT / ".tools" / "bin" / name
    found = str(own) if own.exists() else shutil.which(name)
    if found is not None:
        return found
    if not _can_be_had(name):
        pytest.skip(f"{name} cannot be had on this system; see scripts/install_tools.sh")
    pytest.fail(f"{name} is missing: run scripts/install_tools.sh, as `make test` does")


def _can_be_had(name: str) -> bool:
    if name == "kubectl":
        return (platform.system(), platform.machine()) == ("Linux", "x86_64")
    return shutil.which("apt-get") is not None and shutil.which("dpkg") is not None
