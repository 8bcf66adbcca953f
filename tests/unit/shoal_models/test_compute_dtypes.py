"""Weights in the form they are served in."""

from __future__ import annotations

import pytest
import torch
from shoal_models.compute import (
    Compute,
    ComputeError,
    choose_compute,
    convert,
)
from tiny_models import CPU, GENERATORS, tiny_model

ROUNDED = Compute(rounded=torch.bfloat16, computed=torch.float32)


def test_names_tell_rounding_from_computing() -> None:
    assert choose_compute(torch.float32, CPU).name == "float32"
    assert ROUNDED.name == "float32 (bfloat16 weights)"
    assert Compute(rounded=torch.bfloat16, computed=torch.bfloat16).name == "bfloat16"


def test_float16_is_refused_on_a_cpu() -> None:
    with pytest.raises(ComputeError, match="float16 is not served on a CPU"):
        choose_compute(torch.float16, CPU)


def test_int8_needs_vnni_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    with pytest.raises(ComputeError, match=r"int8 is not served here: this .*; float32 and bfloat16 are"):
        choose_compute(torch.int8, CPU)


def test_the_name_of_int8_tells_what_is_not_int8() -> None:
    compute = Compute(rounded=torch.bfloat16, computed=torch.bfloat16, int8=True)
    assert compute.name == "int8 (linear layers; else bfloat16)"
    assert compute.without_int8().name == "bfloat16"
    assert not Compute(rounded=torch.float32, computed=torch.float32, int8=True).exact


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
