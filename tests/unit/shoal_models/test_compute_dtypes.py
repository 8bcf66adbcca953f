"""Weights in the form they are served in."""

from __future__ import annotations

import pytest
import torch
from shoal_models.compute import (
    Compute,
    ComputeError,
    PrepackedLinear,
    choose_compute,
    convert,
    padded_rows,
    prepack_linears,
)
from tiny_models import CPU, GENERATORS, tiny_model
from torch import nn

ROUNDED = Compute(rounded=torch.bfloat16, computed=torch.float32)


def test_names_tell_rounding_from_computing() -> None:
    assert choose_compute(torch.float32, CPU).name == "float32"
    assert ROUNDED.name == "float32 (bfloat16 weights)"
    assert Compute(rounded=torch.bfloat16, computed=torch.bfloat16).name == "bfloat16"


def test_float16_is_refused_on_a_cpu() -> None:
    with pytest.raises(ComputeError, match="float16 is not served on a CPU"):
        choose_compute(torch.float16, CPU)


def test_tied_weights_stay_tied() -> None:
    config = GENERATORS["LlamaForCausalLM"]()
    config.tie_word_embeddings = True
    model = tiny_model("LlamaForCausalLM", config)
    before = model.lm_head.weight.detach().clone()
    convert(model, ROUNDED)
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    assert torch.equal(model.lm_head.weight, before.bfloat16().float())


def test_rotary_frequencies_keep_their_precision() -> None:
    """They are computed in float32 by transformers whatever the weights are; rounding them would shift positions."""
    model = tiny_model("LlamaForCausalLM", GENERATORS["LlamaForCausalLM"]())
    before = model.model.rotary_emb.inv_freq.clone()
    convert(model, Compute(rounded=torch.bfloat16, computed=torch.bfloat16))
    assert torch.equal(model.model.rotary_emb.inv_freq, before)
    assert model.lm_head.weight.dtype == torch.bfloat16


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
    monkeypatch.setattr("shoal_models.compute._MAX_PACKED_WEIGHTS", 1000)
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


def test_rows_are_padded_to_few_sizes_and_by_at_most_a_quarter() -> None:
    sizes = {padded_rows(rows) for rows in range(1, 513)}
    assert sorted(sizes)[:14] == [1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24]
    assert len(sizes) == 8 + 4 * 6
    assert all(rows <= padded_rows(rows) <= rows * 1.25 for rows in range(1, 5000))
