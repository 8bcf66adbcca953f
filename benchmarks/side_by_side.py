"""Shoal beside the naive server and its peers: the same model, texts and number types, one server at a time.

Parts: `limits` (what the machine could do), `closed` (1, 32 and 64 calls in flight, and transformers without a server),
`open` (Poisson arrivals at half of what the best peer can do), `engines` (forwards without a server) and `generate`.
Each turn starts a server, checks its answers, measures and stops it; its record is a file below
benchmarks/out/side_by_side. Without options the naive server and the two peers that did best in their sweeps take part,
within 45 minutes (open loops and Generate in bfloat16 only); --all takes everybody. Writes benchmarks/RESULTS.md and
its plots.
"""

from __future__ import annotations

import argparse
import shutil
import time
from dataclasses import dataclass

import yaml
from rich.console import Console

from benchmarks import bare_turn, ceilings, folders, news, plan, results_page, turns
from benchmarks.contenders import NAIVE, SHOAL, contender
from benchmarks.engines import rounds
from benchmarks.peers import best
from benchmarks.peers.environment import InstallError
from benchmarks.peers.registry import PEERS
from benchmarks.plan import CLOSED, DTYPES, GENERATE, OPEN, Field
from benchmarks.records import Store, Turn, measures, median
from benchmarks.servers import Changes
from benchmarks.turns import Slot

FOLDER = folders.OUT / "side_by_side"
TRIAL_FOLDER = folders.OUT / "side_by_side_trial"  # of runs with --set or --scale, which leave RESULTS.md alone
PARTS = ("limits", CLOSED, OPEN, "engines", GENERATE)
NUM_BEST = 2  # peers beside the naive server when not everybody takes part
ROUNDS = 3
MAX_TRIES = 2  # of a turn that other processes disturb
MINUTES = 43.0  # most time of a run without --all, setting up environments apart


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """What was asked for."""

    peers: dict[str, list[str]]  # that take part in a number type
    parts: tuple[str, ...]
    dtypes: tuple[str, ...]
    rest_dtypes: tuple[str, ...]  # of the parts other than closed loops
    rounds: int
    changes: Changes
    scale: float  # of all times
    deadline_s: float  # time.monotonic()


def main(arguments: list[str] | None = None) -> int:
    """Measure what is asked for and is not there yet, then write the page from all that is."""
    options = _parser().parse_args(arguments)
    console = Console()
    trial = options.scale != 1 or bool(options.set)
    folder = TRIAL_FOLDER if trial else FOLDER
    if not (options.resume or options.only or options.report):
        shutil.rmtree(folder, ignore_errors=True)
    for part in options.only.split(",") if options.only and not options.resume else ():
        shutil.rmtree(folder / part, ignore_errors=True)
    store = Store(folder)
    if not options.report:
        _prepare()
        run = _run(options, _installed(options, store, console))
        _measure(run, store, console)
    results_page.write(store.load(), folder, folder if trial else results_page.FOLDER, console)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks side-by-side", description=__doc__)
    parser.add_argument("--all", action="store_true", help="all peers, all parts in both number types; no time limit")
    parser.add_argument("--peers", default="", help="these peers, separated by commas")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="interleaved rounds (default %(default)s)")
    parser.add_argument(
        "--only", default="", help=f"parts to measure anew, or with --resume to go on with, of {', '.join(PARTS)}"
    )
    parser.add_argument("--dtype", choices=DTYPES, help="one number type")
    parser.add_argument("--resume", action="store_true", help="keep the turns that are there and take the others")
    parser.add_argument("--report", action="store_true", help="measure nothing, write the page from what is there")
    parser.add_argument("--minutes", type=float, help=f"begin no turn after so long (default {MINUTES:g}; --all: none)")
    parser.add_argument(
        "--scale", type=float, default=1.0, help="of all times, to try things out (default %(default)s)"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="another configuration of Shoal"
    )
    return parser


def _prepare() -> None:
    for model in (folders.CLASSIFIER, folders.GENERATOR):
        folders.ensure_repository(model)
    news.ensure()


def _run(options: argparse.Namespace, installed: list[str]) -> Run:
    parts = tuple(options.only.split(",")) if options.only else PARTS
    if unknown := set(parts) - set(PARTS):
        raise SystemExit(f"no part {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    dtypes = (options.dtype,) if options.dtype else DTYPES
    minutes = options.minutes or (24 * 60.0 if options.all else MINUTES)
    return Run(
        peers={dtype: [name for name in _wanted(options, dtype) if name in installed] for dtype in DTYPES},
        parts=parts,
        dtypes=dtypes,
        rest_dtypes=dtypes if options.all else dtypes[:1],
        rounds=options.rounds,
        changes=_changes(options.set),
        scale=options.scale,
        deadline_s=time.monotonic() + minutes * 60,
    )


def _wanted(options: argparse.Namespace, dtype: str) -> list[str]:
    """Names of the peers that are to take part in a number type."""
    if options.peers:
        return str(options.peers).split(",")
    return list(PEERS) if options.all else best.fastest(list(PEERS.values()), dtype, NUM_BEST)


def _installed(options: argparse.Namespace, store: Store, console: Console) -> list[str]:
    """Names of the peers that take part and can be installed; the others leave a record with the reason."""
    found = []
    for name in sorted({name for dtype in DTYPES for name in _wanted(options, dtype)}):
        try:
            PEERS[name].environment.ensure()
        except InstallError as error:
            console.print(f"{name} cannot be installed: {error}")
            for dtype in DTYPES:
                slot = Slot(part=CLOSED, dtype=dtype, round=0, name=name, loads=())
                store.save(turns.failed(slot, f"cannot be installed: {error}"))
        else:
            found.append(name)
    return found


def _changes(settings: list[str]) -> Changes:
    """Sections of configuration from "section.key=value"; values as in YAML."""
    changes: Changes = {}
    for setting in settings:
        name, _, value = setting.partition("=")
        section, _, key = name.partition(".")
        changes.setdefault(section, {})[key] = yaml.safe_load(value)
    return changes


def _measure(run: Run, store: Store, console: Console) -> None:
    if "limits" in run.parts:
        console.print("What the machine can do at most ...")
        results_page.write_limits(store.folder, ceilings.measure())
    for part in (CLOSED, OPEN):
        if part in run.parts:
            _rounds(run, part, store, console)
    if "engines" in run.parts:
        rounds.measure(run.rounds, store.folder, console, run.deadline_s)
    if GENERATE in run.parts:
        _rounds(run, GENERATE, store, console)


def _rounds(run: Run, part: str, store: Store, console: Console) -> None:
    for number in range(run.rounds):
        for dtype in run.dtypes if part == CLOSED else run.rest_dtypes:
            field = Field(shoal=SHOAL, others=(NAIVE, *run.peers[dtype]), bare=bare_turn.BARE, generators=(NAIVE,))
            loads = plan.loads_of(part, capacity(store.load(), dtype, field.others))
            for slot in plan.scaled(plan.round_of(part, dtype, number, field, loads), run.scale):
                if time.monotonic() > run.deadline_s:
                    console.print("out of time: the page is written from what is there")
                    return
                if not store.has(slot.part, slot.dtype, slot.round, slot.name):
                    store.save(_take_undisturbed(slot, run.changes, console))


def capacity(found: list[Turn], dtype: str, others: tuple[str, ...]) -> float:
    """Calls a second of the best of `others` in closed loops; 0 before there were any."""
    labels = [load.label for load in plan.CLOSED_LOADS]
    rates = [
        median(measure.rate for measure in measures(found, CLOSED, dtype, name, label))
        for name in others
        for label in labels
    ]
    return max((rate for rate in rates if rate == rate), default=0.0)


def _take_undisturbed(slot: Slot, changes: Changes, console: Console, tries: int = MAX_TRIES) -> Turn:
    """Again when other processes took part of the machine, but not forever: the record tells how large a part."""
    turn = _take(slot, changes)
    console.print(_line(turn))
    if tries == 1 or not turns.disturbed(turn):
        return turn
    console.print("disturbed by other processes; taken again")
    return _take_undisturbed(slot, changes, console, tries - 1)


def _take(slot: Slot, changes: Changes) -> Turn:
    if slot.name == bare_turn.BARE:
        return bare_turn.take(slot)
    if slot.part == OPEN and not slot.loads[0].rate:
        return turns.failed(slot, "no peer's capacity is known: measure the part closed first")
    model = folders.GENERATOR if slot.part == GENERATE else folders.CLASSIFIER
    one = contender(slot.name, model, slot.dtype, changes)
    return turns.take(slot, one, folders.OUT / "servers" / f"{slot.name}-{slot.part}-{slot.dtype}")


def _line(turn: Turn) -> str:
    told = ", ".join(
        f"{m.load.label}: {m.rate:.1f}/s p99 {(m.p99_s or 0) * 1e3:.0f} ms{f' errors {m.errors}' if m.errors else ''}"
        for m in turn.measures
    )
    checked = "" if turn.checked is None or turn.checked.passed else "WRONG ANSWERS, "
    return f"{turn.part} {turn.dtype} round {turn.round + 1} {turn.name:10} {checked}{turn.failure[:200] or told}"


if __name__ == "__main__":
    raise SystemExit(main())
