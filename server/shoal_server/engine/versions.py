"""Which versions this engine holds, is loading, and is about to free; what control is told of them.

Owns that state. Loading and freeing happen in `loader`; the compute loop tells this table what became of it.
"""

from __future__ import annotations

from collections.abc import Callable

from shoal_models.manifest import Manifest

from shoal_server.engine.loader import Loader
from shoal_server.engine.model_runner import ModelRunner, ReadyGenerator, ReadyVersion
from shoal_server.engine.request import VersionKey
from shoal_server.errors import VersionNotFound
from shoal_server.ipc.messages import (
    LoadVersion,
    Message,
    UnloadVersion,
    VersionLoaded,
    VersionRefused,
    VersionUnloaded,
)
from shoal_server.log import Log

_log = Log(__name__)


class Versions:
    """The versions of one engine."""

    def __init__(
        self, *, engine_id: int, runner: ModelRunner, loader: Loader, report: Callable[[Message], None]
    ) -> None:
        self._engine_id = engine_id
        self._runner = runner
        self._loader = loader
        self._report = report
        self._served: dict[VersionKey, ReadyVersion] = {}
        self._loading: dict[VersionKey, bool] = {}  # True: control wants it gone as soon as it is loaded
        self._leaving: set[VersionKey] = set()  # served no more, but calls run on it
        self._freeing: dict[VersionKey, LoadVersion | None] = {}  # with the order to load it again, if that came

    def manifest(self, key: VersionKey) -> Manifest:
        """What a served version is.

        Raises:
            VersionNotFound: it is not served here.
        """
        ready = self._served.get(key)
        if ready is None or key in self._leaving:
            raise VersionNotFound(f"{key} is not loaded on engine {self._engine_id}")
        return ready.manifest

    def served(self) -> list[VersionKey]:
        """Versions that hold memory and run."""
        return list(self._served)

    def leaving(self) -> list[VersionKey]:
        """Versions to be freed once nothing runs on them."""
        return list(self._leaving)

    def load(self, order: LoadVersion) -> None:
        """Obey an order to load; one for a version that is here is confirmed at once."""
        key = VersionKey(order.model, order.version)
        if key in self._freeing:
            self._freeing[key] = order
        elif key in self._served:
            self._leaving.discard(key)
            self._report_loaded(self._served[key])
        elif key in self._loading:
            self._loading[key] = False
        else:
            self._loading[key] = False
            self._loader.load(order)

    def unload(self, order: UnloadVersion) -> None:
        """Obey an order to unload; what is being loaded goes as soon as it has been, what runs when it has ended."""
        key = VersionKey(order.model, order.version)
        if key in self._freeing:
            self._freeing[key] = None
        elif key in self._loading:
            self._loading[key] = True
        elif key in self._served:
            self._leaving.add(key)
        else:
            self._report_unloaded(key)

    def adopt(self, ready: ReadyVersion) -> bool:
        """Take in a loaded version; False when control wants it no more, then it is being freed."""
        if self._loading.pop(ready.key):
            self._freeing[ready.key] = None
            self._loader.free(ready)
            return False
        self._served[ready.key] = ready
        self._runner.adopt(ready)
        self._report_loaded(ready)
        _log.info("version.loaded", version=ready.key, seconds=round(ready.load_s, 2), execution=ready.model.execution)
        return True

    def refuse(self, key: VersionKey, reason: str, lacking_bytes: int) -> None:
        """Tell control that a version could not be loaded, or, where it wants it no more, that it is gone."""
        if self._loading.pop(key):
            self._report_unloaded(key)
            return
        self._report(
            VersionRefused(
                engine_id=self._engine_id,
                model=key.model,
                version=key.version,
                reason=reason,
                lacking_bytes=lacking_bytes,
            )
        )

    def release(self, key: VersionKey) -> None:
        """Begin to free a leaving version on which nothing runs any more."""
        self._leaving.remove(key)
        del self._served[key]
        self._freeing[key] = None
        self._loader.free(self._runner.release(key))

    def freed(self, key: VersionKey) -> None:
        """A version's memory is back."""
        self._report_unloaded(key)
        again = self._freeing.pop(key)
        if again is not None:
            self.load(again)

    def _report_loaded(self, ready: ReadyVersion) -> None:
        self._report(
            VersionLoaded(
                engine_id=self._engine_id,
                model=ready.key.model,
                version=ready.key.version,
                execution=ready.model.execution,
                compute_dtype=ready.model.compute_dtype,
                load_s=ready.load_s,
                memory=ready.memory,
                kv_cache_tokens=_cache_tokens(ready),
            )
        )

    def _report_unloaded(self, key: VersionKey) -> None:
        self._report(VersionUnloaded(engine_id=self._engine_id, model=key.model, version=key.version))


def _cache_tokens(ready: ReadyVersion) -> int:
    return ready.cache.num_blocks * ready.cache.block_tokens if isinstance(ready, ReadyGenerator) else 0
