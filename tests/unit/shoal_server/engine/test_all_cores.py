"""Lone forwards that are held up keep the next ones to one core, for longer each time in a row."""

from __future__ import annotations

from shoal_server.engine.all_cores import AllCores


def pause_s(cores: AllCores, ended_s: float) -> float:
    """How long from `ended_s` on the cores are not free, to a tenth of a second."""
    return next(tenths / 10 for tenths in range(1000) if cores.are_free(ended_s + tenths / 10))


def held_up(cores: AllCores, ended_s: float) -> None:
    """A forward takes 0.1 s instead of 3 ms."""
    cores.ran(seconds=0.1, expected_s=0.003, ended_s=ended_s)


def in_time(cores: AllCores, ended_s: float, count: int = 1) -> None:
    """So many forwards take as long as they should."""
    for _ in range(count):
        cores.ran(seconds=0.004, expected_s=0.003, ended_s=ended_s)


def test_all_cores_are_free_until_a_second_forward_is_held_up():
    cores = AllCores()
    assert cores.are_free(0.0)
    held_up(cores, 1.0)
    assert cores.are_free(1.0)
    in_time(cores, 1.5, count=3)
    held_up(cores, 2.0)
    assert not cores.are_free(2.1)
    assert cores.are_free(2.5)


def test_forwards_held_up_now_and_then_say_nothing():
    cores = AllCores()
    for now_s in range(20):
        held_up(cores, now_s)
        assert cores.are_free(now_s)
        in_time(cores, now_s, count=4)


def test_the_pause_doubles_while_forwards_are_held_up_and_is_short_again_after_one_that_was_not():
    cores = AllCores()
    pauses = []
    for ended_s in range(0, 800, 100):
        held_up(cores, ended_s)
        pauses.append(pause_s(cores, ended_s))
    assert pauses == [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 8.0, 8.0]
    in_time(cores, 1000.0)
    held_up(cores, 1100.0)
    assert pause_s(cores, 1100.0) == 0.5


def test_what_is_only_somewhat_longer_or_was_not_foreseen_says_nothing():
    cores = AllCores()
    cores.ran(seconds=0.012, expected_s=0.003, ended_s=0.0)  # four times as long, but not by 10 ms
    cores.ran(seconds=0.2, expected_s=0.1, ended_s=0.0)  # by 100 ms, but only twice as long
    cores.ran(seconds=5.0, expected_s=0.0, ended_s=0.0)
    assert cores.are_free(0.0)


def test_calls_that_come_while_others_run_keep_the_next_lone_ones_to_one_core_for_a_while():
    cores = AllCores()
    for now_s in (1.0, 1.2):
        cores.arrived_beside(now_s)
    assert not cores.are_free(1.6)
    assert cores.are_free(1.7)
    for _ in range(3):
        held_up(cores, 2.0)
    cores.arrived_beside(2.0)
    assert not cores.are_free(2.9), "the longer pause stays"
