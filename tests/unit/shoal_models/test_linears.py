"""Linear layers in the form a CPU multiplies fastest compute what plain ones do."""

from __future__ import annotations

import pytest
import torch
from shoal_models.linears import ACTIVATIONS, NO_ACTIVATION, Activation, FusedLinear, PrepackedLinear, prepack_linears
from tiny_models import GENERATORS, tiny_model
from torch import nn


@pytest.mark.parametrize("num_rows", [0, 1, 16, 130])
@pytest.mark.parametrize("bias", [True, False])
def test_prepacked_linears_compute_the_same(num_rows: int, bias: bool) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(40, 72, bias=bias)
    packed = PrepackedLinear(plain.weight, plain.bias)
    inputs = torch.randn(1, num_rows, 40)
    with torch.inference_mode():
        torch.testing.assert_close(packed(inputs), plain(inputs), atol=1e-5, rtol=0)


@pytest.mark.parametrize("bias", [True, False])
def test_large_linears_are_kept_in_pieces(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shoal_models.linears._MAX_PACKED_WEIGHTS", 1000)
    plain = nn.Linear(40, 72, bias=bias)
    packed = PrepackedLinear(plain.weight, plain.bias)
    assert len(packed.packed) == 3
    inputs = torch.randn(5, 40)
    with torch.inference_mode():
        torch.testing.assert_close(packed(inputs), plain(inputs), atol=1e-5, rtol=0)


def test_gpt2s_transposed_linears_are_prepacked_too() -> None:
    model = tiny_model("GPT2LMHeadModel", GENERATORS["GPT2LMHeadModel"]())
    ids = torch.tensor([[5, 6, 7]])
    with torch.inference_mode():
        before = model(ids).logits
        assert prepack_linears(model) == 4 * 2 + 1  # of two layers, and the head
        torch.testing.assert_close(model(ids).logits, before, atol=1e-4, rtol=0)


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("activation", [NO_ACTIVATION, *ACTIVATIONS.values()])
@pytest.mark.parametrize("num_rows", [1, 9, 64])
def test_what_follows_a_product_is_the_same_fused(num_rows: int, activation: Activation, residual: bool) -> None:
    torch.manual_seed(0)
    layer = FusedLinear(torch.randn(72, 40), torch.randn(72), activation)
    inputs, other = torch.randn(num_rows, 40), torch.randn(num_rows, 72) if residual else None
    owner = nn.Sequential(layer)
    assert prepack_linears(owner) == 1
    with torch.inference_mode():
        torch.testing.assert_close(owner[0](inputs, other), layer(inputs, other), atol=1e-5, rtol=0)
