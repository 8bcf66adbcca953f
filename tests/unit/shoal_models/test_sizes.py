"""Rows are padded to few sizes."""

from __future__ import annotations

from shoal_models.sizes import few_sizes


def test_sizes_are_few_and_add_at_most_a_quarter() -> None:
    sizes = sorted({few_sizes(rows) for rows in range(1, 1025)})
    assert sizes[:14] == [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24]
    assert len(sizes) == 8 + 4 * 5 + (1024 - 256) // 16
    assert {few_sizes(rows) for rows in range(1025, 1089)} == {1056, 1088}
    assert all(rows <= few_sizes(rows) <= rows * 1.25 for rows in range(1, 5000))


def test_a_size_is_its_own_size() -> None:
    assert all(few_sizes(few_sizes(rows)) == few_sizes(rows) for rows in range(1, 3000))
