"""Reading training specs, with every mistake named, and writing them back."""

from __future__ import annotations

import pytest
from shoal import InvalidRequestError
from shoal.spec import parse_duration_s, parse_spec, spec_tree
from shoal.v1 import train_pb2

WHOLE = {
    "name": "bbc",
    "base": {"model": "minilm@2"},
    "family": "encoder",
    "objective": "sequence_classification",
    "lora": {"rank": 8, "alpha": 16.0, "dropout": 0.05},
    "data": {"train": "news.csv", "validation_fraction": 0.25, "label_column": "topic"},
    "epochs": 2.0,
    "max_steps": 100,
    "learning_rate": 2e-5,
    "checkpoint_interval": "300s",
    "time_limit": "5400s",
    "golden": "data",
    "publish_dtype": "bfloat16",
}


def violations(tree: dict[str, object]) -> dict[str, str]:
    with pytest.raises(InvalidRequestError) as caught:
        parse_spec(tree)
    return {violation.field: violation.description for violation in caught.value.violations}


def test_a_whole_spec_is_read_and_written_back_the_same() -> None:
    spec = parse_spec(WHOLE)
    assert spec.objective == train_pb2.OBJECTIVE_SEQUENCE_CLASSIFICATION
    assert spec.WhichOneof("method") == "lora"
    assert (spec.checkpoint_interval.seconds, spec.time_limit.seconds) == (300, 5400)
    assert spec_tree(spec) == WHOLE


def test_values_as_yaml_gives_them_are_understood() -> None:
    """YAML reads `2e-5` as text, `epochs: 3` as a whole number and `full:` as null."""
    spec = parse_spec(
        {"learning_rate": "2e-5", "epochs": 3, "full": None, "max_steps": 10.0, "time_limit": "1h30m", "max_len": None}
    )
    assert (spec.learning_rate, spec.epochs, spec.max_steps) == (2e-5, 3.0, 10)
    assert spec.HasField("full")
    assert not spec.HasField("max_len")
    assert spec.time_limit.seconds == 5400


def test_zero_is_not_unset() -> None:
    spec = parse_spec({"early_stopping_patience": 0, "weight_decay": 0, "data": {"validation_fraction": 0}})
    assert spec_tree(spec) == {"early_stopping_patience": 0, "weight_decay": 0.0, "data": {"validation_fraction": 0.0}}


def test_an_unknown_field_names_the_nearest() -> None:
    found = violations({"epoch": 3, "data": {"trian": "x"}, "zzz": 1})
    assert found["epoch"] == "is no field; did you mean epochs?"
    assert found["data.trian"] == "is no field; did you mean train?"
    assert "there are name, base" in found["zzz"]


def test_all_mistakes_are_named_at_once() -> None:
    found = violations(
        {
            "objective": "classification",
            "epochs": "many",
            "max_steps": 1.5,
            "batch_size": -1,
            "seed": True,
            "name": 7,
            "base": "minilm",
            "time_limit": "soon",
            "lora": {"rank": 2**40},
        }
    )
    assert set(found) == {
        "objective",
        "epochs",
        "max_steps",
        "batch_size",
        "seed",
        "name",
        "base",
        "time_limit",
        "lora.rank",
    }
    assert found["objective"] == (
        "is 'classification'; allowed are sequence_classification, causal_lm; did you mean sequence_classification?"
    )
    assert found["base"] == "is 'minilm'; must hold fields: model, path, hub_id"
    assert "300s" in found["time_limit"]
    assert found["batch_size"] == "is -1; must be a whole number from 0 to 4294967295"


def test_two_methods_at_once_are_refused() -> None:
    assert violations({"full": {}, "lora": {}})["lora"] == "give only one of full, lora"
    assert "base.path" in violations({"base": {"model": "a", "path": "b"}})


@pytest.mark.parametrize(
    ("value", "seconds"),
    [(300, 300.0), (0.5, 0.5), ("300s", 300.0), ("250ms", 0.25), ("1d2h", 93_600.0), (" 90 ", 90.0)],
)
def test_durations(value: object, seconds: float) -> None:
    assert parse_duration_s(value) == pytest.approx(seconds)


@pytest.mark.parametrize("value", ["", "s", "5 parsecs", "1h30", -1, "-5s", True, None, "nan", float("inf"), [1]])
def test_what_is_no_duration(value: object) -> None:
    with pytest.raises(ValueError, match="must be seconds"):
        parse_duration_s(value)
