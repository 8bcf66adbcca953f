"""Which version answers, and what is said when none can."""

from __future__ import annotations

import pytest
from front_world import word_tokenizer
from shoal_models.manifest import Manifest
from shoal_server.errors import (
    LabelNotFound,
    ModelNotFound,
    ServerError,
    VersionLoading,
    VersionNotFound,
    VersionRejected,
    WrongModelKind,
)
from shoal_server.front.metrics import FREED_SERIES_S, FrontMetrics
from shoal_server.front.routing import ModelReference, Router, VersionKey
from shoal_server.front.version_text import Frame, VersionText
from shoal_server.front.words import WordRule
from shoal_server.ipc.messages import ModelKind, RoutedModel, RoutedVersion, Routing, VersionState

S = VersionState
MANIFEST = Manifest(
    model="m",
    version=1,
    kind="classifier",
    family="encoder",
    architecture="x",
    max_tokens=8,
    vocabulary_size=9,
    weight_dtype="float32",
)
TEXT = VersionText(
    manifest=MANIFEST, tokenizer=word_tokenizer(), single=Frame(), pair=Frame(), words=WordRule(), chat=None
)


class Table:
    """A router that is told tables in one line."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.metrics = FrontMetrics(clock=lambda: self.now_s)
        self.num_drained = 0
        self.router = Router(self.metrics, self._drained)

    def _drained(self) -> None:
        self.num_drained += 1

    def apply(
        self, states: dict[int, S], labels: dict[str, int] | None = None, kind: ModelKind = ModelKind.CLASSIFIER
    ) -> None:
        versions = [
            RoutedVersion(version=n, state=s, reason="too big" if s is S.REJECTED else "", engine_ids=[0])
            for n, s in states.items()
        ]
        default = max((n for n, s in states.items() if s is S.LIVE), default=0)
        model = RoutedModel(name="m", kind=kind, labels=labels or {}, default_version=default, versions=versions)
        texts = {VersionKey(model="m", version=n): TEXT for n in states}
        self.router.apply(Routing(revision=1, engines=[], models=[model], serving=True), texts)

    def version(self, **reference) -> int:
        return self.router.resolve(ModelReference(name="m", **reference), ModelKind.CLASSIFIER).key.version

    def error(self, name: str = "m", kind: ModelKind = ModelKind.CLASSIFIER, **reference) -> ServerError:
        with pytest.raises(ServerError) as caught:
            self.router.resolve(ModelReference(name=name, **reference), kind)
        return caught.value


@pytest.fixture
def table() -> Table:
    return Table()


def test_the_name_alone_goes_to_stable_else_to_the_newest_live(table: Table) -> None:
    table.apply({1: S.LIVE, 2: S.LIVE})
    assert table.version() == 2
    table.apply({1: S.LIVE, 2: S.LIVE}, {"stable": 1})
    assert table.version() == 1
    assert table.version(version=2) == 2
    assert table.version(label="stable") == 1


def test_what_is_not_there_is_answered_with_what_is(table: Table) -> None:
    table.apply({1: S.LIVE, 2: S.UNLOADED}, {"beta": 1})
    assert isinstance(error := table.error("nobody"), ModelNotFound)
    assert "m" in error.message
    assert isinstance(error := table.error(version=7), VersionNotFound)
    assert "2 (unloaded), 1 (live)" in error.message
    assert isinstance(error := table.error(label="prod"), LabelNotFound)
    assert "beta" in error.message
    assert isinstance(table.error(version=2), VersionNotFound)


def test_a_loading_version_says_when_to_come_back(table: Table) -> None:
    table.apply({1: S.LOADING})
    for error in (table.error(), table.error(version=1)):
        assert isinstance(error, VersionLoading)
        assert error.retry_after_s


def test_a_refused_version_says_why(table: Table) -> None:
    table.apply({1: S.REJECTED})
    for error in (table.error(), table.error(version=1)):
        assert isinstance(error, VersionRejected)
        assert "too big" in error.message


def test_the_wrong_kind_is_told(table: Table) -> None:
    table.apply({1: S.LIVE}, kind=ModelKind.GENERATOR)
    assert isinstance(error := table.error(), WrongModelKind)
    assert "generator" in error.message
    assert "classifier" in error.message


def test_a_live_version_without_its_text_here_is_still_loading(table: Table) -> None:
    model = RoutedModel(
        name="m",
        kind=ModelKind.CLASSIFIER,
        labels={},
        default_version=1,
        versions=[RoutedVersion(version=1, state=S.LIVE)],
    )
    table.router.apply(Routing(revision=1, engines=[], models=[model], serving=True), {})
    assert isinstance(table.error(), VersionLoading)


def test_a_draining_version_is_counted_down_and_takes_nothing_new(table: Table) -> None:
    table.apply({1: S.LIVE})
    first = table.router.begin(ModelReference(name="m"), ModelKind.CLASSIFIER)
    second = table.router.begin(ModelReference(name="m"), ModelKind.CLASSIFIER)
    table.apply({1: S.DRAINING, 2: S.LIVE})
    assert table.router.draining_in_flight() == {"m@1": 2}
    assert isinstance(table.error(version=1), VersionNotFound)
    table.router.end(first)
    assert table.num_drained == 0
    table.router.end(second)
    assert table.num_drained == 1
    assert table.router.draining_in_flight() == {}


def test_long_lists_are_cut(table: Table) -> None:
    table.apply(dict.fromkeys(range(1, 200), S.AVAILABLE))
    assert "and 179 more" in table.error().message
    assert len(table.error().message) < 1000


def test_series_of_a_freed_version_disappear_after_a_while(table: Table) -> None:
    table.apply({1: S.LIVE})
    table.router.resolve(ModelReference(name="m"), ModelKind.CLASSIFIER).metrics.input_tokens.inc(5)
    table.metrics.count_rpc("Classify", "OK", ("m", "1"), 0.1)

    def series() -> set[tuple[str, ...]]:
        families = table.metrics.snapshot(0).families
        return {(family.name, *sample.labels) for family in families for sample in family.samples}

    table.apply({2: S.LIVE})
    table.now_s = FREED_SERIES_S - 1
    assert ("shoal_input_tokens", "m", "1") in series()
    table.now_s = FREED_SERIES_S + 1
    left = series()
    assert not [names for names in left if names[-2:] == ("m", "1")]
    assert ("shoal_input_tokens", "m", "2") in left


def test_a_version_that_comes_back_keeps_its_series(table: Table) -> None:
    table.apply({1: S.LIVE})
    table.apply({2: S.LIVE})
    table.apply({1: S.LIVE})
    table.now_s = FREED_SERIES_S + 1
    names = {tuple(sample.labels) for family in table.metrics.snapshot(0).families for sample in family.samples}
    assert ("m", "1") in names


def test_a_snapshot_has_plain_bucket_counts(table: Table) -> None:
    """0.0005, 0.005 and 1000 s fall into the first, the fourth and the last of the buckets."""
    for seconds in (0.0005, 0.005, 1000):
        table.metrics.count_rpc("Classify", "OK", ("", ""), seconds)
    (family,) = [f for f in table.metrics.snapshot(0).families if f.name == "shoal_rpc_duration_seconds"]
    (sample,) = family.samples
    assert family.label_names == ["method", "code", "model", "version"]
    assert len(sample.buckets) == len(family.bounds) + 1
    assert [i for i, count in enumerate(sample.buckets) if count] == [0, 3, len(family.bounds)]
    assert sum(sample.buckets) == 3
    assert sample.total == pytest.approx(1000.0055)
