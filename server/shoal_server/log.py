"""Log lines of every process: an event name plus keys, as text for people or JSON for machines.

Never a prompt, a text or a data row. Written to standard error.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from typing import Any

from shoal_server.config import LogConfig


class _TextFormatter(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        keys = "".join(f" {key}={value}" for key, value in getattr(record, "keys", {}).items())
        line = f"{clock}.{int(record.msecs):03d} {record.levelname:<7} {self._process:<9} {record.getMessage()}{keys}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class _JsonFormatter(logging.Formatter):
    def __init__(self, process: str) -> None:
        super().__init__()
        self._process = process

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": record.created,
            "level": record.levelname,
            "process": self._process,
            "event": record.getMessage(),
            **getattr(record, "keys", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


class Log:
    """Writes events; one for each module."""

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(name)

    def debug(self, event: str, **keys: object) -> None:
        """Something for whoever debugs."""
        self._logger.debug(event, extra={"keys": keys})

    def info(self, event: str, **keys: object) -> None:
        """Something that happened as it should."""
        self._logger.info(event, extra={"keys": keys})

    def warning(self, event: str, **keys: object) -> None:
        """Something that a person may want to look at."""
        self._logger.warning(event, extra={"keys": keys})

    def error(self, event: str, *, exc_info: bool = False, **keys: object) -> None:
        """Something that failed."""
        self._logger.error(event, exc_info=exc_info, extra={"keys": keys})


def setup_logging(config: LogConfig, process: str) -> None:
    """Send this process's lines to standard error; `process` is such as "front-0"."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JsonFormatter(process) if config.format == "json" else _TextFormatter(process))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("shoal_server").setLevel(config.level)
