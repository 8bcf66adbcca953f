"""Golden outputs bind what is served to what was published."""

from __future__ import annotations

import copy
import dataclasses
import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from shoal_models.classifier_probe import choose_execution
from shoal_models.execution import Execution
from shoal_models.golden import GoldenMismatch, check_golden, record_golden
from shoal_models.load import Proven, load_version
from shoal_models.manifest import GOLDEN_NAME
from shoal_models.probe import plain_logits
from tiny_models import CLASSIFIERS, CPU, GENERATORS, Published, tiny_model


@pytest.fixture
def classifier(publish: Callable[..., Published]) -> Published:
    """A published tiny BERT."""
    return publish(tiny_model("BertForSequenceClassification", CLASSIFIERS["Bert"]()), "classifier")


@pytest.fixture
def generator(publish: Callable[..., Published]) -> Published:
    """A published tiny Llama."""
    return publish(tiny_model("LlamaForCausalLM", GENERATORS["LlamaForCausalLM"]()), "generator")


def _change_weight(path: Path, name: str, amount: float) -> None:
    file = path / "model.safetensors"
    weights = load_file(file)
    weights[name].view(-1)[::3] += amount  # not all alike: layer norms would take that out again
    save_file(weights, file, metadata={"format": "pt"})


def test_outputs_are_those_of_the_plain_forward(generator: Published) -> None:
    assert generator.manifest.golden is not None
    assert generator.manifest.golden.source == "synthetic"
    with np.load(generator.path / GOLDEN_NAME) as archive:
        ids = np.split(archive["ids"], np.cumsum(archive["lengths"])[:-1])
        logits = archive["logits"]
    assert sorted(map(len, ids)) == [4, 5, 6, 9, 12, 17, 20, 24]
    for given, expected in zip(ids, logits, strict=True):
        with torch.no_grad():
            found = generator.model(torch.tensor([given.tolist()])).logits[0, -1]
        torch.testing.assert_close(found, torch.from_numpy(expected), atol=1e-5, rtol=0)


def test_made_up_inputs_are_the_same_every_time_and_avoid_special_ids(tmp_path: Path) -> None:
    model = tiny_model("LlamaForCausalLM", GENERATORS["LlamaForCausalLM"]())
    found = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        record_golden(model, tmp_path / name, avoid_ids=frozenset({0, 1, 2, 3}))
        with np.load(tmp_path / name / GOLDEN_NAME) as archive:
            found.append(archive["ids"])
    assert np.array_equal(*found)
    assert found[0].min() >= 4


@pytest.mark.parametrize("name", ["classifier.weight", "bert.encoder.layer.1.attention.self.value.weight"])
def test_a_changed_weight_is_noticed_in_float32(classifier: Published, name: str) -> None:
    _change_weight(classifier.path, name, 0.02)
    with pytest.raises(GoldenMismatch, match=r"golden output \d differs by .* in float32; tolerance 0.001"):
        classifier.load(torch.bfloat16)


def test_a_changed_generator_is_noticed(generator: Published) -> None:
    _change_weight(generator.path, "model.layers.1.mlp.down_proj.weight", 0.01)
    with pytest.raises(GoldenMismatch, match="differs by"):
        generator.load()


def test_a_weight_that_is_not_a_number_is_noticed(classifier: Published) -> None:
    _change_weight(classifier.path, "classifier.bias", float("nan"))
    with pytest.raises(GoldenMismatch, match="differs by nan"):
        classifier.load()


def test_the_serving_dtype_is_held_to_its_own_tolerance(classifier: Published) -> None:
    assert classifier.manifest.golden is not None
    strict = dataclasses.replace(classifier.manifest.golden, serving_tolerance=1e-7)
    tightened = dataclasses.replace(classifier, manifest=dataclasses.replace(classifier.manifest, golden=strict))
    assert tightened.load().compute_dtype == "float32"
    with pytest.raises(GoldenMismatch, match=r"in (bfloat16|float32 \(bfloat16 weights\)); tolerance 1e-07"):
        tightened.load(torch.bfloat16)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda file: file.write_bytes(b"no archive"), "golden.npz is unreadable"),
        (lambda file: file.unlink(), "golden.npz is unreadable: FileNotFoundError"),
        (lambda file: np.savez(file, ids=np.zeros(3), lengths=np.array([2]), logits=np.zeros((1, 3))), "contradicts"),
        (lambda file: np.savez(file, ids=np.array([None])), "golden.npz is unreadable: ValueError"),
        (
            lambda file: np.savez(file, ids=np.arange(3), lengths=np.array([3]), logits=np.zeros((1, 7))),
            "golden outputs have shape (1, 7); the model gives (1, 3)",
        ),
    ],
    ids=["garbage", "missing", "contradictory", "pickled", "other labels"],
)
def test_an_archive_that_cannot_be_met_is_refused(
    classifier: Published, spoil: Callable[[Path], Any], words: str
) -> None:
    spoil(classifier.path / GOLDEN_NAME)
    with pytest.raises(GoldenMismatch, match=re.escape(words)):
        classifier.load()


def test_real_data_is_cut_to_eight_short_inputs(tmp_path: Path) -> None:
    model = tiny_model("LlamaForCausalLM", GENERATORS["LlamaForCausalLM"]())
    golden = record_golden(model, tmp_path, inputs=[[5 + i] * (10 * i + 1) for i in range(12)])
    assert golden.source == "data"
    with np.load(tmp_path / GOLDEN_NAME) as archive:
        assert archive["lengths"].tolist() == [1, 11, 21, 31, 41, 51, 61, 64]


def test_recording_leaves_the_weights_as_they_were(tmp_path: Path) -> None:
    model = tiny_model("LlamaForCausalLM", GENERATORS["LlamaForCausalLM"]())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    record_golden(model, tmp_path)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_a_loaded_version_can_be_checked_again(classifier: Published) -> None:
    loaded = classifier.load()
    check_golden(loaded, classifier.path, classifier.manifest)
    without = dataclasses.replace(classifier.manifest, golden=None)
    with pytest.raises(GoldenMismatch, match="has no golden outputs"):
        check_golden(loaded, classifier.path, without)


@pytest.mark.parametrize("kind", ["classifier", "generator"])
def test_what_is_proven_saves_the_probe_and_not_the_golden_outputs(
    kind: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    published: Published = request.getfixturevalue(kind)
    proven = Proven()
    probed = []
    for probe in (choose_execution, plain_logits):
        counted = functools.partial(lambda probe, *given: probed.append(1) or probe(*given), probe)
        monkeypatch.setattr(f"shoal_models.load.{probe.__name__}", counted)
    for _ in range(2):
        load_version(published.path, published.manifest, dtype=torch.float32, device=CPU, proven=proven)
    assert len(probed) == 1
    name = next(name for name in load_file(published.path / "model.safetensors") if name.endswith("weight"))
    _change_weight(published.path, name, 0.5)
    with pytest.raises(GoldenMismatch, match="differs by"):
        load_version(published.path, published.manifest, dtype=torch.float32, device=CPU, proven=proven)
    assert len(probed) == 2, "asked again, since other weights might need the slower path"


def test_another_configuration_is_probed_though_the_architecture_is_proven(publish: Callable[..., Published]) -> None:
    proven = Proven()
    for heads in (4, 2):
        config = CLASSIFIERS["Bert"]()
        config.num_attention_heads = heads
        published = publish(tiny_model("BertForSequenceClassification", config), "classifier", name=f"heads-{heads}")
        assert proven.of(published.manifest) is None
        load_version(published.path, published.manifest, dtype=torch.float32, device=CPU, proven=proven)
        assert proven.of(published.manifest) == Execution(way="packed", lean=True)


@pytest.mark.parametrize("weight_dtype", ["float32", "bfloat16"])
def test_the_serving_tolerance_lets_bfloat16_pass(publish: Callable[..., Published], weight_dtype: str) -> None:
    """Of weights that are exact in bfloat16 only what layers put out is rounded, and that adds up, too."""
    model = tiny_model("BertForSequenceClassification", CLASSIFIERS["Bert"](), seed=3)
    published = publish(model, "classifier", weight_dtype=weight_dtype)
    assert published.manifest.golden is not None
    with np.load(published.path / GOLDEN_NAME) as archive:
        ids = np.split(archive["ids"], np.cumsum(archive["lengths"])[:-1])
        expected = torch.from_numpy(archive["logits"])
    half = copy.deepcopy(model).bfloat16()
    with torch.no_grad():
        found = torch.cat([half(torch.tensor([one.tolist()])).logits.float() for one in ids])
    difference = float((found - expected).abs().max())
    assert 0.02 < difference < published.manifest.golden.serving_tolerance
