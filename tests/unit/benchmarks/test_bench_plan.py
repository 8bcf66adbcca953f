"""Which turns a run takes, in which order, and what it keeps of them."""

from __future__ import annotations

from pathlib import Path

from benchmarks import plan
from benchmarks.plan import CLOSED, GENERATE, OPEN, Field
from benchmarks.records import Load, Measure, Store, Turn
from benchmarks.side_by_side import capacity
from benchmarks.turns import failed

FIELD = Field(shoal="Shoal", others=("naive", "mosec"), bare="transformers", generators=("naive",))


def test_everybody_has_one_turn_a_round_and_another_begins_each_time() -> None:
    rounds = [plan.round_of(CLOSED, "float32", number, FIELD, plan.CLOSED_LOADS) for number in range(4)]
    names = [[slot.name for slot in slots] for slots in rounds]
    assert all(sorted(found) == sorted(names[0]) for found in names)
    assert [found[0] for found in names] == ["Shoal", "naive", "mosec", "transformers"]


def test_bare_forward_has_no_company() -> None:
    slots = {slot.name: slot for slot in plan.round_of(CLOSED, "float32", 0, FIELD, plan.CLOSED_LOADS)}
    assert [load.in_flight for load in slots["transformers"].loads] == [1]
    assert [load.in_flight for load in slots["Shoal"].loads] == [1, 32, 64]


def test_only_generators_generate_and_only_servers_take_open_loops() -> None:
    assert {s.name for s in plan.round_of(GENERATE, "float32", 0, FIELD, plan.GENERATE_LOADS)} == {"Shoal", "naive"}
    assert "transformers" not in {s.name for s in plan.round_of(OPEN, "float32", 0, FIELD, plan.open_loads(100.0))}


def test_open_loop_is_offered_half_of_what_the_best_other_can_do() -> None:
    turns = [
        closed("naive", 0, 40.0),
        closed("mosec", 0, 90.0),
        closed("mosec", 1, 110.0),
        closed("mosec", 2, 100.0),
        closed("Shoal", 0, 900.0),
    ]
    assert capacity(turns, "float32", FIELD.others) == 100.0
    assert plan.open_loads(100.0)[0].rate == 50.0
    assert capacity([], "float32", FIELD.others) == 0.0


def test_turns_are_found_again_after_a_run_was_cut_short(tmp_path: Path) -> None:
    store = Store(tmp_path)
    turn = closed("mosec", 1, 90.0)
    slot = plan.round_of(CLOSED, "float32", 0, FIELD, plan.CLOSED_LOADS)[0]
    store.save(turn)
    store.save(failed(slot, "it\ndid not start"))
    again = Store(tmp_path)
    assert again.has(CLOSED, "float32", 1, "mosec")
    assert not again.has(CLOSED, "float32", 0, "mosec")
    assert turn in again.load()
    assert [t.failure for t in again.load() if t.failure] == ["it did not start"]


def closed(name: str, number: int, rate: float) -> Turn:
    measure = Measure(load=Load(in_flight=64), rate=rate, num_calls=1)
    return Turn(part=CLOSED, dtype="float32", round=number, name=name, measures=(measure,))
