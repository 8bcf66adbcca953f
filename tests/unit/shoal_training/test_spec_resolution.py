"""Raw trees become resolved specs, or every wrong field is told with limit and value."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import save_file
from shoal_models.manifest import Manifest, publish
from shoal_training import compatibility
from shoal_training.places import Places
from shoal_training.resolve import SpecRefused, auto_learning_rate, resolve
from shoal_training.spec import SpecFileError, from_tree, load_yaml
from tiny_jobs import write_csv

DIGEST = "ab" * 32


@pytest.fixture
def places(tmp_path: Path) -> Places:
    """A repository with mini@1, mini@2 (encoder, 25 numbers) and lm@1 (decoder); one data root; one dataset."""
    import numpy as np

    root = tmp_path / "root"
    root.mkdir()
    write_csv(root / "rows.csv", [("a", "b")])
    (tmp_path / "outside.csv").write_text("text,label\n")
    (root / "link.csv").symlink_to(tmp_path / "outside.csv")
    datasets = tmp_path / "datasets"
    datasets.mkdir()
    (datasets / f"{DIGEST}.jsonl").write_text("{}")

    def write(folder: Path) -> None:
        save_file({"w": np.zeros((5, 5), dtype=np.float32)}, folder / "model.safetensors")

    for name, family in (("mini", "encoder"), ("mini", "encoder"), ("lm", "decoder"), ("t5", "encoder_decoder")):
        manifest = Manifest(
            model=name,
            version=0,
            kind="base",
            family=family,
            architecture="X",
            max_tokens=512,
            vocabulary_size=9,
            weight_dtype="float32",
        )
        publish(tmp_path / "models", manifest, write)
    base = root / "base"
    base.mkdir()
    config = {"model_type": "roberta", "architectures": ["RobertaModel"], "max_position_embeddings": 514}
    (base / "config.json").write_text(json.dumps(config))
    write(base)
    pickled = root / "pickled"
    pickled.mkdir()
    (pickled / "config.json").write_text(json.dumps(config))
    (pickled / "pytorch_model.bin").write_bytes(b"x")
    return Places(repository=tmp_path / "models", data_roots=(root,), dataset_dir=datasets)


def tree(**fields: Any) -> dict[str, Any]:
    """A good spec with some fields changed; None removes one."""
    whole = {
        "name": "topics",
        "base": {"model": "mini"},
        "objective": "sequence_classification",
        "data": {"train": f"dataset://{DIGEST}"},
        **fields,
    }
    return {key: value for key, value in whole.items() if value is not None}


def test_every_default_is_filled_in(places: Places) -> None:
    assert resolve(tree(), places).to_tree() == {
        "name": "topics",
        "base": {"model": "mini@2"},  # the newest complete version, pinned
        "family": "encoder",
        "objective": "sequence_classification",
        "full": {},
        "data": {
            "train": f"dataset://{DIGEST}",
            "validation_fraction": 0.1,
            "text_column": "text",
            "label_column": "label",
        },
        "epochs": 5.0,
        "batch_size": 16,
        "max_len": 128,
        "learning_rate": 1e-4,
        "weight_decay": 0.01,
        "warmup_fraction": 0.1,
        "dropout": 0.1,
        "early_stopping_patience": 2,
        "label_smoothing": 0.0,
        "seed": 42,
        "checkpoint_interval_s": 300.0,
        "golden": "synthetic",
        "publish_dtype": "float32",
    }


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"lora": {}},
        {"lora": {"rank": 8}, "time_limit": "2h", "max_steps": 7, "golden": "data"},
        {"data": {"train": "rows.csv", "validation": "rows.csv"}},
        {"base": {"model": "lm@1"}, "objective": "causal_lm"},
        {"base": {"path": "base"}, "learning_rate": "auto", "publish_dtype": "bfloat16"},
        {"base": {"hub_id": "org/name"}},
    ],
)
def test_resolving_a_resolved_spec_changes_nothing(places: Places, fields: dict[str, Any]) -> None:
    spec = resolve(tree(**fields), places)
    assert resolve(spec.to_tree(), places) == spec
    assert from_tree(json.loads(json.dumps(spec.to_tree()))) == spec


def test_unset_words_of_protobuf_take_defaults(places: Places) -> None:
    """A front leaves unset strings empty."""
    data = {"train": "rows.csv", "validation": "", "text_column": "", "text_pair_column": "", "label_column": ""}
    spec = resolve(tree(family="", golden="", publish_dtype="", data=data), places)
    assert (spec.data.text_column, spec.data.label_column) == ("text", "label")
    assert spec.data.train == str(places.data_roots[0] / "rows.csv")


def test_lora_defaults_follow_its_rank(places: Places) -> None:
    assert resolve(tree(lora={"rank": 8}), places).to_tree()["lora"] == {"rank": 8, "alpha": 16.0, "dropout": 0.05}


def test_without_validation_rows_early_stopping_is_off(places: Places) -> None:
    spec = resolve(tree(data={"train": "rows.csv", "validation_fraction": 0}), places)
    assert spec.early_stopping_patience == 0


@pytest.mark.parametrize(("value", "seconds"), [("300s", 300), ("1.5s", 1.5), ("5m", 300), ("2h", 7200), (60, 60)])
def test_durations_are_read(places: Places, value: object, seconds: float) -> None:
    assert resolve(tree(time_limit=value), places).time_limit_s == seconds


@pytest.mark.parametrize(
    ("family", "method", "num_parameters", "rate"),
    [
        ("encoder", "full", 22_000_000, 1e-4),
        ("encoder", "full", 66_000_000, 5e-5),
        ("encoder", "full", 110_000_000, 2e-5),
        ("decoder", "full", 135_000_000, 2e-5),
        ("encoder", "lora", 22_000_000, 2e-3),
        ("decoder", "lora", 135_000_000, 1e-3),
    ],
)
def test_learning_rate_follows_method_and_size(family: str, method: str, num_parameters: int, rate: float) -> None:
    assert auto_learning_rate(family, method, num_parameters) == rate


def test_a_base_on_the_hub_leaves_the_learning_rate_open(places: Places) -> None:
    spec = resolve(tree(base={"hub_id": "org/name"}), places)
    assert spec.learning_rate is None
    assert spec.family == "encoder"


def test_a_folder_tells_family_and_limit(places: Places) -> None:
    spec = resolve(tree(base={"path": "base"}, max_len=512), places)
    assert spec.family == "encoder"
    with pytest.raises(SpecRefused, match="max_len: is 513; allowed: 8 to 512"):  # RoBERTa never uses two positions
        resolve(tree(base={"path": "base"}, max_len=513), places)


REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"name": None}, "name", "is required"),
    ({"name": "../up"}, "name", "1 to 128"),
    ({"epoch": 3}, "epoch", "unknown field; did you mean epochs?"),
    ({"zzz": 3}, "zzz", "unknown field"),
    ({"data": {"train": "rows.csv", "labels_column": "x"}}, "data.labels_column", "did you mean label_column?"),
    ({"lora": {"ranks": 4}}, "lora.ranks", "did you mean rank?"),
    ({"full": {"rank": 4}}, "full.rank", "unknown field"),
    ({"full": {}, "lora": {}}, "method", "at most one"),
    ({"base": None}, "base", "is required"),
    ({"base": {}}, "base", "needs exactly one of model, path, hub_id; it has none"),
    ({"base": {"model": "mini", "hub_id": "a/b"}}, "base", "it has model and hub_id"),
    ({"base": "mini"}, "base", "must be a mapping of fields, not text"),
    ({"base": {"model": "mini@zero"}}, "base.model", "name@version"),
    ({"base": {"model": "t5"}, "objective": "causal_lm"}, "base", "family encoder_decoder"),
    ({"base": {"path": "pickled"}}, "base.path", "pickled weights are refused"),
    ({"base": {"path": "/etc"}}, "base.path", "does not exist below the configured data_roots"),
    ({"base": {"hub_id": "a b"}}, "base.hub_id", "is not a hub id"),
    ({"objective": None}, "objective", "is required"),
    ({"objective": "casual_lm"}, "objective", "did you mean causal_lm?"),
    ({"objective": "causal_lm"}, "objective", "causal_lm cannot be trained on family encoder"),
    ({"base": {"model": "lm"}}, "objective", "sequence_classification cannot be trained on family decoder"),
    ({"family": "decoder"}, "family", "is decoder, but the base is of family encoder"),
    ({"data": None}, "data", "is required"),
    ({"data": {}}, "data.train", "is required"),
    ({"data": {"train": "/etc/passwd"}}, "data.train", "does not exist below"),
    ({"data": {"train": "../outside.csv"}}, "data.train", "does not exist below"),
    ({"data": {"train": "link.csv"}}, "data.train", "does not exist below"),
    ({"data": {"train": "base"}}, "data.train", "is not a file"),
    ({"data": {"train": "base/config.json"}}, "data.train", "must end in .csv, .jsonl, .parquet"),
    ({"data": {"train": "dataset://abc"}}, "data.train", "64 lower-case hexadecimal digits"),
    ({"data": {"train": "rows.csv", "validation_fraction": 0.6}}, "data.validation_fraction", "0 to 0.5"),
    ({"data": {"train": "rows.csv", "label_column": "text"}}, "data", "must differ"),
    ({"data": {"train": "rows.csv", "text_column": 3}}, "data.text_column", "must be text, not a number"),
    ({"epochs": 0}, "epochs", "is 0; allowed: above 0, up to 1000"),
    ({"epochs": "3"}, "epochs", "must be a number (above 0, up to 1000), not text"),
    ({"epochs": float("nan")}, "epochs", "is nan"),
    ({"max_steps": 0}, "max_steps", "is 0"),
    ({"batch_size": 5000}, "batch_size", "is 5000; allowed: 1 to 4096"),
    ({"batch_size": 1.5}, "batch_size", "must be a whole number"),
    ({"batch_size": True}, "batch_size", "not a truth value"),
    ({"max_len": 600}, "max_len", "is 600; allowed: 8 to 512"),
    ({"learning_rate": 0}, "learning_rate", "above 0, up to 1"),
    ({"learning_rate": "fast"}, "learning_rate", "must be a number"),
    ({"weight_decay": 2}, "weight_decay", "0 to 1"),
    ({"warmup_fraction": -0.1}, "warmup_fraction", "is -0.1"),
    ({"dropout": 1}, "dropout", "0, below 1"),
    ({"label_smoothing": 1}, "label_smoothing", "below 1"),
    ({"seed": -1}, "seed", "is -1"),
    ({"checkpoint_interval": "soon"}, "checkpoint_interval", "is not a duration such as 300s"),
    ({"time_limit": "0s"}, "time_limit", "is 0 seconds"),
    ({"time_limit": "5s", "time_limit_s": 5}, "time_limit", "must not be given together with time_limit_s"),
    ({"golden": "real"}, "golden", "is not one of synthetic, data"),
    ({"golden": "data", "data": {"train": "rows.csv", "validation_fraction": 0}}, "golden", "needs validation rows"),
    ({"publish_dtype": "float16"}, "publish_dtype", "is not one of float32, bfloat16"),
    ({"lora": {"rank": 0}}, "lora.rank", "is 0; allowed: 1 to 256"),
    ({"lora": {"alpha": 0}}, "lora.alpha", "above 0"),
    ({"lora": {"dropout": 1}}, "lora.dropout", "below 1"),
]


@pytest.mark.parametrize(("fields", "field", "said"), REFUSED)
def test_wrong_fields_are_told_with_limit_and_value(
    places: Places, fields: dict[str, Any], field: str, said: str
) -> None:
    with pytest.raises(SpecRefused) as refusal:
        resolve(tree(**fields), places)
    told = {item.field: item.description for item in refusal.value.violations}
    assert said in told[field]
    assert refusal.value.kind == "InvalidRequest"


def test_all_wrong_fields_are_told_at_once(places: Places) -> None:
    with pytest.raises(SpecRefused) as refusal:
        resolve(tree(epochs=-1, seed="x", wrong=1, base={"model": "gone"}), places)
    assert {item.field for item in refusal.value.violations} == {"epochs", "seed", "wrong", "base.model"}
    assert refusal.value.kind == "InvalidRequest"  # repairing only the base would not help


@pytest.mark.parametrize("value", [None, [], "text", 3])
def test_a_spec_that_is_no_mapping_is_refused(places: Places, value: object) -> None:
    with pytest.raises(SpecRefused):
        resolve(value, places)


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"base": {"model": "gone"}}, "ModelNotFound"),
        ({"base": {"model": "mini@9"}}, "ModelNotFound"),
        ({"data": {"train": "dataset://" + "0" * 64}}, "DatasetNotFound"),
    ],
)
def test_what_is_not_there_is_not_found(places: Places, fields: dict[str, Any], kind: str) -> None:
    with pytest.raises(SpecRefused) as refusal:
        resolve(tree(**fields), places)
    assert refusal.value.kind == kind


def test_paths_are_refused_without_roots(places: Places) -> None:
    bare = Places(repository=places.repository, data_roots=(), dataset_dir=places.dataset_dir)
    with pytest.raises(SpecRefused, match="no data_roots are configured"):
        resolve(tree(data={"train": "rows.csv"}), bare)


def test_the_program_answers_in_json_and_never_imports_torch(places: Places) -> None:
    code = (
        "import runpy, sys; runpy.run_module('shoal_training.resolve', run_name='__main__');"
        "sys.exit(any(name in sys.modules for name in ('torch', 'transformers', 'numpy', 'yaml')))"
    )

    def ask(spec: dict[str, Any]) -> dict[str, Any]:
        request = {
            "spec": spec,
            "repository": str(places.repository),
            "data_roots": [str(root) for root in places.data_roots],
            "dataset_dir": str(places.dataset_dir),
        }
        done = subprocess.run(
            [sys.executable, "-c", code], input=json.dumps(request).encode(), capture_output=True, check=True
        )
        return json.loads(done.stdout)

    assert ask(tree())["spec"] == resolve(tree(), places).to_tree()
    assert ask(tree(epochs=-1)) == {
        "violations": [{"field": "epochs", "description": "is -1; allowed: above 0, up to 1000"}],
        "kind": "InvalidRequest",
    }


def test_the_table_is_what_the_registries_hold() -> None:
    from shoal_training.families import FAMILIES
    from shoal_training.objectives import OBJECTIVES

    assert tuple(FAMILIES) == compatibility.FAMILIES
    assert tuple(OBJECTIVES) == compatibility.OBJECTIVES
    assert all(family in FAMILIES and objective in OBJECTIVES for family, objective in compatibility.TABLE)


def test_the_table_prints_itself() -> None:
    lines = compatibility.as_markdown().splitlines()
    assert lines[0] == "| family | objective | full | lora |"
    assert "| encoder | sequence_classification | yes | yes |" in lines
    assert "| decoder | sequence_classification | - | - |" in lines
    assert len(lines) == 2 + len(compatibility.FAMILIES) * len(compatibility.OBJECTIVES)


@pytest.mark.parametrize("text", ["- a\n", "a: [", "3"])
def test_yaml_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(text)
    with pytest.raises(SpecFileError, match=r"spec\.yaml"):
        load_yaml(path)


def test_yaml_is_the_same_tree(places: Places, tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(
        f"name: topics\nbase: {{model: mini}}\nobjective: sequence_classification\ndata: {{train: 'dataset://{DIGEST}'}}\n"
        "learning_rate: auto\ncheckpoint_interval: 5m\n"
    )
    assert resolve(load_yaml(path), places) == resolve(tree(), places)
