"""Jobs from their order to a published version, in this process, on tiny random models."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from shoal_models import manifest as manifests
from shoal_training.guard import Guard
from shoal_training.run import run
from tiny_jobs import MakeJob, classification_rows, write_csv
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

pytestmark = pytest.mark.usefixtures("one_thread")


def test_classification_goes_from_order_to_verified_version(make_job: MakeJob) -> None:
    job = make_job(epochs=8)
    assert run(job.path) == 0
    assert job.states() == [
        "validating", "preparing", "running", "evaluating", "gating", "publishing", "succeeded",
    ]  # fmt: skip
    manifest = manifests.read_manifest(job.version())
    manifests.verify_files(job.version(), manifest)
    assert (manifest.kind, manifest.family, manifest.head) == ("classifier", "encoder", "single_label")
    assert manifest.labels == ("animal", "plant")
    assert manifest.job_id == "job-job"
    assert manifest.seed == 42
    assert manifest.golden is not None
    assert manifest.golden.source == "synthetic"
    assert manifest.resolved_spec["learning_rate"] == 3e-3
    assert manifest.data_digests.keys() == {"train"}
    # The label follows from the first word: a model that learns gets (nearly) all of the 16 validation rows right.
    assert manifest.metrics["accuracy"] >= 0.9
    assert manifest.metrics["validation_rows"] == 16
    result = job.result()
    assert result["state"] == "succeeded"
    assert result["published_version"] == 1
    assert result["metrics"] == manifest.metrics
    assert job.events("published")[0] | {"model": "tiny", "version": 1} == job.events("published")[0]
    report = json.loads((job.path / "report.json").read_text())
    assert [row["label"] for row in report["per_class"]] == ["animal", "plant"]
    assert sum(map(sum, report["confusion"])) == 16
    assert not (job.path / "ckpt").exists()
    model = AutoModelForSequenceClassification.from_pretrained(job.version())
    assert model.config.id2label == {0: "animal", 1: "plant"}


@pytest.mark.parametrize("base", ["llama", "gpt2"])
@pytest.mark.parametrize("method", [{"full": {}}, {"lora": {"rank": 4}}])
def test_causal_lm_goes_from_order_to_verified_version(make_job: MakeJob, base: str, method: dict[str, Any]) -> None:
    job = make_job(base, epochs=4, **method)
    assert run(job.path) == 0
    manifest = manifests.read_manifest(job.version())
    manifests.verify_files(job.version(), manifest)
    assert (manifest.kind, manifest.family) == ("generator", "decoder")
    assert manifest.method == next(iter(method))
    losses = [event["metrics"]["loss"] for event in job.events("evaluation")]
    assert 3.5 < losses[0] < 4.0  # a fresh model of 44 words is near ln 44 = 3.78 nats a token
    assert manifest.metrics["loss"] == min(losses) < losses[0] - 0.005
    assert manifest.metrics["perplexity"] == pytest.approx(np.exp(manifest.metrics["loss"]))
    model = AutoModelForCausalLM.from_pretrained(job.version())
    assert model.config.use_cache


def test_merged_lora_computes_what_the_adapter_computed(make_job: MakeJob, bases: dict[str, Path]) -> None:
    """The evaluation before the merge and a forward of the published version agree on every validation row."""
    from shoal_training import pipeline
    from shoal_training.data import load_corpus
    from shoal_training.events import EventLog
    from shoal_training.job import read_job

    folder = make_job(lora={"rank": 4}, epochs=2, dropout=0.0)
    job = read_job(folder.path)
    corpus = load_corpus(job.spec.data, job.places, job.spec.seed)
    prepared = pipeline.prepare(job, corpus, EventLog(job.events_path), Guard())
    trainable = [name for name, parameter in prepared.session.model.named_parameters() if parameter.requires_grad]
    assert all("lora_" in name or "classifier" in name for name in trainable)
    last_step = pipeline.train(prepared)
    metrics = pipeline.evaluate(prepared, last_step)
    rows = prepared.session.validation_rows
    batch = prepared.session.objective.collate(rows, 0)
    batch.pop("labels")
    with torch.no_grad():
        before = prepared.session.model(**batch).logits
    pipeline.publish(prepared, metrics)
    published = AutoModelForSequenceClassification.from_pretrained(folder.version())
    with torch.no_grad():
        after = published(**batch).logits
    torch.testing.assert_close(after, before, atol=1e-5, rtol=1e-5)
    base = load_file(bases["bert"] / "model.safetensors")
    key = "encoder.layer.0.attention.self.query.weight"
    assert not torch.equal(published.state_dict()[f"bert.{key}"], base[key])  # the update is in the weights


def test_golden_of_data_records_validation_rows(make_job: MakeJob) -> None:
    job = make_job(max_steps=2, golden="data")
    assert run(job.path) == 0
    manifest = manifests.read_manifest(job.version())
    assert manifest.golden is not None
    assert manifest.golden.source == "data"
    with np.load(job.version() / "golden.npz") as golden:
        assert len(golden["lengths"]) == 8
        assert golden["ids"][0] == 2  # [CLS]


def test_bfloat16_weights_are_published_when_asked_for(make_job: MakeJob) -> None:
    job = make_job(max_steps=2, publish_dtype="bfloat16")
    assert run(job.path) == 0
    assert manifests.read_manifest(job.version()).weight_dtype == "bfloat16"
    assert {tensor.dtype for tensor in load_file(job.version() / "model.safetensors").values()} == {torch.bfloat16}


def test_training_goes_on_from_a_published_version_and_keeps_its_head(make_job: MakeJob, tmp_path: Path) -> None:
    first = make_job(epochs=8)
    assert run(first.path) == 0
    second = make_job(folder="second", base="bert")
    order = json.loads((second.path / "job.json").read_text())
    order["spec"] |= {"base": {"model": "tiny@1"}, "max_steps": 1, "learning_rate": 1e-7}
    (second.path / "job.json").write_text(json.dumps(order))
    assert run(second.path) == 0
    manifest = manifests.read_manifest(second.version(2))
    assert manifest.base == "tiny@1"
    assert manifest.metrics["accuracy"] >= 0.9  # one step at 1e-7 cannot have learnt that anew


def test_other_labels_get_a_new_head(make_job: MakeJob, tmp_path: Path) -> None:
    first = make_job(epochs=8)
    assert run(first.path) == 0
    renamed = [(text, {"animal": "x", "plant": "y"}[label]) for text, label in classification_rows(64)]
    write_csv(tmp_path / "train.csv", renamed)
    second = make_job(folder="second", max_steps=1, learning_rate=1e-7)
    order = json.loads((second.path / "job.json").read_text())
    order["spec"]["base"] = {"model": "tiny@1"}
    (second.path / "job.json").write_text(json.dumps(order))
    assert run(second.path) == 0
    old, new = (load_file(second.version(number) / "model.safetensors")["classifier.weight"] for number in (1, 2))
    assert not torch.allclose(old, new, atol=1e-3)


def test_early_stopping_publishes_the_best_weights(make_job: MakeJob) -> None:
    """A tiny learning rate with heavy noise: once evaluations stop improving for `patience` epochs, training ends."""
    job = make_job(epochs=60, learning_rate=2e-2, early_stopping_patience=2)
    assert run(job.path) == 0
    evaluations = job.events("evaluation")
    scores = [(round(event["metrics"]["f1_macro"], 6), -event["metrics"]["loss"]) for event in evaluations[:-1]]
    best = max(range(len(scores)), key=scores.__getitem__)
    assert best == len(scores) - 3  # two worse ones followed
    assert len(scores) < 60
    assert evaluations[-1]["final"]
    assert evaluations[-1]["step"] == evaluations[best]["step"]
    assert evaluations[-1]["metrics"] == evaluations[best]["metrics"]


def test_without_validation_rows_the_last_weights_are_published(make_job: MakeJob, tmp_path: Path) -> None:
    data = {"train": str(write_csv(tmp_path / "train.csv", classification_rows(16))), "validation_fraction": 0}
    job = make_job(data=data, max_steps=2)
    assert run(job.path) == 0
    assert job.events("evaluation") == []
    assert any("no validation rows" in event["message"] for event in job.events("warning"))
    assert manifests.read_manifest(job.version()).metrics == {"train_rows": 16.0, "validation_rows": 0.0}


def test_cut_rows_are_told(make_job: MakeJob, tmp_path: Path) -> None:
    rows = classification_rows(16)
    rows[3] = ("w1 " * 30, "plant")
    job = make_job(data={"train": str(write_csv(tmp_path / "train.csv", rows)), "validation_fraction": 0}, max_steps=1)
    assert run(job.path) == 0
    expected = "train: 1 of 16 rows are longer than 16 tokens; their ends were cut off"
    assert expected in [event["message"] for event in job.events("warning")]


def test_divergence_ends_the_job(make_job: MakeJob) -> None:
    job = make_job(learning_rate=1.0, weight_decay=0.0, epochs=200, early_stopping_patience=0, label_smoothing=0.0)
    bad = job.path / "job.json"
    order = json.loads(bad.read_text())
    order["spec"]["learning_rate"] = 1e30  # past what a spec may say: what a bad schedule would do
    bad.write_text(json.dumps(order))
    assert run(job.path) == 1
    result = job.result()
    assert (result["state"], result["failure_reason"]) == ("failed", "diverged")
    assert "learning_rate" in result["failure_message"]
    assert job.events("state")[-1]["failure_reason"] == "diverged"
    assert not job.repository.exists()


def test_time_limit_ends_the_job(make_job: MakeJob) -> None:
    """The clock stands 10 s further at each look: a limit of 200 s passes while training."""
    now_s = 0.0

    def clock() -> float:
        nonlocal now_s
        now_s += 10.0
        return now_s

    job = make_job(epochs=100, time_limit="200s")
    assert run(job.path, Guard(clock)) == 1
    assert job.result()["failure_reason"] == "timeout"
    assert "200 s" in job.result()["failure_message"]
    assert job.states()[-2:] == ["running", "failed"]


@pytest.fixture(params=["ro", "size=64k"])
def unwritable(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A repository on a file system that is read-only, or full."""
    folder = tmp_path / "unwritable"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", request.param, "shoal-test", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting is not permitted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_unwritable_repository_fails_with_storage(make_job: MakeJob, unwritable: Path) -> None:
    job = make_job(max_steps=1, repository=unwritable)
    assert run(job.path) == 1
    assert job.result()["failure_reason"] == "storage"
    assert job.states()[-2:] == ["publishing", "failed"]
    assert not list(unwritable.rglob("*.safetensors"))


def test_bad_rows_are_told_by_line_and_never_shown(make_job: MakeJob, tmp_path: Path) -> None:
    job = make_job()
    rows = [*classification_rows(10), ("   ", "animal"), ("the secret of row 13", "")]
    write_csv(tmp_path / "train.csv", rows)
    assert run(job.path) == 65
    result = job.result()
    assert result["failure_reason"] == "bad_data"
    assert result["failure_message"] == "train: 2 bad rows: line 12: text is empty; line 13: label is missing"
    assert "secret" not in (job.path / "events.jsonl").read_text()
    assert job.states() == ["validating", "failed"]


def test_missing_base_is_told(make_job: MakeJob) -> None:
    job = make_job()
    order = json.loads((job.path / "job.json").read_text())
    order["spec"]["base"] = {"model": "gone@1"}
    (job.path / "job.json").write_text(json.dumps(order))
    assert run(job.path) == 1
    assert job.result()["failure_reason"] == "base_missing"


def test_damaged_order_is_a_bad_spec(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text("{")
    assert run(tmp_path) == 64
    assert json.loads((tmp_path / "result.json").read_text())["failure_reason"] == "invalid_spec"


def test_a_version_is_published_once_however_often_the_job_is_started(make_job: MakeJob) -> None:
    """A job killed between publication and its result finds its version and does not make a second one."""
    job = make_job(max_steps=2)
    assert run(job.path) == 0
    (job.path / "result.json").unlink()
    assert run(job.path) == 0
    assert job.result()["published_version"] == 1
    assert manifests.list_versions(job.repository, "tiny") == [1]
