"""Which version answers a request, and how many requests each version has under way.

Holds control's newest routing table together with the texts (tokenizer, manifest) of the versions in it. A request
keeps the `ServedVersion` it resolved to, whatever table comes next. Knows no gRPC and no engine connections.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import msgspec

from shoal_server.errors import (
    LabelNotFound,
    ModelNotFound,
    ServerError,
    VersionLoading,
    VersionNotFound,
    VersionRejected,
    WrongModelKind,
)
from shoal_server.front.metrics import FrontMetrics, VersionMetrics
from shoal_server.front.version_text import VersionText
from shoal_server.ipc.messages import ModelKind, RoutedModel, RoutedVersion, Routing, VersionState

STABLE_LABEL: Final = "stable"
LOADING_RETRY_S: Final = 1.0
MAX_LISTED: Final = 20  # names or versions that an error lists


class ModelReference(msgspec.Struct, frozen=True, kw_only=True):
    """What a client asked for; at most one of version and label."""

    name: str
    version: int | None = None
    label: str | None = None


class VersionKey(msgspec.Struct, frozen=True, kw_only=True):
    """Names a version."""

    model: str
    version: int

    def __str__(self) -> str:
        return f"{self.model}@{self.version}"


class VersionResting(Exception):
    """The version that shall answer comes when it is asked for; `waker.py` does."""

    def __init__(self, key: VersionKey) -> None:
        super().__init__(str(key))
        self.key = key


@dataclass(slots=True, kw_only=True, eq=False)
class ServedVersion:
    """A live or draining version. Written only by its `Router`."""

    key: VersionKey
    text: VersionText
    metrics: VersionMetrics
    engine_ids: frozenset[int]
    draining: bool = False
    in_flight: int = 0
    last_used_s: float = 0.0  # when a request last ended; monotonic


class Router:
    """Resolves references and counts what is under way.

    Calls `fell_idle` when a draining version, or where control `wants_room` any, has nothing left under way.
    """

    def __init__(self, metrics: FrontMetrics, fell_idle: Callable[[], None]) -> None:
        self._metrics = metrics
        self._fell_idle = fell_idle
        self._applied = asyncio.Event()  # set, and replaced, with every table
        self._engine_ids: frozenset[int] = frozenset()
        self._models: dict[str, RoutedModel] = {}
        self._versions: dict[str, dict[int, RoutedVersion]] = {}
        self._served: dict[VersionKey, ServedVersion] = {}
        self.revision = 0
        self.serving = False
        self.wants_room = False

    def apply(self, routing: Routing, texts: Mapping[VersionKey, VersionText]) -> None:
        """Replace the table. `texts` has every live and draining version; what it lacks is not served."""
        served: dict[VersionKey, ServedVersion] = {}
        for model, version in _loaded(routing.models):
            key = VersionKey(model=model, version=version.version)
            if (text := texts.get(key)) is not None:
                served[key] = self._serve(key, version, text)
        resting = {
            VersionKey(model=m.name, version=v.version) for m in routing.models for v in m.versions if v.on_demand
        }
        for key in self._served.keys() - served.keys() - resting:
            self._metrics.version_freed(key.model, key.version)
        self._models = {model.name: model for model in routing.models}
        self._versions = {model.name: {v.version: v for v in model.versions} for model in routing.models}
        self._served, self.revision, self.serving = served, routing.revision, routing.serving
        self._engine_ids = frozenset(engine.engine_id for engine in routing.engines)
        self.wants_room = routing.wants_room
        self._applied.set()
        self._applied = asyncio.Event()

    async def applied(self, revision: int) -> None:
        """Wait until this table, or a later one, is in use."""
        while self.revision < revision:
            await self._applied.wait()

    def _serve(self, key: VersionKey, version: RoutedVersion, text: VersionText) -> ServedVersion:
        held = self._served.get(key)
        if held is None or held.text is not text:
            held = ServedVersion(
                key=key, text=text, metrics=self._metrics.version(key.model, key.version), engine_ids=frozenset()
            )
        held.engine_ids = frozenset(version.engine_ids)
        held.draining = version.state is VersionState.DRAINING
        return held

    def begin(self, reference: ModelReference, kind: ModelKind) -> ServedVersion:
        """Resolve a reference and count a request for its version; every `begin` needs one `end`.

        Raises:
            ModelNotFound, VersionNotFound, LabelNotFound: saying what is there.
            WrongModelKind, VersionRejected, VersionLoading: saying why not, or not yet.
            VersionResting: it has to be asked for.
        """
        served = self.resolve(reference, kind)
        served.in_flight += 1
        served.metrics.in_flight.inc()
        return served

    def end(self, served: ServedVersion) -> None:
        """A request that `begin` counted has ended."""
        served.in_flight -= 1
        served.last_used_s = time.monotonic()
        served.metrics.in_flight.dec()
        if served.in_flight == 0 and (served.draining or self.wants_room):
            self._fell_idle()

    def resolve(self, reference: ModelReference, kind: ModelKind) -> ServedVersion:
        """The version that answers; errors as `begin`."""
        model = self._models.get(reference.name)
        if model is None:
            raise ModelNotFound(f"no model {reference.name!r}; there are: {_listed(sorted(self._models))}")
        if model.kind is not kind:
            raise WrongModelKind(f"{model.name} is a {model.kind}; this call needs a {kind}")
        number = self._choose(model, reference)
        version = self._versions[model.name].get(number)
        if version is None:
            raise VersionNotFound(f"{model.name} has no version {number}; it has: {self._list_versions(model)}")
        key = VersionKey(model=model.name, version=number)
        if version.on_demand:
            raise VersionResting(key)
        served = self._served.get(key)
        if version.state is not VersionState.LIVE or served is None:
            raise self._refusal(model, version)
        return served

    def draining_in_flight(self) -> dict[str, int]:
        """Requests under way on draining versions, by "model@version"; those without are left out."""
        return {str(key): s.in_flight for key, s in self._served.items() if s.draining and s.in_flight}

    def in_use(self) -> Iterable[ServedVersion]:
        """Live versions with what is under way on them."""
        return (served for served in self._served.values() if not served.draining)

    def live_models(self) -> dict[str, bool]:
        """Each model that is served, and whether any of its versions is live here or comes on demand."""
        live = {served.key.model for served in self.in_use()}
        live |= {model.name for model in self._models.values() if _comes_on_demand(model)}
        return {name: name in live for name, model in self._models.items() if model.kind is not ModelKind.BASE}

    def live_engines(self, model: str) -> frozenset[int]:
        """Engines that hold a live version of a model, or are to load one that comes on demand."""
        if model in self._models and _comes_on_demand(self._models[model]):
            return self._engine_ids
        return frozenset(
            engine
            for key, s in self._served.items()
            if key.model == model and not s.draining
            for engine in s.engine_ids
        )

    def _choose(self, model: RoutedModel, reference: ModelReference) -> int:
        if reference.version is not None:
            return reference.version
        if reference.label is not None:
            if reference.label not in model.labels:
                raise LabelNotFound(
                    f"{model.name} has no label {reference.label!r}; it has: {_listed(sorted(model.labels))}"
                )
            return model.labels[reference.label]
        if STABLE_LABEL in model.labels:
            return model.labels[STABLE_LABEL]
        if model.default_version:
            return model.default_version
        raise self._none_live(model)

    def _none_live(self, model: RoutedModel) -> ServerError:
        for state in (VersionState.LOADING, VersionState.REJECTED):
            found = [version for version in model.versions if version.state is state]
            if found:
                return self._refusal(model, max(found, key=lambda version: version.version))
        return VersionNotFound(f"{model.name} has no live version; it has: {self._list_versions(model)}")

    def _refusal(self, model: RoutedModel, version: RoutedVersion) -> ServerError:
        name = f"{model.name}@{version.version}"
        if version.state is VersionState.REJECTED:
            return VersionRejected(f"{name} was refused: {version.reason or 'no reason given'}")
        if version.state in {VersionState.LOADING, VersionState.LIVE}:  # live, and its text not held here yet
            return VersionLoading(f"{name} is being loaded", retry_after_s=LOADING_RETRY_S)
        return VersionNotFound(f"{name} is not served ({version.state}); it has: {self._list_versions(model)}")

    def _list_versions(self, model: RoutedModel) -> str:
        newest_first = sorted(model.versions, key=lambda version: -version.version)
        return _listed([f"{version.version} ({version.state})" for version in newest_first])


def _loaded(models: Iterable[RoutedModel]) -> Iterable[tuple[str, RoutedVersion]]:
    states = {VersionState.LIVE, VersionState.DRAINING}
    return ((model.name, version) for model in models for version in model.versions if version.state in states)


def _comes_on_demand(model: RoutedModel) -> bool:
    return any(version.on_demand for version in model.versions)


def _listed(names: list[str]) -> str:
    if not names:
        return "none"
    more = f" and {len(names) - MAX_LISTED} more" if len(names) > MAX_LISTED else ""
    return ", ".join(names[:MAX_LISTED]) + more
