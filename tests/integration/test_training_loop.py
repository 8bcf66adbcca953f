"""The loop through the Train service: upload, train, publish, hot-load, classify; and its faults."""

from __future__ import annotations

import csv
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from harness import tiny
from harness.server import ServerProcess
from shoal import AlreadyExistsError, Client, InvalidRequestError, NotFoundError, TrainingJob

SECRET = "zebra-row-content"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, tiny_repository: Path) -> Iterator[ServerProcess]:
    with ServerProcess(
        tmp_path_factory.mktemp("server"), tiny_repository, {"train": {"max_running_jobs": 2}}
    ) as running:
        running.wait_live("bert", 1)
        yield running


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows whose label is told by their first word."""
    rng = random.Random(1)
    path = tmp_path_factory.mktemp("data") / "rows.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        for _ in range(240):
            first = rng.choice(["rain", "coffee", "markets"])
            writer.writerow([f"{first} {first} {tiny.text(rng, 4)}", first])
    return path


def spec(client: Client, rows: Path, **changes: Any) -> dict[str, Any]:
    return {
        "name": "words",
        "base": {"model": "bert"},
        "objective": "sequence_classification",
        "data": {"train": client.upload_dataset(rows).name},
        "epochs": 4,
        "max_len": 32,
        "learning_rate": 3e-3,
        **changes,
    }


def wait_ended(client: Client, job_id: str, limit_s: float = 120.0) -> TrainingJob:
    limit = time.monotonic() + limit_s
    while not (job := client.get_training_job(job_id)).ended:
        assert time.monotonic() < limit, job
        time.sleep(0.1)
    return job


def trainer_of(server: ServerProcess, job_id: str) -> psutil.Process:
    limit = time.monotonic() + 30
    while time.monotonic() < limit:
        for process in psutil.process_iter(["cmdline"]):
            line = " ".join(process.info["cmdline"] or [])
            if "shoal_training.run" in line and job_id in line:
                return process
        time.sleep(0.05)
    raise AssertionError("no trainer process")


def wait_for_checkpoint(client: Client, job_id: str) -> None:
    limit = time.monotonic() + 60
    for event in client.watch_training_job(job_id):
        if type(event.event).__name__ == "CheckpointSaved":
            return
        assert time.monotonic() < limit
    raise AssertionError("the job ended without a checkpoint")


def test_a_job_trains_publishes_and_is_hot_loaded(server: ServerProcess, data: Path) -> None:
    with server.client() as client:
        job = client.create_training_job(spec(client, data))
        events = list(client.watch_training_job(job.id))
        ended = client.get_training_job(job.id)
        assert ended.state == "succeeded", ended.failure
        server.wait_live("words", ended.published_version)
        reply = client.classify("words", ["rain rain the fox", "coffee coffee on green hills"])
        assert [result.label for result in reply.results] == ["rain", "coffee"]
        assert client.get_model("words").versions[0].job_id == job.id
        assert list(client.watch_training_job(job.id, from_sequence=5)) == events[4:]
    kinds = [type(event.event).__name__ for event in events]
    assert [event.sequence for event in events] == list(range(1, len(events) + 1))
    assert {"StateChanged", "JobProgress", "Evaluation", "VersionPublished"} <= set(kinds)
    states = [event.event.state for event in events if type(event.event).__name__ == "StateChanged"]  # type: ignore[union-attr]
    assert states[-1] == "succeeded"
    assert ended.metrics["accuracy"] > 0.8


def test_create_is_idempotent_by_request_id(server: ServerProcess, data: Path) -> None:
    with server.client() as client:
        first = client.create_training_job(spec(client, data, name="twice", max_steps=1), request_id="same-id")
        again = client.create_training_job(spec(client, data, name="twice", max_steps=1), request_id="same-id")
        assert again.id == first.id
        with pytest.raises(AlreadyExistsError):
            client.create_training_job(spec(client, data, name="other", max_steps=1), request_id="same-id")
        wait_ended(client, first.id)


def test_a_dry_run_shows_every_default(server: ServerProcess, data: Path) -> None:
    with server.client() as client:
        before = len(list(client.list_training_jobs()))
        resolved = client.create_training_job(spec(client, data), validate_only=True).spec
        assert len(list(client.list_training_jobs())) == before
    assert resolved.batch_size == 16
    assert resolved.seed == 42
    assert resolved.warmup_fraction == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"epochs": -1}, "epochs"),
        ({"batch_size": 0}, "batch_size"),
        ({"objective": "causal_lm"}, "objective"),
        ({"name": "../escape"}, "name"),
        ({"data": {"train": "/etc/passwd"}}, "data.train"),
    ],
    ids=["epochs", "batch size", "objective against family", "name", "path outside the roots"],
)
def test_a_bad_spec_is_refused_at_submit(
    server: ServerProcess, data: Path, changes: dict[str, Any], field: str
) -> None:
    with server.client() as client, pytest.raises(InvalidRequestError) as caught:
        client.create_training_job(spec(client, data, **changes))
    assert any(field in violation.field for violation in caught.value.violations), caught.value.violations


def test_an_absent_dataset_or_base_is_not_found(server: ServerProcess, data: Path) -> None:
    with server.client() as client:
        for changes in ({"data": {"train": f"dataset://{'0' * 64}"}}, {"base": {"model": "nobody"}}):
            with pytest.raises(NotFoundError):
                client.create_training_job(spec(client, data, **changes))


def test_bad_rows_fail_with_line_numbers_and_show_nothing(server: ServerProcess, tmp_path: Path) -> None:
    rows = ["text,label", *["rain falls,rain"] * 40, f"{SECRET},", ",coffee", "markets rise,markets"]
    path = tmp_path / "bad.csv"
    path.write_text("\n".join(rows) + "\n")
    with server.client() as client:
        job = wait_ended(client, client.create_training_job(spec(client, path)).id)
        events = [repr(event) for event in client.watch_training_job(job.id)]
    assert job.state == "failed"
    assert job.failure is not None
    assert job.failure.reason == "bad_data"
    assert "42" in job.failure.message
    assert "43" in job.failure.message
    assert SECRET not in "".join(events)
    assert SECRET not in server.log()


def test_a_killed_trainer_resumes_from_its_checkpoint(server: ServerProcess, data: Path) -> None:
    with server.client() as client:
        job = client.create_training_job(
            spec(client, data, name="killed", epochs=60, early_stopping_patience=0, checkpoint_interval="0.3s")
        )
        wait_for_checkpoint(client, job.id)
        trainer_of(server, job.id).kill()
        ended = wait_ended(client, job.id)
        assert ended.state == "succeeded", ended.failure
        assert ended.num_attempts == 2
        states = [e.event.state for e in client.watch_training_job(job.id) if type(e.event).__name__ == "StateChanged"]  # type: ignore[union-attr]
    assert "interrupted" in states


def test_a_cancelled_job_ends_and_its_process_with_it(server: ServerProcess, data: Path) -> None:
    with server.client() as client:
        job = client.create_training_job(spec(client, data, name="cancelled", epochs=500, early_stopping_patience=0))
        process = trainer_of(server, job.id)
        client.cancel_training_job(job.id)
        assert wait_ended(client, job.id).state == "cancelled"
        psutil.wait_procs([process], timeout=20)
        assert not process.is_running() or process.status() == "zombie"
        client.delete_training_job(job.id)
        with pytest.raises(NotFoundError):
            client.get_training_job(job.id)


def test_a_job_survives_a_restart_of_the_server(server: ServerProcess, data: Path) -> None:
    with server.client() as client:
        job = client.create_training_job(
            spec(client, data, name="survivor", epochs=100, early_stopping_patience=0, checkpoint_interval="0.5s")
        )
        wait_for_checkpoint(client, job.id)
    process = trainer_of(server, job.id)
    server.stop()
    server.start()
    with server.client() as client:
        ended = wait_ended(client, job.id)
        assert ended.state == "succeeded", ended.failure
        sequences = [event.sequence for event in client.watch_training_job(job.id)]
        assert sequences == list(range(1, len(sequences) + 1))
        server.wait_live("survivor", ended.published_version)
    assert not process.is_running() or process.status() == "zombie"
