"""`shoal train SPEC --local`: from a YAML file to a version, without a server."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from shoal_models import manifest as manifests
from shoal_training.commands import train_local
from shoal_training.failures import InvalidSpec
from shoal_training.open_base import complete
from shoal_training.places import Places
from shoal_training.resolve import resolve
from shoal_training.spec import Spec
from tiny_jobs import classification_rows, write_csv


@pytest.fixture
def spec_file(tmp_path: Path, bases: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A spec whose data lies beside it, and a current folder elsewhere."""
    specs = tmp_path / "specs"
    specs.mkdir()
    write_csv(specs / "rows.csv", classification_rows(32))
    path = specs / "tiny.yaml"
    path.write_text(
        f"name: tiny\nbase: {{path: {bases['bert']}}}\nobjective: sequence_classification\n"
        "data: {train: rows.csv}\nmax_steps: 3\nbatch_size: 8\nmax_len: 16\n"
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    return path


def test_a_spec_becomes_a_version(spec_file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert train_local([str(spec_file), "--threads", "1", "--json"]) == 0
    out, told = capfd.readouterr()
    assert json.loads(out)["published_version"] == 1
    assert "published tiny@1" in told
    version = Path("models/tiny/1")
    manifests.verify_files(version, manifests.read_manifest(version))
    assert len(list(Path(".shoal/local").iterdir())) == 1


def test_bad_rows_end_with_their_line_numbers(spec_file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_csv(spec_file.parent / "rows.csv", [("x", "a"), ("the secret", "")])
    assert train_local([str(spec_file), "--threads", "1"]) == 65
    told = capfd.readouterr().err
    assert "BAD_DATA: train: 1 bad rows: line 3: label is missing" in told
    assert "secret" not in told


def test_a_wrong_field_is_told_before_anything_is_made(spec_file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    spec_file.write_text(spec_file.read_text() + "epoch: 3\n")
    assert train_local([str(spec_file)]) == 64
    assert "epoch: unknown field; did you mean epochs?" in capfd.readouterr().err
    assert not Path(".shoal").exists()


def test_a_dry_run_shows_the_resolved_spec(spec_file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert train_local([str(spec_file), "--dry-run"]) == 0
    tree = json.loads(capfd.readouterr().out)
    assert tree["data"]["train"] == str(spec_file.parent / "rows.csv")
    assert tree["learning_rate"] == 1e-4
    assert not Path(".shoal").exists()


@pytest.fixture
def hub_spec(tmp_path: Path) -> Spec:
    """A spec on a hub base, about which nothing is known yet."""
    write_csv(tmp_path / "rows.csv", [("x", "a")])
    places = Places(repository=tmp_path, data_roots=(tmp_path,), dataset_dir=None)
    tree = {
        "name": "x",
        "base": {"hub_id": "org/name"},
        "objective": "sequence_classification",
        "data": {"train": "rows.csv"},
        "max_len": 64,
    }
    return resolve(tree, places)


def test_a_fetched_base_settles_the_learning_rate(hub_spec: Spec, bases: dict[str, Path]) -> None:
    assert complete(hub_spec, bases["bert"]) == dataclasses.replace(hub_spec, learning_rate=1e-4)
    chosen = dataclasses.replace(hub_spec, learning_rate=0.5)
    assert complete(chosen, bases["bert"]) == chosen


def test_a_fetched_base_that_does_not_fit_is_refused(hub_spec: Spec, bases: dict[str, Path]) -> None:
    with pytest.raises(InvalidSpec, match="family: is encoder, but the base is of family decoder"):
        complete(hub_spec, bases["llama"])
    with pytest.raises(InvalidSpec, match="max_len: is 65; the base takes 64"):
        complete(dataclasses.replace(hub_spec, max_len=65), bases["bert"])
