"""Runs the engines in turns, each in a process that waits while another one works; first tunes each of them.

Tuning tries shortly one forward on all cores and one on each core side by side, with every batch size; the best of each
engine then runs in every round. The machine's matrix products are measured beside them, since a share of a ceiling
means little when both are taken at different times.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import msgspec
from rich.console import Console
from shoal_server.control.processes import ENGINE_ENVIRONMENT
from shoal_server.engine.devices.cpu import CpuDevice
from transformers import AutoConfig

from benchmarks import answers, ceilings, folders, news
from benchmarks.engines.work import Asked, Ran, Setup, Texts
from benchmarks.limits import Ceilings, EncoderWork
from benchmarks.peers.environment import ROOT, Environment, InstallError
from benchmarks.processes import MAX_FOREIGN_SHARE, CpuTimes
from benchmarks.records import Checked

NUM_TEXTS = 1024
TUNE_S = 1.5
ROUND_S = 5.0
MAX_TRIES = 3
NAME = "engines.json"
_NUM_CORES = len(os.sched_getaffinity(0))
_ENVIRONMENT = Environment(name="engines", requirements=Path(__file__).resolve().parent / "requirements.txt")


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """One way to run the model."""

    name: str
    dtype: str  # "bfloat16", "float32" or "int8"
    setups: tuple[Setup, ...]
    kind: str  # "shoal", "openvino" or "onnxruntime"


class EngineResult(msgspec.Struct, frozen=True, kw_only=True):
    """One engine over all rounds, or why it has none."""

    name: str
    dtype: str
    setup: Setup | None = None
    texts_per_s: list[float] = []  # of each round
    flops_per_s: list[float] = []  # of each round: linear layers and attention of the real lengths
    checked: Checked | None = None
    failure: str = ""


class EngineResults(msgspec.Struct, frozen=True, kw_only=True):
    """All engines, and what the machine could do meanwhile."""

    engines: list[EngineResult]
    ceilings: Ceilings


def _padded_setups() -> tuple[Setup, ...]:
    return tuple(
        Setup(lanes=lanes, threads=_NUM_CORES // lanes, batch=batch)
        for lanes in dict.fromkeys((_NUM_CORES, 1))
        for batch in (8, 16, 32, 64)
    )


def _packed_setups() -> tuple[Setup, ...]:
    return tuple(
        Setup(lanes=lanes, threads=_NUM_CORES // lanes, batch=CpuDevice.classify_token_budget)
        for lanes in dict.fromkeys((_NUM_CORES, 1))
    )


ENGINES = (
    Engine(name="Shoal bfloat16", dtype="bfloat16", setups=_packed_setups(), kind="shoal"),
    Engine(name="Shoal float32", dtype="float32", setups=_packed_setups(), kind="shoal"),
    Engine(name="Shoal int8", dtype="int8", setups=_packed_setups(), kind="shoal"),
    Engine(name="OpenVINO bfloat16", dtype="bfloat16", setups=_padded_setups(), kind="openvino"),
    Engine(name="ONNX Runtime int8", dtype="int8", setups=_padded_setups(), kind="onnxruntime"),
)


class Running:
    """An engine's process."""

    def __init__(self, engine: Engine, texts: Path) -> None:
        self._log = (folders.OUT / f"engine-{engine.kind}-{engine.dtype}.log").open("w+b")
        self._process = subprocess.Popen(
            _command(engine, texts),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            cwd=ROOT,
            env={**ENGINE_ENVIRONMENT, **os.environ},  # of Shoal's engines; huge pages for all
        )
        self._read()

    def run(self, setup: Setup, seconds: float) -> Ran:
        """Work for so long.

        Raises:
            EngineFailed: the process ended.
        """
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):  # then reading tells how it ended
            self._process.stdin.write(msgspec.json.encode(Asked(setup=setup, seconds=seconds)) + b"\n")
            self._process.stdin.flush()
        return msgspec.json.decode(self._read(), type=Ran)

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        self._log.close()

    def _read(self) -> bytes:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._log.seek(0)
            told = self._log.read().decode(errors="replace").strip().splitlines()
            self.close()
            raise EngineFailed(told[-1][-300:] if told else "it ended without a word")
        return line


class EngineFailed(Exception):
    """An engine cannot run here; the message is the last that it printed."""


def _command(engine: Engine, texts: Path) -> list[str]:
    common = ["--texts", str(texts), "--checked", str(answers.NUM_CHECKED)]
    if engine.kind == "shoal":
        version = folders.ensure_repository(folders.CLASSIFIER) / folders.CLASSIFIER / "1"
        own = ["--version", str(version), "--dtype", engine.dtype]
        return [sys.executable, "-m", "benchmarks.engines.shoal_engine", *own, *common]
    own = ["--engine", engine.kind, "--model", str(folders.ensure_classifier()), "--work", str(folders.OUT / "onnx")]
    return [str(_ENVIRONMENT.python), "-m", "benchmarks.engines.padded_engines", *own, *common]


def measure(rounds: int, folder: Path, console: Console, deadline_s: float) -> None:
    """Start all engines and let each run `rounds` times; writes `NAME` into `folder`."""
    running, results = _start(console)
    limits = ceilings.measure()
    try:
        for number in range(rounds):
            for engine in _present(running):
                if time.monotonic() < deadline_s or not number:
                    results[engine.name] = _turn(engine, running, results[engine.name])
                    console.print(f"engines round {number + 1} {_told(results[engine.name])}")
    finally:
        for process in running.values():
            process.close()
    folder.mkdir(parents=True, exist_ok=True)
    found = EngineResults(engines=list(results.values()), ceilings=limits)
    (folder / NAME).write_bytes(msgspec.json.format(msgspec.json.encode(found)))


def _present(running: dict[str, Running]) -> list[Engine]:
    return [engine for engine in ENGINES if engine.name in running]


def _turn(engine: Engine, running: dict[str, Running], result: EngineResult) -> EngineResult:
    """One round more, after tuning in the first. An engine that fails takes no further part."""
    try:
        setup = result.setup or _tune(engine, running[engine.name])
        return _added(result, setup, _run_undisturbed(running[engine.name], setup, ROUND_S))
    except EngineFailed as error:
        del running[engine.name]
        return EngineResult(name=engine.name, dtype=engine.dtype, failure=str(error))


def _run_undisturbed(process: Running, setup: Setup, seconds: float, tries: int = MAX_TRIES) -> Ran:
    """Again when other processes took part of the machine, but not forever."""
    before = CpuTimes.read(os.getpid())
    ran = process.run(setup, seconds)
    if tries == 1 or CpuTimes.read(os.getpid()).since(before).foreign_share <= MAX_FOREIGN_SHARE:
        return ran
    return _run_undisturbed(process, setup, seconds, tries - 1)


def _told(result: EngineResult) -> str:
    if result.setup is None:
        return f"{result.name} failed: {result.failure}"
    setup = f"{result.setup.lanes} x {result.setup.threads} threads, {result.setup.batch} a batch"
    return f"{result.name:18} {result.texts_per_s[-1]:,.0f} texts/s with {setup}"


def _start(console: Console) -> tuple[dict[str, Running], dict[str, EngineResult]]:
    path = folders.OUT / "engine-texts.json"
    ids = [encoding.ids for encoding in news.tokenizer().encode_batch(list(news.ensure().texts[:NUM_TEXTS]))]
    path.write_bytes(msgspec.json.encode(Texts(ids=ids)))
    running: dict[str, Running] = {}
    results: dict[str, EngineResult] = {}
    for engine in ENGINES:
        failure = ""
        try:
            if engine.kind != "shoal":
                _ENVIRONMENT.ensure()
            running[engine.name] = Running(engine, path)
        except (InstallError, EngineFailed) as error:
            failure = str(error)
            console.print(f"{engine.name} does not run: {failure}")
        results[engine.name] = EngineResult(name=engine.name, dtype=engine.dtype, failure=failure)
    return running, results


def _tune(engine: Engine, process: Running) -> Setup:
    rates = {setup: _run_undisturbed(process, setup, TUNE_S).texts_per_s for setup in engine.setups}
    return max(rates, key=lambda setup: rates[setup])


def _added(result: EngineResult, setup: Setup, ran: Ran) -> EngineResult:
    workload = news.ensure()
    check = answers.compare(result.dtype, ran.scores, answers.ensure_reference(workload))
    flops_per_text = _work().flops(workload.num_tokens[:NUM_TEXTS]) / NUM_TEXTS
    return EngineResult(
        name=result.name,
        dtype=result.dtype,
        setup=setup,
        texts_per_s=[*result.texts_per_s, ran.texts_per_s],
        flops_per_s=[*result.flops_per_s, ran.texts_per_s * flops_per_text],
        checked=Checked(agreement=check.agreement, max_difference=check.max_difference, passed=check.passed),
    )


def _work() -> EncoderWork:
    return ceilings.encoder_work(AutoConfig.from_pretrained(folders.ensure_classifier()))


def read(folder: Path) -> EngineResults | None:
    """What was measured last; None when nothing was."""
    path = folder / NAME
    return msgspec.json.decode(path.read_bytes(), type=EngineResults) if path.exists() else None
