"""What the Model service asks of control."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Protocol

import msgspec

from shoal_server.control.page_tokens import check_page_size, decode_page_token, encode_page_token
from shoal_server.control.policy import ModelRecord, record_loaded, record_unloaded
from shoal_server.control.residency import is_on_demand, waiting_for
from shoal_server.control.rollout import Rollout
from shoal_server.control.routing import model_status, version_status
from shoal_server.control.versions import Phase, VersionEntry, VersionKey
from shoal_server.errors import (
    InvalidRequest,
    LabelMoved,
    ModelNotFound,
    Precondition,
    StorageFull,
    VersionInUse,
    VersionLoading,
    VersionNotFound,
    VersionRejected,
    WrongModelKind,
)
from shoal_server.ipc.calls import (
    DeleteModelVersion,
    Empty,
    GetModel,
    ListModels,
    LoadModel,
    ModelPage,
    ModelStatus,
    SetModelLabel,
    UnloadModel,
    VersionList,
    VersionStatus,
    WakeVersion,
    Woken,
)

_LABEL = re.compile(r"[a-z][a-z0-9_-]{0,63}")
_MAX_NAMES_LISTED = 20
_SHORTAGE_RETRY_S = 5.0  # when to come back for a version that memory was too short for


class Steering(Protocol):
    """How model calls reach the rollout's outside world."""

    rollout: Rollout

    def apply(self) -> None:
        """Carry out what rollout decides now."""

    def change_record(self, model: str, change: Callable[[ModelRecord], ModelRecord]) -> None:
        """Replace a model's record durably."""

    def state_changed(self) -> asyncio.Event:
        """Set at the next change of any version."""

    def scan(self) -> Awaitable[None]:
        """Look at the repository now."""

    def delete_files(self, key: VersionKey) -> Awaitable[str]:
        """Remove a version's files; empty, or why that failed."""


class ModelCalls:
    """Handlers of calls about models."""

    def __init__(self, steering: Steering) -> None:
        self._steering = steering

    @property
    def _rollout(self) -> Rollout:
        return self._steering.rollout

    async def list_models(self, call: ListModels) -> ModelPage:
        """Models by name."""
        after = decode_page_token("models", call.page_token)
        size = check_page_size(call.page_size)
        names = [name for name in self._rollout.models() if name > after]
        token = encode_page_token("models", names[size - 1]) if len(names) > size else ""
        return ModelPage(models=[model_status(self._rollout, name) for name in names[:size]], next_page_token=token)

    async def get(self, call: GetModel) -> ModelStatus:
        """One model."""
        self._entries(call.name)
        return model_status(self._rollout, call.name)

    async def load(self, call: LoadModel) -> VersionStatus:
        """Serve a version from now on; answered when it is live or refused.

        Raises:
            ModelNotFound, VersionNotFound, WrongModelKind, VersionRejected, Precondition, StorageFull.
        """
        await self._steering.scan()  # it may have been published a moment ago, or repaired
        entry = self._entry(call.name, call.version)
        self._check_loadable(entry)
        key = entry.found.key
        others = [e.found.key.version for e in self._entries(key.model)]
        is_named = call.version is not None
        unpinned = record_loaded(self._rollout.record_of(key.model), key.version, others, named=is_named, pin=False)
        self._rollout.retry(key)
        pin = not self._would_serve(key, unpinned)
        self._steering.change_record(
            key.model, lambda record: record_loaded(record, key.version, others, named=is_named, pin=pin)
        )
        with waiting_for(self._rollout, key):
            self._steering.apply()
            await self._wait_settled(key)
        return version_status(self._rollout, self._rollout.entries[key])

    async def wake(self, call: WakeVersion) -> Woken:
        """Load a version that comes on demand; answered when it is live or will not be.

        Raises:
            VersionLoading: memory is too short for it now.
        """
        key = VersionKey(call.name, call.version)
        if key in self._rollout.entries:
            with waiting_for(self._rollout, key):
                self._steering.apply()
                await self._wait_woken(key)
        return Woken(revision=self._rollout.table.revision)

    async def _wait_woken(self, key: VersionKey) -> None:
        while (entry := self._rollout.entries.get(key)) is not None and is_on_demand(self._rollout, entry):
            _check_room(entry)
            await self._steering.state_changed().wait()

    async def unload(self, call: UnloadModel) -> VersionList:
        """Serve a version, or a whole model, no longer; requests in flight finish.

        Raises:
            ModelNotFound, VersionNotFound, StorageFull.
        """
        entries = self._entries(call.name) if call.version is None else [self._entry(call.name, call.version)]
        before = [entry for entry in entries if entry.phase in (Phase.LIVE, Phase.LOADING)]
        self._steering.change_record(call.name, lambda record: record_unloaded(record, call.version))
        self._steering.apply()
        return VersionList(versions=sorted(entry.found.key.version for entry in before))

    async def delete(self, call: DeleteModelVersion) -> Empty:
        """Remove a version from the repository.

        Raises:
            ModelNotFound, VersionNotFound, VersionInUse, StorageFull.
        """
        entry = self._entry(call.name, call.version)
        key = entry.found.key
        if reason := self._rollout.is_in_use(key):
            raise VersionInUse(f"{key} is {reason}; it cannot be deleted")
        if entry.deleting:
            raise VersionNotFound(f"{key} is being deleted")
        entry.deleting = True
        if problem := await self._steering.delete_files(key):
            raise StorageFull(f"{key} could not be deleted: {problem}")
        return Empty()

    async def set_label(self, call: SetModelLabel) -> ModelStatus:
        """Move or remove a label. A version that is not live is loaded first, so that no request fails meanwhile.

        Raises:
            InvalidRequest, ModelNotFound, VersionNotFound, VersionRejected, Precondition, LabelMoved, StorageFull.
        """
        if not _LABEL.fullmatch(call.label):
            raise InvalidRequest.of("label", "must be 1 to 64 of a-z 0-9 _ - beginning with a letter")
        self._entries(call.name)
        self._check_expected(call)
        if call.version is not None:
            await self._make_live(self._entry(call.name, call.version))
            self._check_expected(call)
        self._steering.change_record(call.name, lambda record: _relabel(record, call.label, call.version))
        self._steering.apply()
        return model_status(self._rollout, call.name)

    async def _make_live(self, entry: VersionEntry) -> None:
        key = entry.found.key
        if self._rollout.settings.num_engines == 0 or entry.found.kind not in self._rollout.settings.kinds | {""}:
            return
        if entry.phase is Phase.REJECTED:
            raise VersionRejected(f"{key} was refused: {entry.reason}")
        if self._rollout.record_of(key.model).is_unloaded(key.version):
            raise Precondition(f"{key} was unloaded by request; load it first")
        entry.label_pending = True
        try:
            with waiting_for(self._rollout, key):
                self._steering.apply()
                await self._wait_settled(key)
        finally:
            entry.label_pending = False

    async def _wait_settled(self, key: VersionKey) -> None:
        while True:
            changed = self._steering.state_changed()
            entry = self._rollout.entries.get(key)
            if entry is None or entry.gone:
                raise VersionNotFound(f"{key} was removed from the repository")
            if entry.phase is Phase.LIVE:
                return
            if entry.phase is Phase.REJECTED:
                raise VersionRejected(f"{key} was refused: {entry.reason}")
            if self._rollout.record_of(key.model).is_unloaded(key.version):
                raise Precondition(f"{key} was unloaded by request while it loaded")
            _check_room(entry)
            await changed.wait()

    def _would_serve(self, key: VersionKey, record: ModelRecord) -> bool:
        """Whether the version is wanted under `record` anyway."""
        before = self._rollout.record_of(key.model)
        self._rollout.record_changed(key.model, record)
        try:
            return key.version in self._rollout.wanted(key.model)
        finally:
            self._rollout.record_changed(key.model, before)

    def _check_loadable(self, entry: VersionEntry) -> None:
        settings, key = self._rollout.settings, entry.found.key
        if settings.num_engines == 0:
            raise Precondition("this server runs no engine: it loads no models")
        if entry.found.kind == "base":
            raise WrongModelKind(f"{key} is a base to train from; it answers no requests")
        if entry.found.kind not in settings.kinds | {""}:
            raise WrongModelKind(f"{key} is a {entry.found.kind}; this server does not offer that service")

    def _check_expected(self, call: SetModelLabel) -> None:
        now = self._rollout.record_of(call.name).labels.get(call.label, 0)
        if call.expected_version is not None and now != call.expected_version:
            where = f"at version {now}" if now else "nowhere"
            expected = f"version {call.expected_version}" if call.expected_version else "nowhere"
            raise LabelMoved(f"label {call.label!r} of {call.name} is {where}; expected {expected}")

    def _entries(self, model: str) -> list[VersionEntry]:
        entries = [entry for entry in self._rollout.entries_of(model) if not entry.gone]
        if not entries:
            names = self._rollout.models()
            there = ", ".join(names[:_MAX_NAMES_LISTED]) or "none"
            more = f" and {len(names) - _MAX_NAMES_LISTED} more" if len(names) > _MAX_NAMES_LISTED else ""
            raise ModelNotFound(f"no model {model[:128]!r}; there are: {there}{more}")
        return entries

    def _entry(self, model: str, version: int | None) -> VersionEntry:
        """A version, the newest where none is named."""
        entries = self._entries(model)
        if version is None:
            return entries[0]
        for entry in entries:
            if entry.found.key.version == version:
                return entry
        there = ", ".join(str(entry.found.key.version) for entry in entries[:_MAX_NAMES_LISTED])
        raise VersionNotFound(f"{model} has no version {version}; it has: {there}")


def _check_room(entry: VersionEntry) -> None:
    """Raises VersionLoading where the version rests again, since memory was too short."""
    if entry.resting and entry.shortage:
        raise VersionLoading(
            f"{entry.found.key} cannot be loaded now: {entry.shortage}", retry_after_s=_SHORTAGE_RETRY_S
        )


def _relabel(record: ModelRecord, label: str, version: int | None) -> ModelRecord:
    labels = {name: number for name, number in record.labels.items() if name != label}
    if version is not None:
        labels[label] = version
    return msgspec.structs.replace(record, labels=labels)
