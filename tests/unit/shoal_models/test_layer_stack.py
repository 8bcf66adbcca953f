"""All layers in one call give what they give one by one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shoal_models.classifier import LoadedClassifier
from shoal_models.classifier_probe import choose_execution
from shoal_models.compute import choose_compute
from shoal_models.layer_stack import LayerStack, layer_stack
from shoal_models.linears import prepack_linears
from shoal_models.packed import fill_up, pack
from shoal_models.plan import AttentionPlan
from shoal_models.post_norm import LeanLayers
from tiny_models import CLASSIFIERS, CPU, Published, tiny_model
from torch import Tensor, nn

LEAN = ("Bert", "Roberta", "XLMRoberta", "DistilBert", "Electra", "Albert")


def prepacked_layers(kind: str, *, first_only: bool) -> list[nn.Module]:
    model = tiny_model(f"{kind}ForSequenceClassification", CLASSIFIERS[kind]())
    places: Any = LeanLayers(model)
    places.use(True, first_only=first_only)
    prepack_linears(model)
    return [getattr(place.owner, place.name) for place in places._places]


def run_each(layers: list[nn.Module], hidden_TE: Tensor, plan: AttentionPlan) -> Tensor:
    hidden_1TE = hidden_TE[None]
    for layer in layers:
        hidden_1TE = layer(hidden_1TE, packed_plan=plan)
    return hidden_1TE[0]


@pytest.fixture(scope="module", params=[(kind, early) for kind in LEAN for early in (False, True)], ids=str)
def layers(request: pytest.FixtureRequest) -> list[nn.Module]:
    kind, first_only = request.param
    return prepacked_layers(kind, first_only=first_only)


@given(lengths=st.lists(st.integers(1, 150), min_size=1, max_size=30), num_filled=st.integers(0, 9), seed=st.integers())
@settings(max_examples=15, deadline=None)
def test_a_stack_gives_the_rows_that_its_layers_give(
    layers: list[nn.Module], lengths: list[int], num_filled: int, seed: int
) -> None:
    row = pack([[1] * length for length in lengths], device=CPU)
    row = fill_up(row, row.starts[-1] + num_filled)
    torch.manual_seed(seed % 2**32)
    hidden_TE = torch.randn(row.starts[-1], layers[0].norm.weight.shape[0])
    stack, plan, own_plan = layer_stack(layers), AttentionPlan(row), AttentionPlan(row)
    assert stack is not None
    with torch.inference_mode():
        found_TE, expected_TE = stack(hidden_TE, plan), run_each(layers, hidden_TE, own_plan)
    assert plan.num_calls == own_plan.num_calls == len(layers)
    torch.testing.assert_close(found_TE, expected_TE, atol=1e-5, rtol=0)


def test_layers_that_are_not_prepacked_are_no_stack() -> None:
    model = tiny_model("BertForSequenceClassification", CLASSIFIERS["Bert"]())
    own = list(model.base_model.encoder.layer)
    assert layer_stack(own) is None
    LeanLayers(model).use(True, first_only=False)
    assert layer_stack(list(model.base_model.encoder.layer)) is None
    prepack_linears(model)
    lean = list(model.base_model.encoder.layer)
    assert layer_stack(lean) is not None
    assert layer_stack([*own[:1], *lean[1:]]) is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_version_is_served_by_a_stack(dtype: torch.dtype, publish: Callable[..., Published]) -> None:
    published = publish(tiny_model("BertForSequenceClassification", CLASSIFIERS["Bert"]()), "classifier")
    loaded = LoadedClassifier(published.model, published.manifest)
    assert choose_execution(loaded, published.model).lean
    loaded.cast(choose_compute(dtype, CPU))
    row = pack([[5, 9, 7], [8, 11]], device=CPU)
    with patch.object(LayerStack, "__call__", autospec=True, side_effect=LayerStack.__call__) as run:
        loaded.logits(row)
    assert run.call_count == 1
