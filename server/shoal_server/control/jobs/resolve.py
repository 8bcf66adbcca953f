"""Specs checked and completed by the training package, in a process of its own.

Server and training never import each other: they meet in this process's standard input and output.
"""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from shoal_server.errors import InternalFault, InvalidRequest, Precondition, ServerError, Violation, error_classes
from shoal_server.log import Log

TIMEOUT_S = 60.0
RESOLVE_COMMAND = (sys.executable, "-m", "shoal_training.resolve")
RUN_COMMAND = (sys.executable, "-m", "shoal_training.run")
REQUIRED_MODULES = ("shoal_training", "torch", "transformers", "accelerate", "peft", "pyarrow", "sklearn")
_log = Log(__name__)


class ResolveRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What the resolver reads."""

    spec: dict[str, Any]
    repository: str
    data_roots: list[str]
    dataset_dir: str


class ResolveReply(msgspec.Struct, frozen=True, kw_only=True):
    """What the resolver prints: a spec with every default filled in, or what is wrong."""

    spec: dict[str, Any] | None = None
    violations: list[Violation] = []
    kind: str = "InvalidRequest"  # class of the error


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolver:
    """Runs the resolver."""

    repository: str
    data_roots: tuple[str, ...]
    dataset_dir: str
    command: Sequence[str] = RESOLVE_COMMAND
    required_modules: Sequence[str] = REQUIRED_MODULES

    async def resolve(self, spec: dict[str, Any]) -> dict[str, Any]:
        """The spec with every default filled in.

        Raises:
            InvalidRequest, ModelNotFound, DatasetNotFound: as the resolver says, with violations.
            Precondition: training is not installed.
            InternalFault: the resolver broke or took too long.
        """
        self._check_installed()
        request = ResolveRequest(
            spec=spec,
            repository=self.repository,
            data_roots=list(self.data_roots),
            dataset_dir=self.dataset_dir,
        )
        reply = _decode(await self._run(msgspec.json.encode(request)))
        if reply.spec is None:
            raise _to_error(reply)
        return reply.spec

    def _check_installed(self) -> None:
        missing = [name for name in self.required_modules if importlib.util.find_spec(name) is None]
        if missing:
            raise Precondition(f"this server cannot train: install shoal[training] (missing: {', '.join(missing)})")

    async def _run(self, request: bytes) -> bytes:
        process = await asyncio.create_subprocess_exec(
            *self.command,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            async with asyncio.timeout(TIMEOUT_S):
                output, errors = await process.communicate(request)
        except BaseException as error:
            process.kill()
            await process.wait()
            if isinstance(error, TimeoutError):
                raise InternalFault(f"the spec was not checked within {TIMEOUT_S:.0f} s") from error
            raise
        if process.returncode != 0:
            _log.error("resolver_failed", code=process.returncode, stderr=errors[-2000:].decode(errors="replace"))
            raise InternalFault(f"the spec could not be checked: the resolver ended with code {process.returncode}")
        return output


def _decode(output: bytes) -> ResolveReply:
    try:
        return msgspec.json.decode(output, type=ResolveReply)
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise InternalFault("the spec could not be checked: the resolver's answer is malformed") from error


def _to_error(reply: ResolveReply) -> ServerError:
    cls = error_classes().get(reply.kind, InvalidRequest)
    message = "; ".join(f"{v.field}: {v.description}" for v in reply.violations) or "the spec is invalid"
    return cls(message, violations=reply.violations)
