"""What a sweep tries, in which order, and what it keeps."""

from __future__ import annotations

from pathlib import Path

from benchmarks.peers import best
from benchmarks.peers.best import Best
from benchmarks.peers.descent import NUM_FINALISTS, TRIES_OF_FINALISTS, Tried, next_settings, winner
from benchmarks.peers.peer import Peer
from benchmarks.peers.registry import PEERS
from benchmarks.peers.settings import Grid, Settings, Split

GRID = Grid(
    splits=(Split(workers=1, threads=2), Split(workers=2, threads=1)), max_batches=(16, 4, 1), delays_ms=(5.0, 1.0)
)


def rate(settings: Settings) -> float:
    """Two workers are twice as fast, smaller batches faster, and shorter waits too."""
    return 10.0 * settings.workers + 20.0 / settings.max_batch + 1.0 / settings.delay_ms


def sweep(grid: Grid, rate_of: dict[int, float] | None = None) -> list[Tried]:
    tries: list[Tried] = []
    while (settings := next_settings(grid, "float32", tries)) is not None:
        assert len(tries) < 100
        rates = {32: rate(settings)} if rate_of is None else rate_of
        tries.append(Tried(settings=settings, rates=rates, failure="" if rates else "no"))
    return tries


def test_axes_are_walked_with_the_best_values_so_far() -> None:
    tries = [tried.settings for tried in sweep(GRID)]
    assert [(s.workers, s.threads) for s in tries[:2]] == [(1, 2), (2, 1)]
    assert [(s.workers, s.max_batch) for s in tries[2:4]] == [(2, 4), (2, 1)]


def test_delay_is_not_tried_where_nothing_is_batched() -> None:
    """The best batch is 1, so both delays would be the same server."""
    assert {tried.settings.delay_ms for tried in sweep(GRID) if tried.settings.max_batch == 1} == {5.0}


def test_fastest_settings_are_tried_again_and_the_best_try_counts() -> None:
    tries = sweep(GRID)
    counts = {tried.settings: sum(t.settings == tried.settings for t in tries) for tried in tries}
    assert sorted(counts.values())[-NUM_FINALISTS:] == [TRIES_OF_FINALISTS] * NUM_FINALISTS
    found = winner(tries)
    assert found is not None
    assert (found.settings.workers, found.settings.max_batch) == (2, 1)
    disturbed = Tried(settings=found.settings, rates={32: 1.0})
    assert winner([*tries, disturbed, disturbed, disturbed]) == found


def test_peer_that_never_works_is_given_up_after_every_value_of_every_axis() -> None:
    tries = sweep(GRID, {})
    assert len(tries) == 2 + 2 + 1
    assert winner(tries) is None


def test_score_is_the_geometric_mean_over_the_loads() -> None:
    assert Tried(settings=GRID.first("float32"), rates={32: 4.0, 64: 9.0}).score == 6.0
    assert Tried(settings=GRID.first("float32"), rates={}).score == 0.0


def test_every_peer_is_tried_with_and_without_batches_and_with_the_cores_split_in_several_ways() -> None:
    for peer in PEERS.values():
        assert 1 in peer.grid.max_batches
        assert max(peer.grid.max_batches) >= 32
        assert {split.workers * split.threads for split in peer.grid.splits} <= {0, 2}


def test_every_peer_pins_its_own_release() -> None:
    for peer in PEERS.values():
        lines = (peer.folder / "requirements.txt").read_text().splitlines()
        assert any(line.split("[")[0].split("==")[0] == peer.package and "==" in line for line in lines)


def test_cores_are_split_again_with_the_best_batch() -> None:
    """With batches of 16 one worker wins, without batches two: the second is found all the same."""

    def odd_rate(settings: Settings) -> float:
        return {(1, 16): 100.0, (2, 16): 90.0, (1, 1): 150.0, (2, 1): 300.0}.get(
            (settings.workers, settings.max_batch), 1.0
        )

    tries: list[Tried] = []
    while (settings := next_settings(GRID, "float32", tries)) is not None:
        tries.append(Tried(settings=settings, rates={32: odd_rate(settings)}))
    found = winner(tries)
    assert found is not None
    assert (found.settings.workers, found.settings.max_batch) == (2, 1)


def test_peer_that_was_never_swept_comes_after_those_that_were(tmp_path: Path) -> None:
    class Somewhere(Peer):
        @property
        def folder(self) -> Path:
            return tmp_path / self.name

    def peer(name: str) -> Peer:
        made = Somewhere()
        made.name = made.package = name
        made.folder.mkdir()
        return made

    peers = [peer("unknown"), peer("slow"), peer("fast")]
    settings = GRID.first("bfloat16")
    for which, found_rate in ((peers[1], 10.0), (peers[2], 20.0)):
        best.write(
            which,
            "bfloat16",
            Best(settings=settings, date="2026-11-27", machine="m", version="1", rates={32: found_rate}),
        )
    assert best.fastest(peers, "bfloat16", 3) == ["fast", "slow", "unknown"]
    assert best.read(peers[0], "bfloat16") is None
    best.write(
        peers[1],
        "float32",
        Best(settings=settings, date="2026-11-27", machine="m", version="1", rates={32: 5.0}),
    )
    assert best.fastest(peers, "float32", 3) == ["slow", "fast", "unknown"], "others' rates are in another number type"
    elsewhere = best.read(peers[2], "float32")
    assert elsewhere is not None
    assert elsewhere.settings == settings
