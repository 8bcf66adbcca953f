"""A job that was stopped or killed and started again ends with bit for bit the weights of an undisturbed one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from shoal_training.guard import Guard
from shoal_training.run import run
from tiny_jobs import JobFolder, MakeJob, classification_rows, write_csv

pytestmark = pytest.mark.usefixtures("one_thread")
METHODS = [{"full": {}}, {"lora": {"rank": 4, "dropout": 0.1}}]
EVERY_STEP = 1e-6  # seconds between checkpoints


class StoppingGuard(Guard):
    """Is asked to stop at its n-th look."""

    def __init__(self, looks: int) -> None:
        super().__init__()
        self._looks = looks

    def check_time(self) -> None:
        self._looks -= 1
        if self._looks <= 0:
            self.request_stop()
        super().check_time()


def weights(job: JobFolder) -> dict[str, torch.Tensor]:
    return load_file(job.version() / "model.safetensors")


def assert_same_end(job: JobFolder, undisturbed: JobFolder) -> None:
    """Same weights bit for bit, same evaluations, same losses."""
    expected, found = weights(undisturbed), weights(job)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
    assert job.result()["metrics"] == undisturbed.result()["metrics"]


def run_to_end(job: JobFolder, guards: Iterator[Guard]) -> int:
    """Start the job again and again; returns how often it was stopped."""
    stops = 0
    while (code := run(job.path, next(guards))) == 75:
        stops += 1
        assert stops < 100
        assert not (job.path / "result.json").exists()
    assert code == 0, job.result()
    return stops


@pytest.mark.parametrize("method", METHODS, ids=["full", "lora"])
@pytest.mark.parametrize("looks", [12, 23])
def test_stopping_again_and_again_changes_nothing(make_job: MakeJob, method: dict[str, Any], looks: int) -> None:
    """Dropout on, 6 steps an epoch: stops fall into steps, ends of epochs and evaluations alike."""
    fields = {"epochs": 3, "dropout": 0.2, "label_smoothing": 0.1, **method}
    undisturbed = make_job(folder="undisturbed", repository=None, **fields)
    assert run(undisturbed.path) == 0
    job = make_job(folder="stopped", **(fields | {"name": "stopped"}))
    share_digest(job, undisturbed)

    def guards() -> Iterator[Guard]:
        for extra in range(100):
            yield StoppingGuard(looks + extra % 5)

    stops = run_to_end(job, guards())
    assert stops >= 1
    assert_same_end(job, undisturbed)


def share_digest(job: JobFolder, other: JobFolder) -> None:
    """Both jobs learn from the same file and the same base; only their names differ."""
    specs = [json.loads((folder.path / "job.json").read_text())["spec"] for folder in (job, other)]
    assert [spec.pop("name") for spec in specs] == ["stopped", "tiny"]
    assert specs[0] == specs[1]


class _AtFirstEvaluation(Guard):
    """Is asked to stop in the middle of the first evaluation: after four looks of preparation comes the fifth."""

    looks = 0

    def check(self) -> None:
        self.looks += 1
        if self.looks == 5:
            self.request_stop()
        super().check()


def test_a_stop_during_an_evaluation_makes_it_up_after_the_restart(make_job: MakeJob) -> None:
    fields = {"epochs": 3, "dropout": 0.2}
    undisturbed = make_job(folder="undisturbed", **fields)
    assert run(undisturbed.path) == 0
    job = make_job(folder="stopped", **(fields | {"name": "stopped"}))
    assert run(job.path, _AtFirstEvaluation()) == 75
    assert job.events("evaluation") == []
    assert [event["step"] for event in job.events("checkpoint")] == [6]
    assert run(job.path) == 0
    assert [event["step"] for event in job.events("evaluation")][:3] == [6, 12, 18]
    assert_same_end(job, undisturbed)


@pytest.fixture
def stopped(make_job: MakeJob) -> JobFolder:
    """A job that was stopped with a few checkpoints."""
    job = make_job(folder="stopped", name="stopped", epochs=3, checkpoint_interval_s=EVERY_STEP)
    assert run(job.path, StoppingGuard(14)) == 75
    assert len(checkpoints(job)) == 2
    return job


def checkpoints(job: JobFolder) -> list[Path]:
    """Newest first."""
    return sorted((job.path / "ckpt").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]), reverse=True)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "no marker", "file gone"])
def test_a_damaged_newest_checkpoint_is_skipped(stopped: JobFolder, make_job: MakeJob, damage: str) -> None:
    newest, older = checkpoints(stopped)
    target = newest / "optimizer.pt"
    data = target.read_bytes()
    if damage == "truncated":
        target.write_bytes(data[: len(data) // 2])
    elif damage == "flipped":
        target.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])
    elif damage == "no marker":
        (newest / "complete.json").unlink()
    else:
        (newest / "weights.safetensors").unlink()
    first_line = len(stopped.events())
    assert run(stopped.path) == 0
    resumed_at = next(event for event in stopped.events()[first_line:] if event["kind"] == "progress")
    assert resumed_at["progress"]["step"] == int(older.name.split("-")[1]) + 1
    undisturbed = make_job(folder="undisturbed", name="tiny", epochs=3, checkpoint_interval_s=EVERY_STEP)
    assert run(undisturbed.path) == 0
    assert_same_end(stopped, undisturbed)


def test_without_a_valid_checkpoint_the_job_begins_anew(stopped: JobFolder) -> None:
    for folder in checkpoints(stopped):
        (folder / "complete.json").write_text("{")
    first_line = len(stopped.events())
    assert run(stopped.path) == 0
    steps = [event["progress"]["step"] for event in stopped.events()[first_line:] if event["kind"] == "progress"]
    assert steps[0] == 1


def test_resume_is_refused_when_data_changed(stopped: JobFolder, tmp_path: Path) -> None:
    write_csv(tmp_path / "train.csv", classification_rows(64, seed=1))
    assert run(stopped.path) == 65
    assert stopped.result()["failure_reason"] == "bad_data"
    assert "data changed since the checkpoint" in stopped.result()["failure_message"]


def test_resume_is_refused_when_the_spec_changed(stopped: JobFolder) -> None:
    order = json.loads((stopped.path / "job.json").read_text())
    order["spec"]["weight_decay"] = 0.5
    (stopped.path / "job.json").write_text(json.dumps(order))
    assert run(stopped.path) == 64
    assert stopped.result()["failure_reason"] == "invalid_spec"


def test_time_of_earlier_attempts_counts_against_the_limit(make_job: MakeJob) -> None:
    """Each attempt has a clock that stands 10 s further at each look; together they pass the limit of 400 s."""

    def ticking() -> Callable[[], float]:
        now_s = 0.0

        def clock() -> float:
            nonlocal now_s
            now_s += 10.0
            return now_s

        return clock

    job = make_job(epochs=50, time_limit="400s", checkpoint_interval_s=EVERY_STEP)
    assert run(job.path, _StopAfter(ticking(), 250.0)) == 75
    assert run(job.path, Guard(ticking())) == 1
    assert job.result()["failure_reason"] == "timeout"
    steps = [event["progress"]["step"] for event in job.events("progress")]
    assert max(steps) < 40  # one attempt alone would have come further


class _StopAfter(Guard):
    """Is asked to stop when the job has taken so many seconds."""

    def __init__(self, clock: Callable[[], float], limit_s: float) -> None:
        super().__init__(clock)
        self._stop_s = limit_s

    def check_time(self) -> None:
        super().check_time()
        if self.spent_s > self._stop_s:
            self.request_stop()


def start(job: JobFolder) -> subprocess.Popen[bytes]:
    with (job.path / "log.txt").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "shoal_training.run", str(job.path)],
            stdout=log,
            stderr=log,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )


def wait_for_checkpoint(job: JobFolder, process: subprocess.Popen[bytes], step: int) -> None:
    limit = time.monotonic() + 90
    events = job.path / "events.jsonl"
    while not (events.exists() and any(event["step"] >= step for event in complete_events(events))):
        assert process.poll() is None, (job.path / "log.txt").read_text()
        assert time.monotonic() < limit
        time.sleep(0.01)


def complete_events(path: Path) -> list[dict[str, Any]]:
    lines = path.read_bytes().split(b"\n")[:-1]
    return [event for event in map(json.loads, lines) if event["kind"] == "checkpoint"]


def test_kill_9_then_sigterm_then_the_end_gives_the_same_weights(make_job: MakeJob) -> None:
    """The real program: killed while it saves after every step, started again, asked to stop (75), started again."""
    fields = {"max_steps": 60, "dropout": 0.2, "early_stopping_patience": 0}
    job = make_job(folder="stopped", **(fields | {"name": "stopped", "checkpoint_interval_s": EVERY_STEP}))
    process = start(job)
    wait_for_checkpoint(job, process, 5)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    killed_at = max(event["step"] for event in complete_events(job.path / "events.jsonl"))
    process = start(job)
    wait_for_checkpoint(job, process, killed_at + 5)
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 75
    stopped_at = max(event["step"] for event in complete_events(job.path / "events.jsonl"))
    assert killed_at < stopped_at < 60
    assert f"checkpoint-{stopped_at}" in {path.name for path in checkpoints(job)}
    assert not (job.path / "result.json").exists()
    assert run(job.path) == 0
    undisturbed = make_job(folder="undisturbed", **fields)
    assert run(undisturbed.path) == 0
    assert_same_end(job, undisturbed)
