"""Layers in fixed steps and behind activations stay within what their steps allow, and a row's answer is its own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from ragged import ragged
from shoal_models import int8_fixed
from shoal_models.int8_activated import ActivatedInt8Linear
from shoal_models.int8_fixed import FixedInt8Linear, Float32Norm
from shoal_models.int8_linear import Int8Linear, why_no_int8
from shoal_models.linears import ACTIVATIONS, NO_ACTIVATION, Activation, FusedLinear
from shoal_models.packed import pack
from tiny_models import CLASSIFIERS, CPU, Published, tiny_model
from torch import Tensor

pytestmark = pytest.mark.skipif(bool(why_no_int8(CPU)), reason=why_no_int8(CPU) or "it has all")
INPUTS, OUTPUTS = 96, 40


def _layer(activation: Activation = NO_ACTIVATION, dtype: torch.dtype = torch.float32) -> FixedInt8Linear:
    torch.manual_seed(0)
    weight, bias = torch.randn(OUTPUTS, INPUTS) / 10, torch.randn(OUTPUTS)
    return FixedInt8Linear(weight, bias, torch.full((INPUTS,), 4.0), activation=activation, dtype=dtype)


def _exact(inputs_TI: Tensor, activation: Activation = NO_ACTIVATION, residual_TO: Tensor | None = None) -> Tensor:
    torch.manual_seed(0)
    weight, bias = torch.randn(OUTPUTS, INPUTS) / 10, torch.randn(OUTPUTS)
    return FusedLinear(weight, bias, activation)(inputs_TI, residual_TO)


def _inputs(num_rows: int) -> Tensor:
    return torch.randn(num_rows, INPUTS, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("num_rows", [1, 9, 130])
@pytest.mark.parametrize("activation", [NO_ACTIVATION, *ACTIVATIONS.values()])
def test_outputs_are_near_the_exact_ones(num_rows: int, activation: Activation) -> None:
    """Errors of 96 inputs with steps of 8/127 and weights of 0.1, each uniform: 0.1 * 0.063 * sqrt(96/12) = 0.018."""
    found, expected = _layer(activation)(_inputs(num_rows)), _exact(_inputs(num_rows), activation)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=6 * 0.018, rtol=0)
    assert float((found - expected).square().mean().sqrt()) < 2 * 0.018


@pytest.mark.parametrize("num_rows", [3, 33])
def test_a_residual_of_any_dtype_is_added_in_float32(num_rows: int) -> None:
    residual = torch.randn(num_rows, OUTPUTS).bfloat16()
    found = _layer()(_inputs(num_rows).bfloat16(), residual)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, _exact(_inputs(num_rows), residual_TO=residual.float()), atol=0.15, rtol=0)


def test_outputs_have_the_dtype_that_was_asked_for() -> None:
    assert _layer(dtype=torch.bfloat16)(_inputs(5)).dtype == torch.bfloat16
    assert _layer(ACTIVATIONS["gelu"], torch.bfloat16)(_inputs(5)).dtype == torch.float32


def test_inputs_beyond_the_reach_are_cut_off_and_do_not_wrap() -> None:
    layer, signs = _layer(), _inputs(6).sign()
    furthest_I = 127 / layer.tensors().inverse_I
    found = layer(signs * 1e3)
    torch.testing.assert_close(found, _exact(signs * furthest_I), rtol=0.01, atol=0.5)
    assert torch.equal(found, layer(signs * 1e6))


def test_channels_that_were_never_seen_do_no_harm() -> None:
    weight = torch.randn(OUTPUTS, INPUTS)
    for largest in (torch.zeros(INPUTS), torch.eye(1, INPUTS)[0]):
        layer = FixedInt8Linear(weight, torch.ones(OUTPUTS), largest, dtype=torch.float32)
        assert bool(layer(_inputs(3)).isfinite().all())
        torch.testing.assert_close(layer(torch.zeros(3, INPUTS)), torch.ones(3, OUTPUTS))


@pytest.mark.parametrize("activation", [NO_ACTIVATION, ACTIVATIONS["gelu"]])
def test_a_row_is_the_same_in_any_company(activation: Activation) -> None:
    layer, rows = _layer(activation), _inputs(65)
    behind = ActivatedInt8Linear(torch.randn(OUTPUTS, INPUTS), torch.randn(OUTPUTS), ACTIVATIONS["gelu"])
    residual, together = torch.randn(65, OUTPUTS), layer(rows)
    after = behind(torch.nn.functional.gelu(rows), residual)
    for index in range(0, 65, 8):
        one = slice(index, index + 1)
        torch.testing.assert_close(layer(rows[one])[0], together[index], rtol=1e-6, atol=1e-6)
        alone = behind(torch.nn.functional.gelu(rows[one]), residual[one])[0]
        torch.testing.assert_close(alone, after[index], rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("activation", ACTIVATIONS.values())
@pytest.mark.parametrize("scale", [0.0, 0.1, 1.0, 50.0])
def test_behind_an_activation_rows_use_all_256_integers(activation: Activation, scale: float) -> None:
    """Half a step is at most (largest + 0.1701) / 510, half of a weight's step its largest / 254."""
    torch.manual_seed(0)
    weight, bias, residual = torch.randn(OUTPUTS, INPUTS), torch.randn(OUTPUTS), torch.randn(12, OUTPUTS)
    inputs = activation(torch.randn(12, INPUTS) * scale)
    found = ActivatedInt8Linear(weight, bias, activation)(inputs, residual)
    expected = torch.nn.functional.linear(inputs, weight, bias) + residual
    half_T1 = (inputs.amax(1, keepdim=True) + 0.1701) / 510
    half_O = weight.abs().amax(1) / 254
    bound = half_T1 * weight.abs().sum(1) + inputs.abs().sum(1, keepdim=True) * half_O + INPUTS * half_T1 * half_O
    assert bool(((found - expected).abs() <= bound * 1.001 + 1e-4).all())


def test_what_is_no_number_behind_an_activation_spoils_its_own_row() -> None:
    inputs = torch.rand(3, INPUTS)
    inputs[1, 2] = float("nan")
    layer = ActivatedInt8Linear(torch.randn(OUTPUTS, INPUTS), torch.zeros(OUTPUTS), ACTIVATIONS["relu"])
    found = layer(inputs, torch.zeros(3, OUTPUTS))
    assert bool(found[1].isnan().all())
    assert bool(found[[0, 2]].isfinite().all())


def test_a_norm_stays_in_float32() -> None:
    norm = torch.nn.LayerNorm(INPUTS)
    kept = Float32Norm(norm)
    rows = _inputs(4).bfloat16()
    torch.testing.assert_close(kept.bfloat16()(rows), norm(rows.float()))


@pytest.mark.parametrize("name", ["Bert", "Albert", "DistilBert", "Roberta"])
def test_together_and_alone_are_alike_in_lean_layers(name: str, publish: Callable[..., Published]) -> None:
    """Attention in bfloat16 rounds differently alone, and tiny models magnify it."""
    published = publish(tiny_model(f"{name}ForSequenceClassification", CLASSIFIERS[name]()), "classifier")
    served = published.load(torch.int8)
    assert "fixed steps" in served.compute_dtype
    sequences = ragged(3, 12, 40)
    together = served.logits(pack(sequences, device=CPU))
    alone = torch.cat([served.logits(pack([ids], device=CPU)) for ids in sequences])
    assert float((together - alone).abs().mean()) < 0.25 * float(together.std())


@pytest.mark.parametrize("name", ["Bert", "Albert", "DistilBert"])
@pytest.mark.parametrize("lengths", [(9, 30, 4, 17), (12,)])
def test_all_layers_in_one_call_answer_to_the_last_bit_what_each_alone_does(
    name: str, lengths: tuple[int, ...], publish: Callable[..., Published]
) -> None:
    published = publish(tiny_model(f"{name}ForSequenceClassification", CLASSIFIERS[name]()), "classifier")
    served = published.load(torch.int8)
    encoder = served._body._encoder
    assert encoder is not None
    assert encoder._stack is not None
    row = pack([list(range(5, 5 + length)) for length in lengths], device=CPU)
    found = served.logits(row)
    encoder._stack = None
    assert torch.equal(found, served.logits(row))


def test_where_fixed_steps_answer_wrongly_each_row_gets_its_own(
    publish: Callable[..., Published], monkeypatch: pytest.MonkeyPatch
) -> None:
    published = publish(tiny_model("BertForSequenceClassification", CLASSIFIERS["Bert"]()), "classifier")
    monkeypatch.setattr(int8_fixed, "_REACH", 0.01)
    served = published.load(torch.int8)
    assert served.compute_dtype.startswith("int8 (linear layers; else ")
    kinds = {type(module) for module in served._model.modules()}
    assert Int8Linear in kinds
    assert FixedInt8Linear not in kinds
