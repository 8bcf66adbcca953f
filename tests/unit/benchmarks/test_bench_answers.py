"""Whether a server's scores pass for the reference's."""

from __future__ import annotations

import pytest

from benchmarks.answers import compare

REFERENCE = [[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.4, 0.4, 0.2]]


def test_equal_scores_agree() -> None:
    check = compare("float32", REFERENCE, REFERENCE)
    assert check.passed
    assert (check.agreement, check.max_difference) == (1.0, 0.0)


def test_scores_of_a_neighbour_are_found() -> None:
    check = compare("bfloat16", [REFERENCE[1], REFERENCE[0], REFERENCE[2]], REFERENCE)
    assert not check.passed
    assert check.agreement == pytest.approx(1 / 3)
    assert check.max_difference == pytest.approx(0.6)


def test_either_of_two_labels_that_are_as_good_may_come_first() -> None:
    check = compare("bfloat16", [*REFERENCE[:2], [0.3999, 0.4001, 0.2]], REFERENCE)
    assert check.agreement == 1.0


def test_difference_beyond_the_number_types_tolerance_fails() -> None:
    off = [[0.7 - 1e-3, 0.2 + 1e-3, 0.1], *REFERENCE[1:]]
    assert not compare("float32", off, REFERENCE).passed
    assert compare("bfloat16", off, REFERENCE).passed
