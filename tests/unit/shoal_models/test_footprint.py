"""What a version holds is counted from its tensors, wherever they lie."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from shoal_models.footprint import held_bytes
from torch import Tensor, nn


def test_each_storage_counts_once_and_views_with_it() -> None:
    weight = torch.zeros(10, 10)
    assert held_bytes([weight, weight.view(-1), weight[3]]) == 400


def test_tied_weights_buffers_and_attributes_of_modules_are_counted() -> None:
    """Two linears of 4 x 4 share a weight; biases of 4, a buffer of 6, and a list of one tensor of 5: float32."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    model.register_buffer("table", torch.zeros(6))
    model.kept = [torch.zeros(5)]  # type: ignore[assignment]
    assert held_bytes(model) == (16 + 4 + 4 + 6 + 5) * 4


def test_a_cycle_of_objects_ends() -> None:
    first: list[object] = [torch.zeros(1)]
    first.append(first)
    assert held_bytes(first) == 4


def test_objects_of_this_package_are_looked_into_and_foreign_ones_are_not() -> None:
    @dataclass(slots=True)
    class Slotted:
        weight: Tensor

    Slotted.__module__ = "shoal_models.somewhere"
    slotted = Slotted(weight=torch.zeros(8))
    assert held_bytes({"ours": slotted}) == 32
    Slotted.__module__ = "elsewhere"
    assert held_bytes({"theirs": slotted}) == 0


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
def test_a_reordered_weight_counts_as_its_elements() -> None:
    packed = torch.ops.mkldnn._reorder_linear_weight(torch.zeros(32, 16))
    assert held_bytes(packed) == 32 * 16 * 4
