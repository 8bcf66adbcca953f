"""Small parts of training, each alone: batches, figures, events, failures, progress."""

from __future__ import annotations

import errno
import json
import math
from pathlib import Path

import numpy as np
import pytest
from shoal_training.batches import LengthGroupedBatches, TokenRow, batches_by_length, pad_batch
from shoal_training.evaluate import accuracy_interval, classification_evaluation
from shoal_training.events import EventLog
from shoal_training.failures import BadData, explain
from shoal_training.progress import ProgressReporter
from sklearn.metrics import accuracy_score, f1_score
from sklearn.metrics import log_loss as reference_log_loss


def token_rows(lengths: list[int]) -> list[TokenRow]:
    return [TokenRow(ids=np.arange(1, length + 1, dtype=np.int32)) for length in lengths]


def test_batches_hold_every_row_once_and_alike_lengths_together() -> None:
    chooser = np.random.default_rng(0)
    lengths = [int(length) for length in chooser.integers(3, 120, size=403)]
    batches = LengthGroupedBatches(lengths, 16, seed=1)
    found = list(batches)
    assert len(found) == len(batches) == 26  # ceil(403 / 16)
    assert sorted(index for batch in found for index in batch) == list(range(403))
    padded = sum(max(lengths[index] for index in batch) * len(batch) for batch in found)
    shuffled = chooser.permutation(403).tolist()
    unsorted = [shuffled[start : start + 16] for start in range(0, 403, 16)]
    padded_unsorted = sum(max(lengths[index] for index in batch) * len(batch) for batch in unsorted)
    assert padded < 0.75 * padded_unsorted


def test_order_of_batches_follows_from_seed_and_epoch_alone() -> None:
    lengths = [5, 9, 3, 7] * 20
    first, again, other = (LengthGroupedBatches(lengths, 8, seed) for seed in (1, 1, 2))
    orders = []
    for epoch in range(3):
        first.epoch = again.epoch = epoch
        orders.append(list(first))
        assert orders[-1] == list(again) == list(again)
    assert orders[0] != orders[1] != orders[2]
    assert list(other) != orders[0]


def test_evaluation_batches_stay_within_the_token_budget() -> None:
    rows = token_rows([30, 3, 3, 3, 10, 10, 2])
    found = list(batches_by_length(rows, 20))
    assert found == [[0], [4, 5], [1, 2, 3, 6]]


def test_padding_is_on_the_right_and_masked() -> None:
    batch = pad_batch(token_rows([1, 3]), pad_id=9)
    assert batch["input_ids"].tolist() == [[1, 9, 9], [1, 2, 3]]
    assert batch["attention_mask"].tolist() == [[1, 0, 0], [1, 1, 1]]


def test_figures_are_those_of_scikit_learn() -> None:
    chooser = np.random.default_rng(3)
    logits = chooser.normal(size=(200, 4)).astype(np.float32)
    labels = chooser.integers(0, 3, size=200)  # the fourth label never occurs, but is predicted
    evaluation = classification_evaluation(logits, labels, ("a", "b", "c", "d"))
    predicted = logits.argmax(1)
    probabilities = np.exp(logits.astype(np.float64))
    probabilities /= probabilities.sum(1, keepdims=True)
    metrics = evaluation.metrics
    assert metrics["accuracy"] == accuracy_score(labels, predicted)
    assert metrics["f1_macro"] == pytest.approx(f1_score(labels, predicted, average="macro"))
    assert metrics["loss"] == pytest.approx(reference_log_loss(labels, probabilities, labels=[0, 1, 2, 3]))
    assert evaluation.report["confusion"][0][1] == int(((labels == 0) & (predicted == 1)).sum())
    assert evaluation.score == (round(metrics["f1_macro"], 6), -metrics["loss"])


def test_accuracy_interval_is_that_of_a_binomial() -> None:
    """80 of 100 right: the standard error is sqrt(0.8 * 0.2 / 100) = 0.04, so about 0.8 -+ 1.96 * 0.04."""
    low, high = accuracy_interval(np.arange(100) < 80)
    assert low == pytest.approx(0.8 - 0.0784, abs=0.012)
    assert high == pytest.approx(0.8 + 0.0784, abs=0.012)
    assert accuracy_interval(np.ones(10, dtype=bool)) == (1.0, 1.0)


def test_a_torn_event_is_cut_off_before_the_next(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    first = EventLog(path)
    first.state("running")
    first.close()
    with path.open("a") as file:
        file.write('{"kind": "prog')
    second = EventLog(path)
    second.progress(step=1.0, loss=math.nan)
    second.close()
    events = [json.loads(line) for line in path.read_text().splitlines()]
    assert [event["kind"] for event in events] == ["state", "progress"]
    assert events[1]["progress"] == {"step": 1.0}  # JSON has no word for NaN


def caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def raised(error: Exception) -> Exception:
    try:
        raise error
    except Exception as caught:
        return caught


@pytest.mark.parametrize(
    ("error", "reason", "code"),
    [
        (BadData("line 3"), "bad_data", 65),
        (OSError(errno.ENOSPC, "No space left on device", "x"), "storage", 1),
        (OSError(errno.EROFS, "Read-only file system", "x"), "storage", 1),
        (caused(RuntimeError("write failed"), OSError(errno.ENOSPC, "No space left")), "storage", 1),
        (RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 1 vs 2"), "storage", 1),
        (ValueError("I/O error: No space left on device (os error 28)"), "storage", 1),
        (MemoryError(), "out_of_memory", 1),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "out_of_memory", 1),
        (RuntimeError("CUDA out of memory. Tried to allocate"), "out_of_memory", 1),
        (KeyError("a secret row"), "internal", 1),
        (FileNotFoundError(errno.ENOENT, "No such file", "secret"), "internal", 1),
    ],
)
def test_exceptions_become_reasons_without_their_text(error: Exception, reason: str, code: int) -> None:
    failure = explain(raised(error))
    assert (failure.reason, failure.exit_code) == (reason, code)
    assert "secret" not in failure.message


def test_progress_comes_four_times_a_second_and_at_the_end(tmp_path: Path) -> None:
    """100 steps of 1/16 s: the first, then every fourth (0.25 s), and the last."""
    now_s = 0.0
    events = EventLog(tmp_path / "events.jsonl")
    reporter = ProgressReporter(events, 100, 0, clock=lambda: now_s)
    for step in range(1, 101):
        now_s = round(now_s + 0.0625, 6)
        reporter.add_loss(float(step))
        reporter.step(step, step / 100, 1e-4)
    told = [json.loads(line)["progress"] for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert [figures["step"] for figures in told] == [*range(1, 101, 4), 100]
    assert told[1]["loss"] == 3.5  # mean of the losses 2 to 5
    assert told[1]["time_left_s"] == pytest.approx(0.0625 * 95, abs=1e-3)
    assert told[-1]["time_left_s"] == 0
