"""What gives other answers together than alone is noticed at load and never served, and `execution` says why."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from ragged import alone, ragged
from shoal_models.classifier import LoadedClassifier
from shoal_models.classifier_probe import choose_execution
from shoal_models.execution import Execution
from shoal_models.load import LoadError, Proven, load_version
from shoal_models.packed import pack
from shoal_models.plan import AttentionPlan
from tiny_models import CLASSIFIERS, CPU, OTHER_CLASSIFIERS, Published, tiny_model
from torch import Tensor, nn


class Leak(nn.Module):
    """Lets every token of a forward see a little of the token before it, whosever that is."""

    def __init__(self, honest: nn.Module, *, along: int) -> None:
        super().__init__()
        self.honest, self.along = honest, along

    def forward(self, *given: Any, **named: Any) -> Any:
        out = self.honest(*given, **named)
        first = out if isinstance(out, Tensor) else out[0]
        leaky = first + 0.01 * first.roll(1, self.along)
        return leaky if isinstance(out, Tensor) else (leaky, *out[1:])


def _loaded(published: Published) -> LoadedClassifier:
    """A copy of its model, as the probe found it to run; the model itself stays as transformers runs it."""
    model = copy.deepcopy(published.model)
    loaded = LoadedClassifier(model, published.manifest)
    choose_execution(loaded, model)
    return loaded


def _check_alone(loaded: LoadedClassifier, model: Any) -> None:
    """Whatever the way, the answers are the model's own."""
    sequences = ragged(1, 8, 20)
    torch.testing.assert_close(loaded.logits(pack(sequences, device=CPU)), alone(model, sequences), atol=1e-5, rtol=0)


@pytest.fixture
def bert(publish: Callable[..., Published]) -> Published:
    """A published tiny BERT with a sequence head."""
    return publish(tiny_model("BertForSequenceClassification", CLASSIFIERS["Bert"]()), "classifier")


def test_attention_that_mixes_sequences_is_caught_and_padded_instead(
    bert: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Attention over the whole packed row, called as often as it should be; masks of padded batches still hold."""
    from transformers import AttentionInterface

    def mixing_fused(plan: AttentionPlan, qkv_T3E: Tensor, num_heads: int) -> Tensor:
        plan.num_calls += 1
        query, key, value = qkv_T3E.view(len(qkv_T3E), 3, num_heads, -1).permute(1, 2, 0, 3)
        return nn.functional.scaled_dot_product_attention(query, key, value).transpose(0, 1).flatten(1)

    def mixing(_: Any, query: Tensor, key: Tensor, value: Tensor, *__: Any, packed_plan: Any, **___: Any) -> Any:
        packed_plan.num_calls += 1
        return nn.functional.scaled_dot_product_attention(query, key, value).transpose(1, 2), None

    monkeypatch.setitem(AttentionInterface._global_mapping, "shoal_packed", mixing)
    monkeypatch.setattr("shoal_models.post_norm.attend_fused", mixing_fused)
    loaded = _loaded(bert)
    assert re.fullmatch(r"padded: its answers differ by \d\S* from those one by one", loaded.execution)
    _check_alone(loaded, bert.model)


def test_lean_layers_that_are_wrong_are_left_for_transformers_own(
    bert: Published, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forgetful(plan: AttentionPlan, qkv_T3E: Tensor, num_heads: int) -> Tensor:
        plan.num_calls += 1
        return qkv_T3E[:, : qkv_T3E.shape[1] // 3]

    monkeypatch.setattr("shoal_models.post_norm.attend_fused", forgetful)
    loaded = _loaded(bert)
    assert (loaded.execution, loaded.way.lean) == ("packed", False)
    _check_alone(loaded, bert.model)


def test_attention_that_is_called_too_often_is_no_packed_attention(bert: Published) -> None:
    bert.model.config.num_hidden_layers = 2
    loaded = _loaded(bert)
    assert loaded.execution == "padded: attention took the packed row 3 times in a forward of 2 layers"
    _check_alone(loaded, bert.model)


def test_a_model_that_mixes_tokens_of_a_row_is_padded(bert: Published) -> None:
    """A layer that looks one token back: at the start of a packed sequence it sees the end of another.

    Alone, and in a batch padded on the right to more than its own length, the first token sees what comes last; only
    a batch of sequences of one length would give the same answers.
    """
    layer = bert.model.bert.encoder.layer[1]
    layer.output = Leak(layer.output, along=1)
    loaded = _loaded(bert)
    assert re.fullmatch(
        r"one by one: packed, its answers differ by \S+ from those one by one; "
        r"padded, its answers differ by \S+ from those one by one",
        loaded.execution,
    )
    _check_alone(loaded, bert.model)


def test_a_model_that_mixes_the_sequences_of_a_batch_runs_one_by_one(publish: Callable[..., Published]) -> None:
    published = publish(tiny_model("MPNetForSequenceClassification", CLASSIFIERS["MPNet"]()), "classifier")
    layer = published.model.mpnet.encoder.layer[1]
    layer.output = Leak(layer.output, along=0)
    loaded = _loaded(published)
    assert loaded.execution.startswith("one by one: packed, attention took the packed row 0 times in a forward of 3 ")
    assert "padded, its answers differ by" in loaded.execution


def test_a_model_that_ignores_the_attention_mask_runs_one_by_one(publish: Callable[..., Published]) -> None:
    published = publish(tiny_model("MPNetForTokenClassification", CLASSIFIERS["MPNet"]()), "classifier")
    encoder = published.model.mpnet.encoder
    honest = encoder.forward
    encoder.forward = lambda hidden, attention_mask=None, **named: honest(
        hidden, attention_mask=None if attention_mask is None else attention_mask * 0, **named
    )
    loaded = _loaded(published)
    assert loaded.execution.startswith("one by one: ")
    _check_alone(loaded, published.model)


def test_a_head_that_reads_all_tokens_in_its_own_way_is_found_out(bert: Published) -> None:
    class Longest(nn.Module):
        """Pools the largest of every feature, as no known head does."""

        def forward(self, hidden: Tensor) -> Tensor:
            return hidden.amax(1)

    bert.model.bert.pooler = Longest()
    loaded = _loaded(bert)
    assert loaded.way == Execution(way="packed", reads="sequence")
    _check_alone(loaded, bert.model)


def test_padding_goes_to_the_left_where_heads_read_the_last_place(publish: Callable[..., Published]) -> None:
    published = publish(tiny_model("XLNetForSequenceClassification", OTHER_CLASSIFIERS["XLNet"]()), "classifier")
    loaded = _loaded(published)
    assert (loaded.way.way, loaded.way.side) == ("padded", "left")
    _check_alone(loaded, published.model)


@pytest.mark.parametrize("architecture", ["MPNetForSequenceClassification", "BartForSequenceClassification"])
def test_what_was_found_out_is_remembered_for_every_way(
    architecture: str, publish: Callable[..., Published], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {**CLASSIFIERS, **OTHER_CLASSIFIERS}[architecture.partition("For")[0]]()
    published = publish(tiny_model(architecture, config), "classifier")
    proven = Proven()
    first = load_version(published.path, published.manifest, dtype=torch.float32, device=CPU, proven=proven)
    monkeypatch.setattr("shoal_models.load.choose_execution", None)
    second = load_version(published.path, published.manifest, dtype=torch.float32, device=CPU, proven=proven)
    assert second.execution == first.execution


def test_sequences_of_the_probe_fit_into_short_models(publish: Callable[..., Published]) -> None:
    config = CLASSIFIERS["Bert"]()
    config.max_position_embeddings = 24
    published = publish(tiny_model("BertForSequenceClassification", config), "classifier")
    assert published.manifest.max_tokens == 24
    assert published.load().execution == "packed"


def test_lengths_that_transformers_itself_refuses_are_not_probed(publish: Callable[..., Published]) -> None:
    """Funnel's forward fails for fewer than three tokens, and for padding tokens inside a sequence."""
    published = publish(tiny_model("FunnelForSequenceClassification", OTHER_CLASSIFIERS["Funnel"]()), "classifier")
    loaded = published.load()
    assert loaded.execution.startswith("padded: ")
    sequences = [ids for ids in ragged(3, 12, 30) if len(ids) > 2]
    expected = alone(published.model, sequences)
    torch.testing.assert_close(loaded.logits(pack(sequences, device=CPU)), expected, atol=1e-4, rtol=0)


def test_a_model_that_needs_more_than_token_ids_is_refused(bert: Published, monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(*_: Any, **__: Any) -> None:
        raise ValueError("You have to specify bbox")

    monkeypatch.setattr("transformers.BertForSequenceClassification.forward", forward)
    with pytest.raises(LoadError, match="does not run on token ids alone: ValueError: You have to specify bbox"):
        bert.load()
