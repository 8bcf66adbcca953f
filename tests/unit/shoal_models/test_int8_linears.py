"""Linear layers in 8-bit integers stay within what their steps allow, and a row's answer is its own."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from ragged import ragged
from shoal_models.compute import choose_compute
from shoal_models.footprint import held_bytes
from shoal_models.golden import GoldenMismatch, check_golden
from shoal_models.int8_activated import ActivatedInt8Linear
from shoal_models.int8_fixed import FixedInt8Linear
from shoal_models.int8_linear import Int8Linear, IntMmProduct, OneDnnProduct, quantise_rows, why_no_int8
from shoal_models.linears import ACTIVATIONS, NO_ACTIVATION, Activation, FusedLinear
from shoal_models.packed import pack
from tiny_models import CLASSIFIERS, CPU, GENERATORS, OTHER_CLASSIFIERS, Published, tiny_model
from torch import Tensor, nn

needs_vnni = pytest.mark.skipif(bool(why_no_int8(CPU)), reason=why_no_int8(CPU) or "it has all")
SHAPES = [(40, 72), (33, 7), (1, 1), (384, 96)]


def _bound(inputs_TI: Tensor, weight_OI: Tensor) -> Tensor:
    """By how much quantising may move outputs, (T, O).

    Rounding moves an input by half its row's step s, a weight by half its output's step r, and so their product by at
    most |x| r/2 + |w| s/2 + sr/4.
    """
    s_T1 = inputs_TI.abs().amax(1, keepdim=True) / 127
    r_O = weight_OI.abs().amax(1) / 127
    size = inputs_TI.shape[1]
    return inputs_TI.abs().sum(1, keepdim=True) * r_O / 2 + s_T1 / 2 * weight_OI.abs().sum(1) + size * s_T1 * r_O / 4


def _check(inputs_TI: Tensor, layer: nn.Linear) -> None:
    with torch.inference_mode():
        found, expected = Int8Linear(layer.weight, layer.bias)(inputs_TI), layer(inputs_TI)
        assert bool(((found - expected).abs() <= _bound(inputs_TI, layer.weight) * 1.001 + 1e-5).all())


@needs_vnni
@pytest.mark.parametrize("num_rows", [1, 16, 130])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("bias", [True, False])
def test_outputs_are_within_what_the_steps_allow(num_rows: int, shape: tuple[int, int], bias: bool) -> None:
    torch.manual_seed(0)
    _check(torch.randn(num_rows, shape[0]), nn.Linear(*shape, bias=bias))


@needs_vnni
def test_a_huge_value_coarsens_no_row_but_its_own() -> None:
    torch.manual_seed(0)
    layer, inputs = nn.Linear(64, 32), torch.randn(20, 64)
    inputs[3, 5] = 1e6
    _check(inputs, layer)


@needs_vnni
@pytest.mark.parametrize("sign", [1, -1])
def test_sums_of_largest_values_do_not_overflow(sign: int) -> None:
    weight = torch.full((16, 4096), 1.0)
    found = Int8Linear(weight, None)(torch.full((3, 4096), 2.0 * sign))
    torch.testing.assert_close(found, torch.full((3, 16), 8192.0 * sign), rtol=1e-5, atol=0)


@needs_vnni
def test_rows_and_weights_of_zeros_give_the_bias() -> None:
    weight, bias = torch.randn(5, 8), torch.randn(5)
    weight[2] = 0
    found = Int8Linear(weight, bias)(torch.zeros(4, 8))
    assert torch.equal(found, bias.expand(4, 5))
    assert torch.equal(Int8Linear(weight, bias)(torch.randn(4, 8))[:, 2], bias[2].expand(4))
    assert Int8Linear(weight, bias)(torch.zeros(2, 0, 8)).shape == (2, 0, 5)


@needs_vnni
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_number_spoils_its_own_row_and_no_other(bad: float) -> None:
    inputs = torch.randn(3, 8)
    layer = Int8Linear(torch.randn(5, 8), None)
    expected = layer(inputs)
    inputs[1, 2] = bad
    found = layer(inputs)
    assert bool(found[1].isnan().all())
    assert torch.equal(found[[0, 2]], expected[[0, 2]])


@needs_vnni
@pytest.mark.parametrize("activation", [NO_ACTIVATION, ACTIVATIONS["gelu"]])
def test_a_row_is_the_same_in_any_company(activation: Activation) -> None:
    torch.manual_seed(0)
    layer = Int8Linear(torch.randn(72, 40), torch.randn(72), activation)
    rows = torch.randn(65, 40) * torch.logspace(-3, 3, 65)[:, None]
    together = layer(rows)
    for index in range(0, 65, 8):
        torch.testing.assert_close(layer(rows[index : index + 1])[0], together[index], rtol=1e-6, atol=1e-6)


@needs_vnni
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("activation", [NO_ACTIVATION, *ACTIVATIONS.values()])
@pytest.mark.parametrize("residual", [False, True])
def test_activation_and_residual_follow(dtype: torch.dtype, activation: Activation, residual: bool) -> None:
    torch.manual_seed(0)
    weight, bias = torch.randn(24, 40), torch.randn(24)
    inputs = torch.randn(2, 9, 40).to(dtype)
    other = torch.randn(2, 9, 24).to(dtype) if residual else None
    found = Int8Linear(weight, bias, activation)(inputs, other)
    expected = FusedLinear(weight, bias, activation)(inputs.float(), None if other is None else other.float())
    assert found.dtype == (torch.float32 if activation is not NO_ACTIVATION and not residual else dtype)
    torch.testing.assert_close(found.float(), expected, atol=0.5, rtol=0.01)
    assert float((found.float() - expected).abs().mean()) < 0.1


@needs_vnni
@pytest.mark.parametrize("num_rows", [1, 16, 17, 40])
@pytest.mark.parametrize("shape", SHAPES)
def test_the_product_of_gpus_is_that_of_processors(num_rows: int, shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    weight = quantise_rows(torch.randn(shape[1], shape[0]))
    rows = quantise_rows(torch.randn(num_rows, shape[0])).values_TI
    exact = (rows.double() @ weight.values_TI.double().t()) * weight.steps_T1.double().t()
    for product in (OneDnnProduct(weight), IntMmProduct(weight)):
        torch.testing.assert_close(product(rows).double(), exact, rtol=1e-6, atol=1e-6)


@needs_vnni
def test_weights_are_held_in_a_byte_each() -> None:
    layer = Int8Linear(torch.randn(256, 512), None)
    assert held_bytes(layer) < 256 * 512 * 1.05


@needs_vnni
@pytest.mark.parametrize("name", [*CLASSIFIERS, "XLNet", "GPT2", "T5"])
def test_classifiers_of_all_kinds_keep_their_answers(name: str, publish: Callable[..., Published]) -> None:
    """Tiny models with weights of 0.4 are far coarser than real ones: what is asked is half the spread of logits."""
    configs = {**CLASSIFIERS, **OTHER_CLASSIFIERS}
    published = publish(tiny_model(f"{name}ForSequenceClassification", configs[name]()), "classifier")
    exact, served = published.load(), published.load(torch.int8)
    assert served.compute_dtype.startswith("int8 (linear layers")
    sequences = ragged(3, 12, 40)
    if name == "T5":
        sequences = [[*ids, published.model.config.eos_token_id] for ids in sequences]
    expected, found = exact.logits(pack(sequences, device=CPU)), served.logits(pack(sequences, device=CPU))
    assert float((found - expected).abs().mean()) < 0.5 * float(expected.std())
    kinds = [type(module) for module in served._model.modules()]
    in_int8 = [kind for kind in kinds if kind in {Int8Linear, FixedInt8Linear, ActivatedInt8Linear}]
    assert len(in_int8) > 3
    assert ("fixed steps" in served.compute_dtype) == (FixedInt8Linear in kinds)


@needs_vnni
def test_generators_stay_in_floating_point_and_say_so(publish: Callable[..., Published]) -> None:
    published = publish(tiny_model("LlamaForCausalLM", GENERATORS["LlamaForCausalLM"]()), "generator")
    expected = choose_compute(torch.int8, CPU).without_int8().name
    assert published.load(torch.int8).compute_dtype == expected


@needs_vnni
def test_a_layer_that_answers_wrongly_in_int8_is_refused(publish: Callable[..., Published]) -> None:
    published = publish(tiny_model("BertForSequenceClassification", CLASSIFIERS["Bert"]()), "classifier")
    loaded = published.load(torch.int8)
    layer = next(module for module in loaded._model.modules() if isinstance(module, FixedInt8Linear))
    with torch.inference_mode():
        layer.tensors().bias_O.add_(3.0 * torch.randn(layer.out_features))
    with pytest.raises(GoldenMismatch, match="in int8"):
        check_golden(loaded, published.path, published.manifest)
