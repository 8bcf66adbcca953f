"""Runs one job folder from its order to its result: `python -m shoal_training.run <job_dir>`.

Exit codes: 0 published; 75 stopped by SIGTERM, to be started again; 65 bad data; 64 bad spec; 1 failed otherwise.
Spec and data are checked before torch is imported, so that a bad row is told within a second.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from shoal_models import manifest as manifests
from shoal_models.manifest import Manifest

from shoal_training import bases
from shoal_training.data import Corpus, load_corpus
from shoal_training.events import EventLog
from shoal_training.failures import (
    EXIT_DONE,
    EXIT_FAILED,
    EXIT_STOPPED,
    BadData,
    BaseMissing,
    InvalidSpec,
    StopRequested,
    explain,
)
from shoal_training.guard import Guard
from shoal_training.job import RESULT_NAME, Job, Result, read_job, write_json
from shoal_training.places import PlaceError

if TYPE_CHECKING:
    from shoal_training.pipeline import Prepared


def run(folder: Path, guard: Guard | None = None) -> int:
    """Run the job in `folder`; returns the exit code. Never raises for what a job can do wrong."""
    guard = guard or Guard()
    try:
        events = EventLog(folder / "events.jsonl")
    except OSError as error:
        sys.stderr.write(f"the job folder is not writable: {error.strerror}\n")
        return EXIT_FAILED
    try:
        result = _run(folder, events, guard)
        write_json(folder / RESULT_NAME, dataclasses.asdict(result))
    except StopRequested:
        return EXIT_STOPPED
    except Exception as error:
        return _fail(folder, events, error)
    finally:
        events.close()
    return EXIT_DONE


def main() -> int:
    """Entry of the program."""
    if len(sys.argv) != 2:
        sys.stderr.write("usage: python -m shoal_training.run JOB_DIR\n")
        return EXIT_FAILED
    guard = Guard()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: guard.request_stop())
    folder = Path(sys.argv[1])
    _bind_libraries(folder)
    return run(folder, guard)


def _run(folder: Path, events: EventLog, guard: Guard) -> Result:
    job = read_job(folder)
    guard.set_limit(job.spec.time_limit_s)
    events.state("validating")
    if (done := _find_published(job.places.repository, job.spec.name, job.job_id)) is not None:
        return _succeed(job, events, done)
    _check_base(job)
    corpus = _load_corpus(job)
    guard.check()
    from shoal_training import pipeline  # imports torch

    events.state("preparing")
    prepared: Prepared = pipeline.prepare(job, corpus, events, guard)
    events.state("running")
    last_step = pipeline.train(prepared)
    events.state("evaluating")
    metrics = pipeline.evaluate(prepared, last_step)
    events.state("gating")
    guard.check()
    events.state("publishing")  # from here on nothing stops it: it is a matter of seconds
    manifest = pipeline.publish(prepared, metrics)
    return _succeed(job, events, manifest)


def _succeed(job: Job, events: EventLog, manifest: Manifest) -> Result:
    """Tell what was published; what led there is no longer needed."""
    events.published(manifest.model, manifest.version)
    shutil.rmtree(job.checkpoints, ignore_errors=True)
    events.state("succeeded")
    return Result(state="succeeded", metrics=manifest.metrics, published_version=manifest.version)


def _find_published(repository: Path, model: str, job_id: str) -> Manifest | None:
    """The version that an earlier attempt of the job published before it was killed."""
    for version in reversed(manifests.list_versions(repository, model)):
        try:
            manifest = manifests.read_manifest(repository / model / str(version))
        except manifests.ManifestError:
            continue  # damaged, and so not to be relied on
        if manifest.job_id == job_id:
            return manifest
    return None


def _check_base(job: Job) -> None:
    try:
        bases.describe(job.spec.base, job.places)
    except PlaceError as error:
        raise BaseMissing(error.description) from None


def _load_corpus(job: Job) -> Corpus:
    try:
        return load_corpus(job.spec.data, job.places, job.spec.seed)
    except PlaceError as error:
        raise BadData(error.description) from None


def _bind_libraries(folder: Path) -> None:
    """Tell libraries what they read once, when they are imported: how many threads, which device."""
    try:
        num_threads = read_job(folder).num_threads
    except InvalidSpec:
        return  # told by `run`
    os.environ["OMP_NUM_THREADS"] = str(num_threads)
    os.environ["RAYON_NUM_THREADS"] = str(num_threads)
    # Threads that spin while they wait for each other waste the cores of a machine that also serves:
    # measured on two busy cores, 6.3 CPU seconds a step against 2.1.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true" if num_threads > 1 else "false")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "0")  # one job, one device


def _fail(folder: Path, events: EventLog, error: Exception) -> int:
    failure = explain(error)
    # Frames and types only: the text of an exception may quote a data row.
    sys.stderr.write("".join(traceback.format_tb(error.__traceback__)) + f"{type(error).__name__}: {failure.message}\n")
    result = Result(state="failed", failure_reason=failure.reason, failure_message=failure.message, metrics={})
    try:
        events.failed(failure.reason, failure.message)
        write_json(folder / RESULT_NAME, dataclasses.asdict(result))
    except OSError as second:
        sys.stderr.write(f"the failure could not be recorded: {second.strerror}\n")
    return failure.exit_code


if __name__ == "__main__":
    sys.exit(main())
