"""The rooms of control, built from the configuration and joined to each other. Nothing runs yet."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from shoal_server.config import ServerConfig
from shoal_server.control.conductor import Conductor
from shoal_server.control.datasets import Datasets
from shoal_server.control.engine_ledger import EngineLedger
from shoal_server.control.jobs.calls import JobCalls, base_of, datasets_of
from shoal_server.control.jobs.launchers.local import LocalLauncher
from shoal_server.control.jobs.resolve import RUN_COMMAND, Resolver
from shoal_server.control.jobs.store import JobStore
from shoal_server.control.jobs.supervisor import JobSettings, Supervisor
from shoal_server.control.model_calls import ModelCalls
from shoal_server.control.peers import Peers
from shoal_server.control.policy import RecordStore
from shoal_server.control.rollout import Rollout, RolloutSettings
from shoal_server.control.router import Router
from shoal_server.control.series import FrontLedger
from shoal_server.control.watcher import Watcher
from shoal_server.ipc import calls

CORES_PER_FRONT = 4
MAX_SOCKET_PATH = 107  # bytes, sockaddr_un
_LONGEST_SOCKET_NAME = "/engine-99-99999999.sock"
_KINDS = {"classify": "classifier", "generate": "generator"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Rooms:
    """Everything that control consists of besides its children."""

    config: ServerConfig  # with what was left open decided
    repository: Path
    store: JobStore
    peers: Peers
    rollout: Rollout
    conductor: Conductor
    watcher: Watcher
    supervisor: Supervisor
    datasets: Datasets
    router: Router
    front_ledger: FrontLedger
    engine_ledger: EngineLedger


def build_rooms(config: ServerConfig, state_dir: Path, store: JobStore) -> Rooms:
    """Build every room. `config` must be complete."""
    repository = Path(config.repository.path).resolve()
    peers = Peers()
    rollout = Rollout(rollout_settings(config))
    conductor = Conductor(
        rollout,
        peers,
        RecordStore(state_dir / "models"),
        repository,
        bases_in_use=lambda: [base for record in store.unfinished() if (base := base_of(record.status.spec))],
    )
    watcher = Watcher(
        repository,
        poll_interval_s=config.repository.poll_interval_s,
        use_events=config.repository.watch,
        report=conductor.found,
    )
    conductor.watcher = watcher
    supervisor = Supervisor(
        _job_settings(config, state_dir, repository),
        store,
        LocalLauncher(RUN_COMMAND),
        on_published=lambda _model, _version: watcher.wake(),
    )
    datasets = Datasets(
        state_dir / "datasets",
        max_bytes=config.train.max_dataset_bytes,
        in_use=lambda: {name for record in store.unfinished() for name in datasets_of(record.status.spec)},
    )
    router = Router(peers)
    _route_models(router, ModelCalls(conductor))
    _route_datasets(router, datasets)
    _route_jobs(router, _job_calls(config, state_dir, repository, supervisor))
    return Rooms(
        config=config,
        repository=repository,
        store=store,
        peers=peers,
        rollout=rollout,
        conductor=conductor,
        watcher=watcher,
        supervisor=supervisor,
        datasets=datasets,
        router=router,
        front_ledger=FrontLedger(),
        engine_ledger=EngineLedger(),
    )


def complete_config(config: ServerConfig) -> ServerConfig:
    """Decide what was left open: the number of fronts; no engines where no service needs one."""
    num_fronts = config.listen.num_fronts or max(1, len(os.sched_getaffinity(0)) // CORES_PER_FRONT)
    num_engines = config.engine.num_engines if _kinds(config) else 0
    return msgspec.structs.replace(
        config,
        listen=msgspec.structs.replace(config.listen, num_fronts=num_fronts),
        engine=msgspec.structs.replace(config.engine, num_engines=num_engines),
    )


def rollout_settings(config: ServerConfig) -> RolloutSettings:
    """What rollout needs of the configuration."""
    return RolloutSettings(
        num_engines=config.engine.num_engines,
        kinds=_kinds(config),
        repository=config.repository,
    )


def make_runtime_dir() -> str:
    """A private folder for sockets, whose paths must be short."""
    path = tempfile.mkdtemp(prefix="shoal-")
    if len(os.fsencode(path)) + len(_LONGEST_SOCKET_NAME) <= MAX_SOCKET_PATH:
        return path
    Path(path).rmdir()
    return tempfile.mkdtemp(prefix="shoal-", dir="/tmp")


def _kinds(config: ServerConfig) -> frozenset[str]:
    return frozenset(kind for service, kind in _KINDS.items() if service in config.services)


def _job_settings(config: ServerConfig, state_dir: Path, repository: Path) -> JobSettings:
    return JobSettings(
        jobs_dir=state_dir / "jobs",
        repository=str(repository),
        dataset_dir=str(state_dir / "datasets"),
        data_roots=_data_roots(config),
        max_running_jobs=config.train.max_running_jobs if "train" in config.services else 0,
        max_attempts=config.train.max_attempts,
        num_threads=config.train.num_threads,
    )


def _job_calls(config: ServerConfig, state_dir: Path, repository: Path, supervisor: Supervisor) -> JobCalls:
    resolver = Resolver(
        repository=str(repository), data_roots=_data_roots(config), dataset_dir=str(state_dir / "datasets")
    )
    return JobCalls(supervisor, resolver, max_waiting_jobs=config.train.max_waiting_jobs)


def _data_roots(config: ServerConfig) -> tuple[str, ...]:
    return tuple(str(Path(root).resolve()) for root in config.train.data_roots)


def _route_models(router: Router, models: ModelCalls) -> None:
    router.unary(calls.ListModels, models.list_models)
    router.unary(calls.GetModel, models.get)
    router.unary(calls.LoadModel, models.load)
    router.wait(calls.WakeVersion, models.wake)
    router.unary(calls.UnloadModel, models.unload)
    router.unary(calls.DeleteModelVersion, models.delete)
    router.unary(calls.SetModelLabel, models.set_label)


def _route_datasets(router: Router, datasets: Datasets) -> None:
    router.unary(calls.BeginUpload, _in_thread(datasets.begin))
    router.unary(calls.CommitUpload, _in_thread(datasets.commit))
    router.unary(calls.GetDataset, _in_thread(datasets.get))
    router.unary(calls.DeleteDataset, _in_loop(datasets.delete))


def _route_jobs(router: Router, jobs: JobCalls) -> None:
    router.unary(calls.CreateJob, jobs.create)
    router.unary(calls.GetJob, jobs.get)
    router.unary(calls.ListJobs, jobs.list_jobs)
    router.unary(calls.CancelJob, jobs.cancel)
    router.unary(calls.DeleteJob, jobs.delete)
    router.stream(calls.WatchJob, jobs.watch)


def _in_thread(handle: Callable[[Any], msgspec.Struct]) -> Callable[[Any], Awaitable[msgspec.Struct]]:
    """A handler that waits for the disk, off the event loop."""
    return lambda call: asyncio.to_thread(handle, call)


def _in_loop(handle: Callable[[Any], msgspec.Struct]) -> Callable[[Any], Awaitable[msgspec.Struct]]:
    """A handler that reads the job store, which belongs to the event loop's thread."""

    async def run(call: Any) -> msgspec.Struct:
        return handle(call)

    return run
