"""The last layer for first tokens alone gives what the whole layer gives them."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from shoal_models.classifier import LoadedClassifier
from shoal_models.classifier_probe import choose_execution
from shoal_models.first_tokens import FirstTokenLayer, attend_first
from shoal_models.packed import pack
from shoal_models.plan import AttentionPlan
from tiny_models import CLASSIFIERS, CPU, Published, tiny_model

HEADS, SIZE = 3, 8


@given(lengths=st.lists(st.integers(1, 150), min_size=1, max_size=30), has_long=st.booleans())
@settings(max_examples=60, deadline=None)
def test_one_query_of_each_sequence_sees_its_own_tokens(lengths: list[int], has_long: bool) -> None:
    """A sequence of 600 tokens is too long for chunks."""
    torch.manual_seed(0)
    plan = AttentionPlan(pack([[1] * n for n in ([*lengths, 600] if has_long else lengths)], device=CPU))
    starts = plan.row.starts
    query, key, value = (torch.randn(n, HEADS, SIZE) for n in (len(starts) - 1, starts[-1], starts[-1]))
    found = attend_first(plan, query.flatten(1), torch.cat([key.flatten(1), value.flatten(1)], 1), HEADS)
    for index, (start, end) in enumerate(itertools.pairwise(starts)):
        weights = torch.softmax(torch.einsum("hd,thd->ht", query[index], key[start:end]) * SIZE**-0.5, -1)
        expected = torch.einsum("ht,thd->hd", weights, value[start:end]).flatten()
        torch.testing.assert_close(found[index], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("architecture", "num_early"),
    [
        ("BertForSequenceClassification", 1),
        ("DistilBertForSequenceClassification", 1),
        ("ElectraForSequenceClassification", 1),
        ("AlbertForSequenceClassification", 0),  # its one layer runs three times
        ("BertForTokenClassification", 0),  # reads every token
    ],
)
def test_the_last_layer_is_cut_short_where_only_first_tokens_are_read(
    architecture: str, num_early: int, publish: Callable[..., Published]
) -> None:
    published = publish(tiny_model(architecture, CLASSIFIERS[architecture.partition("For")[0]]()), "classifier")
    model = copy.deepcopy(published.model)
    loaded = LoadedClassifier(model, published.manifest)
    assert choose_execution(loaded, model).lean
    assert sum(isinstance(module, FirstTokenLayer) for module in model.modules()) == num_early
