"""How the system shares cores out among the threads of a server: which may interrupt which. Linux only.

Forwards keep all cores busy while fronts and the engine's turns each have something short to do between two waits, and
what they do decides how long a caller waits. Since Linux 6.12 a thread may ask for short slices of processor time; when
it wakes up it then gets a core at once from whoever has longer ones, as forwards have (1.4 ms and more).
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from shoal_server.log import Log

_log = Log(__name__)
_PROMPT_NS = 200_000
_PATIENT_NS = 500_000
_CALLS = {"x86_64": (314, 315), "aarch64": (274, 275)}  # numbers of sched_setattr(2) and sched_getattr(2)
_ATTRIBUTES = struct.Struct("=IIQiIQQQ")  # size, policy, flags, nice, priority, runtime, deadline, period


def be_prompt() -> None:
    """Let the calling thread, and those that it starts, get a core from forwards and from patient threads.

    Changes nothing where the system knows no slices, or a sandbox forbids them.
    """
    if _may_change():
        _take_slices(_PROMPT_NS)


@contextmanager
def patient_threads() -> Iterator[None]:
    """Threads started within, and those that they start, get cores from forwards but not from prompt threads.

    Where the system knows no slices they wait for a free core or their turn (SCHED_BATCH; see `man 7 sched`).
    """
    if not _may_change():
        yield
        return
    before_ns = slice_ns()
    if _take_slices(_PATIENT_NS):
        try:
            yield
        finally:
            _take_slices(before_ns)
        return
    try:
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    except OSError as error:  # a sandbox may forbid it
        _log.warning("threads_impatient", reason=error.strerror)
        yield
        return
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


def slice_ns() -> int:
    """The slices of the calling thread; 0 where the system does not tell."""
    if platform.machine() not in _CALLS:
        return 0
    attributes = ctypes.create_string_buffer(_ATTRIBUTES.size)
    if ctypes.CDLL(None).syscall(_CALLS[platform.machine()][1], 0, attributes, _ATTRIBUTES.size, 0):
        return 0
    runtime_ns: int = _ATTRIBUTES.unpack(attributes.raw)[5]
    return runtime_ns


def _take_slices(length_ns: int) -> bool:
    """Whether the calling thread has slices of this length now."""
    if platform.machine() not in _CALLS:
        return False
    attributes = _ATTRIBUTES.pack(_ATTRIBUTES.size, os.SCHED_OTHER, 0, 0, 0, length_ns, 0, 0)
    ctypes.CDLL(None).syscall(_CALLS[platform.machine()][0], 0, attributes, 0)
    return slice_ns() == length_ns  # an older system takes no notice


def _may_change() -> bool:
    """Whether whoever started the process left the choice to it."""
    return sys.platform == "linux" and os.sched_getscheduler(0) == os.SCHED_OTHER
