"""The texts (tokenizer, manifest, template) of the versions that this front serves or is about to serve."""

from __future__ import annotations

import asyncio
from pathlib import Path

from shoal_server.front.routing import VersionKey
from shoal_server.front.version_text import TextRefused, VersionText, load_version_text
from shoal_server.ipc.messages import Routing, VersionState
from shoal_server.log import Log

_log = Log(__name__)
_HELD = frozenset({VersionState.LIVE, VersionState.DRAINING})
_KEPT = _HELD | {VersionState.LOADING, VersionState.IDLE}  # an idle version is answered sooner when it comes back


class TextStore:
    """Loads texts in threads, each once, and forgets those whose versions have gone."""

    def __init__(self) -> None:
        self._texts: dict[VersionKey, VersionText] = {}
        self._paths: dict[VersionKey, str] = {}
        self._loading: dict[VersionKey, asyncio.Task[VersionText]] = {}

    async def load(self, key: VersionKey, path: str) -> VersionText:
        """The text of a version, read from `path` unless it is held already.

        Raises:
            TextRefused: it cannot be used.
        """
        held = self._texts.get(key)
        if held is not None and self._paths[key] == path:
            return held
        task = self._loading.get(key)
        if task is None:
            task = self._loading[key] = asyncio.create_task(asyncio.to_thread(load_version_text, Path(path)))
            task.add_done_callback(lambda _: self._loading.pop(key, None))
        text = await task
        self._texts[key], self._paths[key] = text, path
        return text

    async def load_routed(self, routing: Routing) -> dict[VersionKey, VersionText]:
        """The texts of every live and draining version; one that cannot be used is left out and logged."""
        found: dict[VersionKey, VersionText] = {}
        for model in routing.models:
            for version in model.versions:
                if version.state in _HELD:
                    key = VersionKey(model=model.name, version=version.version)
                    try:
                        found[key] = await self.load(key, version.path)
                    except TextRefused as error:
                        _log.error("text_refused", model=key.model, version=key.version, reason=str(error))
        return found

    def forget(self, routing: Routing) -> None:
        """Drop texts of versions that are neither served nor idle nor being loaded any more."""
        gone = {
            VersionKey(model=model.name, version=version.version)
            for model in routing.models
            for version in model.versions
            if version.state not in _KEPT
        }
        named = {VersionKey(model=m.name, version=v.version) for m in routing.models for v in m.versions}
        for key in [key for key in self._texts if key in gone or key not in named]:
            del self._texts[key]
            del self._paths[key]
