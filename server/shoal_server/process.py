"""The first lines of every child process: read what control says, tie life to control's, call the entry function.

Control runs `python -m shoal_server.process module:function` and writes one `Startup` as JSON to standard input.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import signal
import sys

import msgspec

from shoal_server.config import ServerConfig
from shoal_server.log import setup_logging

ENGINE_IO_THREAD = "io"  # name of the thread that reads and writes an engine's sockets
_PR_SET_PDEATHSIG = 1
_PR_SET_NAME = 15


class Startup(msgspec.Struct, frozen=True, kw_only=True):
    """What a front or an engine is told at its start."""

    role: str  # "front" or "engine"
    index: int  # front_id or engine_id, from 0
    incarnation: int  # grows with every restart
    parent_pid: int
    runtime_dir: str  # folder for unix sockets
    control_address: str  # unix socket of the control process
    grpc_address: str  # fronts: host:port, port already chosen by control
    config: ServerConfig


def die_with_parent(parent_pid: int) -> None:
    """Be killed when the parent is, however it dies; end at once when it is gone already."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        sys.exit("the control process is gone")


def name_thread(name: str) -> None:
    """Name the calling thread, in at most 15 bytes, for whoever looks at the threads of a process, as `top -H` does."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_NAME, name.encode(), 0, 0, 0)


def main() -> None:
    """Entry point of child processes."""
    startup = msgspec.json.decode(sys.stdin.buffer.read(), type=Startup)
    die_with_parent(startup.parent_pid)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; control decides
    setup_logging(startup.config.log, f"{startup.role}-{startup.index}")
    module, _, function = sys.argv[1].partition(":")
    getattr(importlib.import_module(module), function)(startup)


if __name__ == "__main__":
    main()
