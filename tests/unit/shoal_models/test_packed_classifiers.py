"""Packed or padded, whatever its company: every sequence gets what transformers' own forward gives it alone."""

from __future__ import annotations

from collections.abc import Callable
from fnmatch import fnmatch

import pytest
import torch
import transformers as tf
from ragged import alone, ragged, second_starts
from shoal_models.classifier import LoadedClassifier
from shoal_models.classifier_probe import choose_execution
from shoal_models.compute import Compute
from shoal_models.kept_linears import KeptLinear
from shoal_models.packed import pack
from tiny_models import CLASSIFIERS, CPU, OTHER_CLASSIFIERS, Published, modern_bert_config, tiny_model

PADDED = {"MPNet", "DebertaV2"}
HEADS = ("ForSequenceClassification", "ForTokenClassification", "ForNextSentencePrediction")
ALL = [(family, head) for family in CLASSIFIERS for head in HEADS if hasattr(tf, family + head)]
ALONE = "those one by one"
UNTOUCHED = "attention took the packed row 0 times in a forward of * layers"
BART_WAY = (
    "one by one: packed, {}Model takes no positions; padded, ValueError: All examples must have the same number of "
    "<eos> tokens."
)
IDS = [family + head for family, head in ALL]


@pytest.mark.parametrize(("family", "head"), ALL, ids=IDS)
def test_together_equals_transformers_alone(family: str, head: str, publish: Callable[..., Published]) -> None:
    published = publish(tiny_model(family + head, CLASSIFIERS[family]()), "classifier")
    loaded = published.load()
    assert loaded.execution.split(":")[0] == ("padded" if family in PADDED else "packed")
    for seed, count, longest in ((1, 1, 90), (2, 9, 90), (3, 40, 12), (4, 5, 1)):
        sequences = ragged(seed, count, longest)
        expected = alone(published.model, sequences)
        assert count == 1 or expected.std(0).min() > 0.05, "the answers tell apart"
        torch.testing.assert_close(loaded.logits(pack(sequences, device=CPU)), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", ["Bert", "Electra", "Albert"])
@pytest.mark.parametrize("head", HEADS)
def test_token_types_reach_models_that_know_them(family: str, head: str, publish: Callable[..., Published]) -> None:
    if not hasattr(tf, family + head):
        return
    published = publish(tiny_model(family + head, CLASSIFIERS[family]()), "classifier")
    sequences = ragged(4, 12, 20)
    seconds = second_starts(4, sequences)
    found = published.load().logits(pack(sequences, device=CPU, second_starts=seconds))
    expected = alone(published.model, sequences, seconds)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    assert (expected - alone(published.model, sequences)).abs().max() > 0.05, "types make a difference"


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_modern_bert_pools_as_its_configuration_says(pooling: str, publish: Callable[..., Published]) -> None:
    published = publish(tiny_model("ModernBertForSequenceClassification", modern_bert_config(pooling)), "classifier")
    loaded = published.load()
    assert loaded.execution == "packed"
    sequences = ragged(5, 12, 90)
    expected = alone(published.model, sequences)
    torch.testing.assert_close(loaded.logits(pack(sequences, device=CPU)), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("inner", [1, 2])
def test_shared_albert_layers_are_counted_as_often_as_they_run(
    groups: int, inner: int, publish: Callable[..., Published]
) -> None:
    config = CLASSIFIERS["Albert"]()
    config.num_hidden_groups, config.inner_group_num = groups, inner
    published = publish(tiny_model("AlbertForSequenceClassification", config), "classifier")
    assert published.load().execution == "packed"


@pytest.mark.parametrize("family", ["Roberta", "XLMRoberta", "MPNet", "Bert"])
def test_padding_tokens_inside_a_sequence_count_as_transformers_counts_them(
    family: str, publish: Callable[..., Published]
) -> None:
    """RoBERTa and its kin skip them in positions."""
    published = publish(tiny_model(f"{family}ForSequenceClassification", CLASSIFIERS[family]()), "classifier")
    padding = published.model.config.pad_token_id
    sequences = [[5, padding, 6, 7], [8, 9, 10], [padding, 11], [12, padding]]
    found = published.load().logits(pack(sequences, device=CPU))
    torch.testing.assert_close(found, alone(published.model, sequences), atol=1e-4, rtol=0)


@pytest.mark.parametrize("family", [*sorted(CLASSIFIERS), "XLNet", "Llama"])
def test_an_answer_does_not_depend_on_its_company(family: str, publish: Callable[..., Published]) -> None:
    config = {**CLASSIFIERS, **OTHER_CLASSIFIERS}[family]()
    loaded = publish(tiny_model(f"{family}ForSequenceClassification", config), "classifier").load()
    subjects = ragged(6, 3, 40)
    expected = torch.cat([loaded.logits(pack([ids], device=CPU)) for ids in subjects])
    for seed in range(30):
        company = ragged(100 + seed, 1 + seed % 12, 60)
        place = seed % (len(company) + 1)
        row = pack([*company[:place], *subjects, *company[place:]], device=CPU)
        found = loaded.logits(row)[place : place + len(subjects)]
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("architecture", "way"),
    [
        ("DebertaForSequenceClassification", f"padded: {UNTOUCHED}"),
        ("DebertaForTokenClassification", f"padded: {UNTOUCHED}"),
        ("XLNetForSequenceClassification", "padded: XLNetModel takes no positions"),
        ("XLNetForTokenClassification", "padded: XLNetModel takes no positions"),
        ("GPT2ForSequenceClassification", "packed"),
        ("GPT2ForTokenClassification", "packed"),
        ("LlamaForSequenceClassification", "packed"),
        ("LlamaForTokenClassification", "packed"),
        ("Qwen2ForSequenceClassification", "packed"),
        ("BartForSequenceClassification", BART_WAY.format("Bart")),
        ("T5ForSequenceClassification", BART_WAY.format("T5")),
        ("T5ForTokenClassification", "padded: T5EncoderModel takes no positions"),
        ("BigBirdForSequenceClassification", f"padded: {UNTOUCHED}"),
        (
            "FNetForTokenClassification",
            f"one by one: packed, {UNTOUCHED}; padded, its answers differ by * from {ALONE}",
        ),
    ],
)
def test_whatever_else_transformers_loads_takes_the_fastest_way_that_is_right(
    architecture: str, way: str, publish: Callable[..., Published]
) -> None:
    family = architecture.partition("For")[0]
    published = publish(tiny_model(architecture, OTHER_CLASSIFIERS[family]()), "classifier")
    loaded = published.load()
    assert fnmatch(loaded.execution, way)
    sequences = ragged(7, 10, 30)
    if family in {"Bart", "T5"}:
        sequences = [[*ids, published.model.config.eos_token_id] for ids in sequences]
    found = loaded.logits(pack(sequences, device=CPU))
    torch.testing.assert_close(found, alone(published.model, sequences), atol=1e-4, rtol=0)


@pytest.mark.parametrize("padding_id", [0, None])
def test_a_head_that_reads_the_last_token_takes_padding_tokens_as_transformers_does(
    padding_id: int | None, publish: Callable[..., Published]
) -> None:
    config = OTHER_CLASSIFIERS["Llama"]()
    config.pad_token_id = padding_id
    published = publish(tiny_model("LlamaForSequenceClassification", config), "classifier")
    loaded = published.load()
    assert loaded.execution == "packed"
    sequences = [[5, 6, 7], [8, 9, 0], [0, 10, 0, 0], [0, 0], [11]]
    found = loaded.logits(pack(sequences, device=CPU))
    torch.testing.assert_close(found, alone(published.model, sequences), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("architecture", "num_kept"), [("T5ForTokenClassification", 2), ("DebertaV2ForTokenClassification", 0)]
)
def test_layers_whose_weights_others_read_are_not_prepacked(
    architecture: str, num_kept: int, publish: Callable[..., Published]
) -> None:
    """Each T5 layer looks at the dtype of its last linear layer's weight."""
    config = {**CLASSIFIERS, **OTHER_CLASSIFIERS}[architecture.partition("For")[0]]()
    published = publish(tiny_model(architecture, config), "classifier")
    loaded = LoadedClassifier(published.model, published.manifest)
    choose_execution(loaded, published.model)
    before = loaded.logits(loaded.trial_row(6))
    loaded.cast(Compute(rounded=torch.bfloat16, computed=torch.bfloat16))
    kinds = [type(module) for module in loaded._model.modules()]
    assert (kinds.count(KeptLinear), kinds.count(torch.nn.Linear)) == (num_kept, 0)
    assert loaded.compute_dtype == "bfloat16"
    torch.testing.assert_close(loaded.logits(loaded.trial_row(6)), before, atol=0.5, rtol=0)


def test_what_cannot_be_computed_in_bfloat16_is_computed_in_float32(publish: Callable[..., Published]) -> None:
    """FNet's Fourier transform knows no bfloat16."""
    published = publish(tiny_model("FNetForSequenceClassification", OTHER_CLASSIFIERS["FNet"]()), "classifier")
    loaded = LoadedClassifier(published.model, published.manifest)
    choose_execution(loaded, published.model)
    sequences = ragged(8, 5, 20)
    before = loaded.logits(pack(sequences, device=CPU))
    loaded.cast(Compute(rounded=torch.bfloat16, computed=torch.bfloat16))
    assert loaded.compute_dtype == "float32 (bfloat16 weights)"
    found = loaded.logits(pack(sequences, device=CPU))
    torch.testing.assert_close(found, before, atol=0.3, rtol=0)
    assert not torch.equal(found, before)


def test_big_bird_attends_to_everything_whatever_came_before(publish: Callable[..., Published]) -> None:
    """Transformers switches it to full attention with the first short text, and never back."""
    published = publish(tiny_model("BigBirdForSequenceClassification", OTHER_CLASSIFIERS["BigBird"]()), "classifier")
    ids = ragged(9, 1, 150)
    ids = [(ids[0] * 150)[:120]]
    found = published.load().logits(pack(ids, device=CPU))
    alone(published.model, [[5, 6]])
    torch.testing.assert_close(found, alone(published.model, ids), atol=1e-4, rtol=0)


def test_bfloat16_rounds_the_weights_once(publish: Callable[..., Published]) -> None:
    """Weights published in bfloat16 are exact in it: on a CPU that computes them in float32 nothing is lost on top."""
    from shoal_models.compute import has_native_bfloat16

    model = tiny_model("BertForSequenceClassification", CLASSIFIERS["Bert"]())
    published = publish(model, "classifier", weight_dtype="bfloat16")
    sequences = ragged(7, 8, 30)
    exact = published.load().logits(pack(sequences, device=CPU))
    served = published.load(torch.bfloat16)
    rounded = served.logits(pack(sequences, device=CPU))
    if has_native_bfloat16():
        assert served.compute_dtype == "bfloat16"
        torch.testing.assert_close(rounded, exact, atol=0.3, rtol=0)
    else:
        assert served.compute_dtype == "float32 (bfloat16 weights)"
        torch.testing.assert_close(rounded, exact, atol=1e-5, rtol=0)
    assert (exact - alone(model, sequences)).abs().max() > 1e-4, "publication rounded the weights"
