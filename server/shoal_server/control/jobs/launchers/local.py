"""Trainers as processes of this machine, each in a session of its own, so that it outlives the server."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

LOG_NAME = "log.txt"
NICENESS = 5  # serving goes first
LOST = None  # exit code of a process that was not our child


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessIdentity:
    """A process, told from a later one with the same pid by when it started."""

    pid: int
    start_ticks: int  # clock ticks since boot


class RunningTrainer:
    """A trainer that was started here, or adopted after the server restarted."""

    def __init__(self, identity: ProcessIdentity, process: subprocess.Popen[bytes] | None) -> None:
        self.identity = identity
        self._process = process

    def has_ended(self) -> bool:
        """Whether the process is gone; cheap. Once true, nothing of its group runs any more."""
        if self._process is None:
            return not is_alive(self.identity)
        if self._process.returncode is not None:
            return True
        if os.waitid(os.P_PID, self.identity.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
            return False
        with suppress(
            ProcessLookupError, PermissionError
        ):  # not yet reaped, so the pid and the group are still its own
            os.killpg(self.identity.pid, signal.SIGKILL)
        self._process.wait()
        return True

    @property
    def exit_code(self) -> int | None:
        """After its end; negative for a signal, None when nobody can know."""
        return self._process.returncode if self._process is not None else LOST

    def signal_group(self, number: signal.Signals) -> None:
        """Signal the trainer and all that it started."""
        if is_alive(self.identity):
            with suppress(ProcessLookupError):  # it ended this very moment
                os.killpg(self.identity.pid, number)


class LocalLauncher:
    """Starts trainers with one command line."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = tuple(command)

    def start(self, job_dir: Path, *, num_threads: int) -> RunningTrainer:
        """Start a trainer on a job folder; its output goes to log.txt.

        Raises:
            OSError: the folder is not writable, the disk full, or no process can be had.
        """
        threads = str(num_threads)
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "MKL_NUM_THREADS": threads, "PYTHONUNBUFFERED": "1"}
        with (job_dir / LOG_NAME).open("ab") as log:
            process = subprocess.Popen(
                [*self._command, str(job_dir)],
                cwd=job_dir,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        with suppress(ProcessLookupError, PermissionError):
            os.setpriority(os.PRIO_PROCESS, process.pid, NICENESS)
        ticks = start_ticks(process.pid)
        return RunningTrainer(ProcessIdentity(pid=process.pid, start_ticks=ticks or 0), process)

    def adopt(self, identity: ProcessIdentity) -> RunningTrainer:
        """Take over a trainer of an earlier server; it may have ended."""
        return RunningTrainer(identity, None)


def is_alive(identity: ProcessIdentity) -> bool:
    """Whether exactly this process runs; a zombie does not."""
    fields = _read_stat(identity.pid)
    return fields is not None and fields[0] not in ("Z", "X") and int(fields[19]) == identity.start_ticks


def start_ticks(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None when it is gone."""
    fields = _read_stat(pid)
    return int(fields[19]) if fields is not None else None


def _read_stat(pid: int) -> list[str] | None:
    """Fields of /proc/<pid>/stat from the state on (proc_pid_stat(5), fields 3 and later)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()
