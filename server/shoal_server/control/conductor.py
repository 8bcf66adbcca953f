"""Carries out what rollout decides, and is how people's model calls and the watcher's findings reach it."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path

from shoal_models.manifest import delete_version

from shoal_server.control.actions import (
    Action,
    DeleteFiles,
    NoteFreed,
    NoteLive,
    NoteRejected,
    SendLoad,
    SendPrepare,
    SendRouting,
    SendUnload,
)
from shoal_server.control.freed import FreedVersions
from shoal_server.control.peers import Peers
from shoal_server.control.policy import ModelRecord, RecordStore
from shoal_server.control.rollout import Rollout
from shoal_server.control.versions import FoundVersion, VersionKey
from shoal_server.control.watcher import Watcher
from shoal_server.ipc.messages import LoadVersion, PrepareVersion, UnloadVersion
from shoal_server.log import Log

_log = Log(__name__)


class Conductor:
    """Rollout's hands."""

    def __init__(
        self,
        rollout: Rollout,
        peers: Peers,
        records: RecordStore,
        repository: Path,
        *,
        bases_in_use: Callable[[], Iterable[str]],
    ) -> None:
        self.rollout = rollout
        self.freed = FreedVersions()
        self.num_rejections: Counter[VersionKey] = Counter()
        self.watcher: Watcher | None = None
        self._peers = peers
        self._records = records
        self._repository = repository
        self._bases_in_use = bases_in_use  # `name` or `name@version`, of jobs that have not ended
        self._changed = asyncio.Event()
        self._deletions: set[asyncio.Task[str]] = set()

    def open(self) -> None:
        """Read what people have asked for in earlier lives.

        Raises:
            RecordDamaged: a record cannot be read.
        """
        for model, record in self._records.load_all().items():
            self.rollout.record_changed(model, record)

    def found(self, versions: dict[VersionKey, FoundVersion]) -> None:
        """The watcher has looked at the repository."""
        self.rollout.repository_scanned(versions)
        self.apply()

    def apply(self) -> None:
        """Carry out everything that rollout decides now."""
        self.rollout.protect(self._protected())
        self.rollout.time_is(time.monotonic())
        for action in self.rollout.plan():
            self._carry_out(action)
        self._changed.set()
        self._changed = asyncio.Event()

    def state_changed(self) -> asyncio.Event:
        """Set after the next time that anything was applied."""
        return self._changed

    def change_record(self, model: str, change: Callable[[ModelRecord], ModelRecord]) -> None:
        """Replace a model's record, on disk first.

        Raises:
            StorageFull: nothing has changed.
        """
        record = self._records.change(model, self.rollout.record_of(model), change)
        self.rollout.record_changed(model, record)

    async def scan(self) -> None:
        """Look at the repository now."""
        if self.watcher is not None:
            await self.watcher.scan_now()

    async def delete_files(self, key: VersionKey) -> str:
        """Remove a version's files; empty, or why that failed."""
        problem = ""
        try:
            await asyncio.to_thread(delete_version, self._repository, key.model, key.version)
            _log.info("version_deleted", model=key.model, version=key.version)
        except FileNotFoundError:
            _log.info("version_deleted_elsewhere", model=key.model, version=key.version)
        except OSError as error:
            problem = error.strerror or str(error)
            _log.warning("version_not_deleted", model=key.model, version=key.version, error=problem)
        self.rollout.deletion_ended(key, failed=bool(problem))
        self.apply()
        return problem

    def _carry_out(self, action: Action) -> None:
        match action:
            case SendLoad(engine_id=engine_id, key=key, path=path):
                _log.info("version_loading", model=key.model, version=key.version, engine=engine_id)
                message = LoadVersion(model=key.model, version=key.version, path=path)
                self._peers.send_to_engine(engine_id, message)
            case SendUnload(engine_id=engine_id, key=key):
                self._peers.send_to_engine(engine_id, UnloadVersion(model=key.model, version=key.version))
            case SendPrepare(front_id=front_id, key=key, path=path):
                prepare = PrepareVersion(model=key.model, version=key.version, path=path)
                self._peers.send_to_front(front_id, prepare)
            case SendRouting(front_id=front_id, routing=routing):
                self._peers.send_to_front(front_id, routing)
            case DeleteFiles(key=key):
                task = asyncio.create_task(self.delete_files(key))
                self._deletions.add(task)
                task.add_done_callback(self._deletions.discard)
            case NoteLive() | NoteRejected() | NoteFreed():
                self._note(action)

    def _note(self, action: NoteLive | NoteRejected | NoteFreed) -> None:
        match action:
            case NoteLive(key=key):
                _log.info("version_live", model=key.model, version=key.version)
                self.freed.revived(key)
            case NoteRejected(key=key, reason=reason):
                _log.error("version_rejected", model=key.model, version=key.version, reason=reason)
                self.num_rejections[key] += 1
            case NoteFreed(key=key, resting=True):
                _log.info("version_rests", model=key.model, version=key.version)
            case NoteFreed(key=key):
                _log.info("version_freed", model=key.model, version=key.version)
                self.freed.freed(key, time.monotonic())

    def _protected(self) -> set[VersionKey]:
        """Versions that jobs began from; a base named without a version protects all of its versions."""
        keys: set[VersionKey] = set()
        for base in self._bases_in_use():
            model, _, number = base.partition("@")
            versions = (
                [int(number)] if number.isdigit() else [e.found.key.version for e in self.rollout.entries_of(model)]
            )
            keys.update(VersionKey(model, version) for version in versions)
        return keys
