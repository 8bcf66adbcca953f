"""Shoal and the naive server side by side: the same model folders, calls and number types, one after the other.

All servers are started first and idle while another is measured. Each round runs every case on both; what counts is the
median of the rounds. Takes about eight minutes; writes benchmarks/RESULTS.md and benchmarks/out/side_by_side.json.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from contextlib import ExitStack
from pathlib import Path

import uvloop
import yaml
from rich.console import Console
from shoal.aio import AsyncClient
from shoal_models.manifest import read_manifest

from benchmarks import ceilings, folders, markdown, results
from benchmarks.calls import Caller
from benchmarks.cases import CALL_TIMEOUT_S, CASES, Case
from benchmarks.limits import Work
from benchmarks.loadgen import record
from benchmarks.results import NAIVE, SHOAL, CaseResult, Results
from benchmarks.servers import Changes, NaiveServer, Server, ShoalServer, wait_live
from benchmarks.summary import Summary, summarise

RESULTS_PATH = Path(__file__).resolve().parent / "RESULTS.md"
Side = tuple[str, str]  # which server, number type


def main(arguments: list[str] | None = None) -> int:
    """Run, print and write the comparison."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks side-by-side", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="interleaved rounds (default %(default)s)")
    parser.add_argument("--only", default="", metavar="TEXT", help="only cases with this in their names; no RESULTS.md")
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="another configuration of Shoal"
    )
    options = parser.parse_args(arguments)
    changes = _changes(options.set)
    cases = tuple(case for case in CASES if options.only in case.name)
    console = Console()
    found = uvloop.run(_compare(cases, options.rounds, changes, console))
    console.print(results.table(found))
    folders.OUT.mkdir(parents=True, exist_ok=True)
    (folders.OUT / "side_by_side.json").write_text(json.dumps(results.as_tree(found), indent=2) + "\n")
    if not options.only and not changes:
        RESULTS_PATH.write_text(markdown.page(found))
        console.print(f"Written to {RESULTS_PATH}")
    return 0


def _changes(settings: list[str]) -> Changes:
    """Sections of configuration from "section.key=value"; values as in YAML."""
    changes: Changes = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        section, _, key = name.partition(".")
        changes.setdefault(section, {})[key] = yaml.safe_load(value)
    return changes


async def _compare(cases: tuple[Case, ...], rounds: int, changes: Changes, console: Console) -> Results:
    console.print("Models ...")
    repository = folders.ensure_repository()
    console.print("What the machine can do at most ...")
    limits = ceilings.measure()
    with ExitStack() as stack:
        console.print("Servers ...")
        servers = {side: stack.enter_context(server) for side, server in _servers(cases, repository, changes).items()}
        computed_in = {case.name: await _compute_dtype(servers[SHOAL, case.dtype], case) for case in cases}
        summaries = await _run_rounds(cases, servers, rounds, console)
    return Results(
        cases=tuple(
            CaseResult(
                case=case,
                shoal=tuple(summaries[case.name, SHOAL]),
                naive=tuple(summaries[case.name, NAIVE]),
                compute_dtype=computed_in[case.name],
                work=_work(repository, case),
            )
            for case in cases
        ),
        ceilings=limits,
        num_rounds=rounds,
        measured_at=time.time(),
    )


def _servers(cases: tuple[Case, ...], repository: Path, changes: Changes) -> dict[Side, Server]:
    """One Shoal and one naive server for each number type, with what the cases need of them."""
    found: dict[Side, Server] = {}
    for dtype in sorted({case.dtype for case in cases}):
        wanted = {case.model for case in cases if case.dtype == dtype}
        paths = {model: repository / model / "1" for model in wanted}
        folder = folders.OUT / "servers"
        found[SHOAL, dtype] = ShoalServer(folder / f"shoal-{dtype}", repository, dtype, changes=changes)
        found[NAIVE, dtype] = NaiveServer(
            folder / f"naive-{dtype}",
            dtype,
            classify=paths.get(folders.CLASSIFIER),
            generate=paths.get(folders.GENERATOR),
        )
    return found


async def _compute_dtype(server: Server, case: Case) -> str:
    async with AsyncClient(server.address) as client:
        return await wait_live(client, case.model, 1)


async def _run_rounds(
    cases: tuple[Case, ...], servers: dict[Side, Server], rounds: int, console: Console
) -> dict[tuple[str, str], list[Summary]]:
    sides = (SHOAL, NAIVE)
    summaries: dict[tuple[str, str], list[Summary]] = {(case.name, side): [] for case in cases for side in sides}
    for number in range(rounds):
        for case in cases:
            # Who goes first changes with the rounds, so that neither always meets the warmer machine.
            for side in sides if number % 2 == 0 else reversed(sides):
                summary = await _measure(servers[side, case.dtype], case, number)
                summaries[case.name, side].append(summary)
                rate = f"{case.rate(summary):9,.1f} {case.unit}"
                errors = f", errors {summary.errors}" if summary.errors else ""
                console.print(f"round {number + 1}  {case.name:20} {side:6} {rate}{errors}")
    return summaries


async def _measure(server: Server, case: Case, seed: int) -> Summary:
    async with Caller(server.address, case.model, timeout_s=CALL_TIMEOUT_S) as caller:
        recording = await record(caller, case.items(seed), case.loop, case.window)
    await asyncio.sleep(0.5)  # cancelled calls leave the server
    return summarise(recording)


def _work(repository: Path, case: Case) -> Work:
    from shoal_models.load import open_model

    path = repository / case.model / "1"
    return ceilings.work_of(open_model(path, read_manifest(path).architecture))


if __name__ == "__main__":
    raise SystemExit(main())
