"""Jobs with a small trainer of our own: a script that writes what it is told to into its job folder."""

from __future__ import annotations

import asyncio
import errno
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from shoal_server.control.jobs.calls import JobCalls, base_of, datasets_of
from shoal_server.control.jobs.launchers.local import LocalLauncher, RunningTrainer, is_alive
from shoal_server.control.jobs.resolve import Resolver
from shoal_server.control.jobs.store import JobStore
from shoal_server.control.jobs.supervisor import JobSettings, Supervisor
from shoal_server.errors import (
    AlreadyExists,
    DatasetNotFound,
    InternalFault,
    InvalidRequest,
    JobNotCancellable,
    JobNotFound,
    JobRunning,
    Precondition,
    TooManyJobs,
)
from shoal_server.ipc.calls import CancelJob, CreateJob, DeleteJob, GetJob, JobEvent, JobStatus, ListJobs, WatchJob

# A trainer that follows spec["script"]: a list of [word, argument].
TRAINER = """
import json, os, signal, sys, time
folder = sys.argv[1]
job = json.load(open(folder + "/job.json"))
def write(**event):
    with open(folder + "/events.jsonl", "a") as file:
        file.write(json.dumps({"time_s": time.time(), **event}) + "\\n")
for word, argument in job["spec"]["script"]:
    if word == "event":
        write(**argument)
    elif word == "raw":
        open(folder + "/events.jsonl", "a").write(argument)
    elif word == "wait":
        while not os.path.exists(folder + "/" + argument):
            time.sleep(0.01)
    elif word == "ignore_term":
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        write(kind="warning", message="deaf")
    elif word == "stop_on_term":
        signal.signal(signal.SIGTERM, lambda *_: os._exit(75))
        write(kind="warning", message="listening")
    elif word == "die_first":
        if job["attempt"] <= argument:
            os.kill(os.getpid(), signal.SIGKILL)
    elif word == "result":
        json.dump(argument, open(folder + "/result.json", "w"))
    elif word == "nice":
        write(kind="warning", message=f"{os.nice(0)} {os.getsid(0) == os.getpid()} {os.environ['OMP_NUM_THREADS']}")
    elif word == "exit":
        sys.exit(argument)
"""

# Adds a default, refuses what it is told to refuse.
RESOLVER = """
import json, sys
request = json.load(sys.stdin)
spec = request["spec"]
if spec.get("name") == "crash":
    sys.exit("broken")
if spec.get("name") == "slow":
    import time; time.sleep(0.3)
if "refuse" in spec:
    print(json.dumps({"violations": [{"field": "name", "description": "bad"}], "kind": spec["refuse"]}))
else:
    print(json.dumps({"spec": {"epochs": 5, "seen": request["dataset_dir"], **spec}}))
"""

SUCCESS = ["result", {"state": "succeeded", "metrics": {"accuracy": 0.9}, "published_version": 3}]


def state(word: str) -> list[Any]:
    return ["event", {"kind": "state", "state": word}]


class Bench:
    """A supervisor in a folder, with clock and published versions at hand."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.folder = folder
        self.now_s = 1000.0
        self.published: list[tuple[str, int]] = []
        (folder / "trainer.py").write_text(TRAINER)
        (folder / "resolver.py").write_text(RESOLVER)
        self.settings = JobSettings(
            **{
                "jobs_dir": folder / "jobs",
                "repository": str(folder / "models"),
                "dataset_dir": str(folder / "datasets"),
                "data_roots": (),
                "max_running_jobs": 1,
                "max_attempts": 3,
                "num_threads": 1,
                "stop_grace_s": 0.2,
                **changes,
            }
        )
        self.settings.jobs_dir.mkdir(exist_ok=True)
        self.open()

    def open(self) -> None:
        """As a server does when it starts."""
        self.store = JobStore(self.folder / "jobs.sqlite")
        self.supervisor = Supervisor(
            self.settings,
            self.store,
            LocalLauncher([sys.executable, str(self.folder / "trainer.py")]),
            on_published=lambda model, version: self.published.append((model, version)),
            now_s=lambda: self.now_s,
        )
        self.calls = JobCalls(
            self.supervisor,
            Resolver(
                repository="",
                data_roots=(),
                dataset_dir="here",
                command=[sys.executable, str(self.folder / "resolver.py")],
                required_modules=(),
            ),
            max_waiting_jobs=2,
        )

    async def create(self, *script: Any, request_id: str = "r1", **spec: Any) -> JobStatus:
        return await self.calls.create(
            CreateJob(request_id=request_id, spec={"name": "m", "script": script, **spec}, validate_only=False)
        )

    async def until(self, job_id: str, condition: Callable[[JobStatus], bool]) -> JobStatus:
        limit = time.monotonic() + 20
        while not condition(status := self.store.get(job_id).status):
            assert time.monotonic() < limit, status
            self.supervisor.tick()
            await asyncio.sleep(0.01)
        return status

    async def until_state(self, job_id: str, *states: str) -> JobStatus:
        return await self.until(job_id, lambda status: status.state in states)

    async def until_event(self, job_id: str, message: str) -> None:
        await self.until(job_id, lambda _: any(event.message == message for event in self.events(job_id)))

    def events(self, job_id: str) -> list[JobEvent]:
        return self.store.events(job_id, from_sequence=1, limit=1000)

    def states(self, job_id: str) -> list[str]:
        return [event.state for event in self.events(job_id) if event.kind == "state"]


@pytest.fixture
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    made = Bench(tmp_path)
    yield made
    await end(made)


async def end(bench: Bench) -> None:
    """Cancel what runs, so that no process is left."""
    for job_id in bench.supervisor.running_pids():
        await bench.supervisor.cancel(job_id, wait_s=0)
        await bench.until_state(job_id, "cancelled", "succeeded", "failed")
    bench.store.close()


async def test_job_runs_to_success_with_everything_the_trainer_said(bench: Bench) -> None:
    progress = {"step": 5.0, "total_steps": 10.0, "loss": 0.5}
    job = await bench.create(
        state("preparing"),
        state("running"),
        ["event", {"kind": "progress", "progress": progress}],
        ["event", {"kind": "evaluation", "step": 10, "metrics": {"accuracy": 0.8}, "final": True}],
        ["event", {"kind": "published", "model": "m", "version": 3}],
        state("succeeded"),
        SUCCESS,
    )
    assert job.state == "queued"
    assert job.spec["epochs"] == 5
    done = await bench.until_state(job.id, "succeeded")
    assert bench.states(job.id) == ["queued", "validating", "preparing", "running", "succeeded"]
    assert [event.sequence for event in bench.events(job.id)] == list(range(1, 9))
    assert (done.progress, done.metrics, done.published_version) == (progress, {"accuracy": 0.9}, 3)
    assert (done.num_attempts, done.start_time_s, done.end_time_s) == (1, 1000.0, 1000.0)
    assert bench.published == [("m", 3)]


async def test_same_request_id_makes_one_job_and_another_spec_is_refused(bench: Bench) -> None:
    first, second = await asyncio.gather(bench.create(name="slow"), bench.create(name="slow"))
    assert first.id == second.id
    with pytest.raises(AlreadyExists, match="r1"):
        await bench.create(SUCCESS)
    await bench.until_state(first.id, "failed")


async def test_dry_run_resolves_and_queues_nothing(bench: Bench) -> None:
    status = await bench.calls.create(CreateJob(request_id="", spec={"name": "m"}, validate_only=True))
    assert status.spec == {"epochs": 5, "seen": "here", "name": "m"}
    assert bench.store.count_by_state() == {}


@pytest.mark.parametrize(("kind", "cls"), [("InvalidRequest", InvalidRequest), ("DatasetNotFound", DatasetNotFound)])
async def test_resolver_names_the_error(bench: Bench, kind: str, cls: type[Exception]) -> None:
    with pytest.raises(cls, match="name: bad") as caught:
        await bench.create(refuse=kind)
    assert caught.value.violations[0].field == "name"  # type: ignore[attr-defined]


async def test_broken_resolver_is_our_fault(bench: Bench) -> None:
    with pytest.raises(InternalFault, match="code 1"):
        await bench.create(name="crash")


async def test_without_the_training_packages_the_extra_is_named() -> None:
    resolver = Resolver(repository="", data_roots=(), dataset_dir="", required_modules=("no_such_module",))
    with pytest.raises(Precondition, match=r"shoal\[training\]"):
        await resolver.resolve({})


@pytest.mark.parametrize("request_id", ["", "x" * 65, "with space"])
async def test_bad_request_id(bench: Bench, request_id: str) -> None:
    with pytest.raises(InvalidRequest, match="request_id"):
        await bench.create(request_id=request_id)


async def test_too_many_waiting_jobs_are_refused_with_a_delay(bench: Bench) -> None:
    await bench.create(request_id="a")
    await bench.create(request_id="b")
    with pytest.raises(TooManyJobs, match="limit 2") as caught:
        await bench.create(request_id="c")
    assert caught.value.retry_after_s


async def test_one_job_runs_at_a_time_oldest_first(bench: Bench) -> None:
    first = await bench.create(["wait", "go"], SUCCESS, request_id="a")
    second = await bench.create(SUCCESS, request_id="b")
    await bench.until_state(first.id, "validating")
    bench.supervisor.tick()
    assert bench.store.get(second.id).status.state == "queued"
    (bench.supervisor.job_dir(first.id) / "go").touch()
    await bench.until_state(second.id, "succeeded")
    assert bench.store.get(first.id).status.state == "succeeded"


async def test_trainer_runs_nicely_in_its_own_session(bench: Bench) -> None:
    job = await bench.create(["nice", 0], SUCCESS)
    await bench.until_state(job.id, "succeeded")
    assert [event.message for event in bench.events(job.id) if event.kind == "warning"] == ["5 True 1"]


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ([["exit", 65]], "bad_data"),
        ([["exit", 64]], "invalid_spec"),
        ([["exit", 1]], "internal"),
        ([["exit", 0]], "internal"),
        ([["result", {"state": "failed", "failure_reason": "diverged", "failure_message": "NaN"}]], "diverged"),
    ],
)
async def test_failures_have_their_reason(bench: Bench, script: list[Any], reason: str) -> None:
    job = await bench.create(*script)
    done = await bench.until_state(job.id, "failed")
    assert done.failure_reason == reason
    assert done.failure_message
    assert bench.events(job.id)[-1].failure_reason == reason


async def test_lost_trainer_is_started_again(bench: Bench) -> None:
    job = await bench.create(["die_first", 2], SUCCESS)
    done = await bench.until_state(job.id, "succeeded")
    assert done.num_attempts == 3
    assert bench.states(job.id).count("interrupted") == 2


async def test_trainer_lost_too_often_fails_the_job(bench: Bench) -> None:
    job = await bench.create(["die_first", 9])
    done = await bench.until_state(job.id, "failed")
    assert (done.failure_reason, done.num_attempts) == ("worker_lost", 3)
    assert "SIGKILL" in done.failure_message


async def test_cancelled_trainer_may_end_by_itself(bench: Bench) -> None:
    job = await bench.create(["stop_on_term", 0], ["wait", "never"])
    await bench.until_event(job.id, "listening")
    await bench.supervisor.cancel(job.id, wait_s=0)
    await bench.until_state(job.id, "cancelled")
    assert (await bench.calls.cancel(CancelJob(id=job.id))).state == "cancelled"


async def test_deaf_trainer_is_killed(bench: Bench) -> None:
    job = await bench.create(["ignore_term", 0], ["wait", "never"])
    await bench.until_event(job.id, "deaf")
    await bench.supervisor.cancel(job.id, wait_s=0)
    await bench.until_state(job.id, "cancelled")


async def test_queued_job_is_cancelled_at_once(bench: Bench) -> None:
    job = await bench.create(SUCCESS)
    assert (await bench.calls.cancel(CancelJob(id=job.id))).state == "cancelled"
    bench.supervisor.tick()
    assert bench.store.get(job.id).status.num_attempts == 0


async def test_ended_job_cannot_be_cancelled(bench: Bench) -> None:
    job = await bench.create(SUCCESS)
    await bench.until_state(job.id, "succeeded")
    with pytest.raises(JobNotCancellable, match="succeeded"):
        await bench.calls.cancel(CancelJob(id=job.id))


async def test_time_limit(bench: Bench) -> None:
    job = await bench.create(["stop_on_term", 0], ["wait", "never"], time_limit_s=60.0)
    await bench.until_event(job.id, "listening")
    bench.now_s += 59
    bench.supervisor.tick()
    assert bench.store.get(job.id).status.state == "validating"
    bench.now_s += 1
    done = await bench.until_state(job.id, "failed")
    assert done.failure_reason == "timeout"


async def test_trainer_survives_the_server_and_is_adopted(bench: Bench) -> None:
    job = await bench.create(["event", {"kind": "warning", "message": "up"}], ["wait", "go"], state("running"), SUCCESS)
    await bench.until_event(job.id, "up")
    earlier = bench.supervisor
    bench.store.close()
    bench.open()
    bench.supervisor.adopt()
    assert bench.supervisor.running_pids() == earlier.running_pids()
    (bench.supervisor.job_dir(job.id) / "go").touch()
    done = await bench.until_state(job.id, "succeeded")
    assert done.num_attempts == 1
    assert bench.states(job.id) == ["queued", "validating", "running", "succeeded"]
    reap(earlier)


async def test_trainer_that_ended_while_no_server_ran(bench: Bench) -> None:
    job = await bench.create(["wait", "go"], SUCCESS)
    await bench.until_state(job.id, "validating")
    earlier = bench.supervisor
    bench.store.close()
    (earlier.job_dir(job.id) / "go").touch()
    await wait_for_end(earlier)
    bench.open()
    bench.supervisor.adopt()
    await bench.until_state(job.id, "succeeded")
    reap(earlier)


async def test_pid_of_another_process_is_not_our_trainer(bench: Bench) -> None:
    """The record names this very test process, but with another start time."""
    job = await bench.create(["die_first", 0], SUCCESS)
    record = bench.store.get(job.id)
    changed = {"pid": os.getpid(), "process_start_ticks": 1}
    bench.store.update(type(record)(**{**{f: getattr(record, f) for f in record.__struct_fields__}, **changed}), [])
    bench.supervisor.adopt()
    done = await bench.until_state(job.id, "succeeded")
    assert "interrupted" in bench.states(job.id)
    assert done.num_attempts == 1


async def test_line_cut_off_by_a_kill_is_skipped(bench: Bench) -> None:
    cut = ["raw", '{"kind": "progress", "prog']
    job = await bench.create(cut, state("running"), state("evaluating"), SUCCESS)
    await bench.until_state(job.id, "succeeded")
    assert bench.states(job.id) == ["queued", "validating", "evaluating", "succeeded"]


class FullDisk(LocalLauncher):
    """A launcher whose disk is full."""

    def start(self, job_dir: Path, *, num_threads: int) -> RunningTrainer:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


async def test_full_disk_at_the_start_fails_the_job_with_storage(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    supervisor = Supervisor(bench.settings, bench.store, FullDisk([]), on_published=lambda _model, _version: None)
    job = await bench.create(SUCCESS)
    supervisor.tick()
    done = bench.store.get(job.id).status
    assert (done.state, done.failure_reason) == ("failed", "storage")
    assert "No space left" in done.failure_message
    bench.store.close()


async def test_watch_replays_then_follows_to_the_end(bench: Bench) -> None:
    job = await bench.create(state("running"), ["wait", "go"], state("evaluating"), SUCCESS)
    seen: list[JobEvent] = []

    async def watch() -> None:
        async for event in bench.calls.watch(WatchJob(id=job.id, from_sequence=2)):
            seen.append(event)  # noqa: PERF401 - looked at while it grows

    watching = asyncio.create_task(watch())
    await bench.until(job.id, lambda _: any(event.state == "running" for event in seen))
    (bench.supervisor.job_dir(job.id) / "go").touch()
    await bench.until_state(job.id, "succeeded")
    await asyncio.wait_for(watching, 5)
    assert [(event.sequence, event.state) for event in seen] == [
        (2, "validating"),
        (3, "running"),
        (4, "evaluating"),
        (5, "succeeded"),
    ]


async def test_jobs_are_listed_newest_first_in_pages(bench: Bench) -> None:
    ids = []
    for number in range(3):
        job = await bench.create(SUCCESS, request_id=f"r{number}")
        await bench.until_state(job.id, "succeeded")
        ids.append(job.id)
    first = await bench.calls.list_jobs(ListJobs(page_size=2, page_token=""))
    second = await bench.calls.list_jobs(ListJobs(page_size=2, page_token=first.next_page_token))
    assert [job.id for job in [*first.jobs, *second.jobs]] == ids[::-1]
    assert second.next_page_token == ""
    with pytest.raises(InvalidRequest, match="page_token"):
        await bench.calls.list_jobs(ListJobs(page_size=2, page_token="nonsense"))


async def test_deleted_job_leaves_nothing(bench: Bench) -> None:
    job = await bench.create(SUCCESS)
    with pytest.raises(JobRunning):
        await bench.calls.delete(DeleteJob(id=job.id))
    await bench.until_state(job.id, "succeeded")
    await bench.calls.delete(DeleteJob(id=job.id))
    assert not bench.supervisor.job_dir(job.id).exists()
    with pytest.raises(JobNotFound):
        await bench.calls.get(GetJob(id=job.id))
    assert bench.events(job.id) == []


def test_datasets_and_bases_of_a_spec() -> None:
    spec = {"base": {"model": "minilm@2"}, "data": {"train": "dataset://ab", "validation": "/data/rows.csv"}}
    assert datasets_of(spec) == {"dataset://ab"}
    assert base_of(spec) == "minilm@2"
    assert base_of({"base": {"path": "/x"}}) == ""


async def wait_for_end(supervisor: Supervisor) -> None:
    limit = time.monotonic() + 10
    while any(is_alive(running.trainer.identity) for running in supervisor._running.values()):
        assert time.monotonic() < limit
        await asyncio.sleep(0.01)


def reap(supervisor: Supervisor) -> None:
    """Collect the children of a supervisor that was abandoned, as init does for those of a dead server."""
    for running in supervisor._running.values():
        process = running.trainer._process
        assert process is not None
        process.wait()
