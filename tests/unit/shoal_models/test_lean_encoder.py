"""The lean forward of a body gives the hidden rows of transformers' own, text by text and together."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from shoal_models.attention import PACKED
from shoal_models.body import PackedBody
from shoal_models.lean_encoder import lean_encoder
from shoal_models.packed import PackedRow, fill_up, pack
from shoal_models.plan import AttentionPlan
from shoal_models.post_norm import LeanLayers
from tiny_models import CLASSIFIERS, CPU, tiny_model

LEAN = ("Bert", "Roberta", "XLMRoberta", "DistilBert", "Electra", "Albert")
SEQUENCES = ([5, 9, 7, 8, 11, 6], [4, 3], [12] * 70, [10, 4, 9])


def classifier(kind: str) -> Any:
    return tiny_model(f"{kind}ForSequenceClassification", CLASSIFIERS[kind]())


@pytest.mark.parametrize("kind", LEAN)
@pytest.mark.parametrize("num_sequences", [1, 4])
@pytest.mark.parametrize("num_filled", [0, 3])
def test_hidden_rows_are_those_of_transformers_own_body(kind: str, num_sequences: int, num_filled: int) -> None:
    model = classifier(kind)
    lean = copy.deepcopy(model)
    LeanLayers(lean).use(True, first_only=False)
    lean.set_attn_implementation(PACKED)
    row = pack(SEQUENCES[:num_sequences], device=CPU)
    with torch.inference_mode():
        found_TE = PackedBody(lean, takes_types=False)(fill_up(row, row.starts[-1] + num_filled))
        own = [
            model.base_model(input_ids=torch.tensor([ids])).last_hidden_state[0] for ids in SEQUENCES[:num_sequences]
        ]
    assert lean_encoder(lean.base_model) is not None, "or else this compares transformers with itself"
    torch.testing.assert_close(found_TE[: row.starts[-1]], torch.cat(own), atol=1e-5, rtol=0)


def test_a_body_with_a_layer_of_transformers_own_runs_as_transformers_runs_it() -> None:
    model = classifier("Bert")
    assert lean_encoder(model.base_model) is None
    LeanLayers(model).use(True, first_only=False)
    own = copy.deepcopy(classifier("Bert").base_model.encoder.layer[0])
    model.base_model.encoder.layer[0] = own
    assert lean_encoder(model.base_model) is None


def test_a_body_of_another_kind_has_no_lean_forward() -> None:
    assert lean_encoder(classifier("ModernBert").base_model) is None


@pytest.mark.parametrize(
    ("row", "num_tokens"),
    [
        (pack([[1] * 5], device=CPU), 5),
        (fill_up(pack([[1] * 5], device=CPU), 8), 5),
        (pack([[1] * 5, [1] * 3], device=CPU), 0),
        (fill_up(pack([[1] * 5, [1] * 3], device=CPU), 10), 0),
    ],
)
def test_a_row_is_lone_where_one_sequence_of_it_is_read(row: PackedRow, num_tokens: int) -> None:
    assert AttentionPlan(row).lone_tokens == num_tokens
