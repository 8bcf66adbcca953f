"""Commands that training adds to the `shoal` command, found through entry points. No torch here."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

from rich.console import Console

from shoal_training.failures import EXIT_BAD_SPEC, EXIT_STOPPED
from shoal_training.follow import follow
from shoal_training.job import EVENTS_NAME, ORDER_NAME, RESULT_NAME, write_json
from shoal_training.places import Places
from shoal_training.resolve import SpecRefused, resolve
from shoal_training.spec import Spec, SpecFileError, load_yaml

LOG_NAME = "log.txt"


def train_local(argv: list[str]) -> int:
    """`shoal train SPEC --local`: train without a server and publish into a folder.

    Returns 0 when a version was published, 75 when it was interrupted and can go on, 64 for a bad spec, else the job's
    exit code.
    """
    arguments = _parse(argv)
    console = Console(stderr=True)
    folder: Path = arguments.job_dir or Path(".shoal/local") / f"{arguments.spec.stem}-{uuid.uuid4().hex[:8]}"
    try:
        spec, places = _resolve(arguments)
        if arguments.dry_run:
            sys.stdout.write(json.dumps(spec.to_tree(), indent=2) + "\n")
            return 0
        _write_order(folder, spec, places, arguments.threads)
    except (SpecFileError, SpecRefused) as error:
        _tell_refusal(console, error)
        return EXIT_BAD_SPEC
    except OSError as error:
        console.print(f"{folder}: {error.strerror}", style="red", markup=False)
        return 1
    code = _run(folder, console)
    return _tell_end(folder, code, console, as_json=arguments.json)


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="shoal train --local", description="Train without a server.")
    parser.add_argument("spec", type=Path, help="YAML file with the fields of TrainingSpec")
    parser.add_argument("--repository", type=Path, default=Path("./models"), help="where versions are published")
    parser.add_argument(
        "--job-dir", type=Path, help="job folder; one that was interrupted goes on (default: a new one)"
    )
    parser.add_argument("--threads", type=int, default=_num_cores(), help="threads of computation (default: all cores)")
    parser.add_argument("--dry-run", action="store_true", help="only check, and show the spec with every default")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    arguments = parser.parse_args(argv)
    if arguments.threads < 1:
        parser.error("--threads must be at least 1")
    return arguments


def _resolve(arguments: argparse.Namespace) -> tuple[Spec, Places]:
    """The spec; its names are looked up beside the file, then in the current folder, and may lead anywhere."""
    roots = (arguments.spec.resolve().parent, Path.cwd(), Path("/"))
    places = Places(repository=arguments.repository.resolve(), data_roots=roots, dataset_dir=None)
    return resolve(load_yaml(arguments.spec), places), places


def _write_order(folder: Path, spec: Spec, places: Places, num_threads: int) -> None:
    """Make, or go on with, the job folder."""
    folder.mkdir(parents=True, exist_ok=True)
    earlier: dict[str, Any] = {}
    if (folder / ORDER_NAME).exists():
        earlier = json.loads((folder / ORDER_NAME).read_bytes())
    (folder / RESULT_NAME).unlink(missing_ok=True)
    order = {
        "job_id": earlier.get("job_id", f"local-{uuid.uuid4().hex}"),
        "spec": spec.to_tree(),
        "repository": str(places.repository),
        "dataset_dir": None,
        "data_roots": [str(root) for root in places.data_roots],
        "attempt": earlier.get("attempt", 0) + 1,
        "num_threads": num_threads,
    }
    write_json(folder / ORDER_NAME, order)


def _run(folder: Path, console: Console) -> int:
    """Start the trainer and show its events until it ends; an interrupt asks it to save and stop."""
    events = folder / EVENTS_NAME
    begin = events.stat().st_size if events.exists() else 0
    with (folder / LOG_NAME).open("ab") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "shoal_training.run", str(folder.resolve())],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        follow(events, begin, lambda: process.poll() is None, console)
    except KeyboardInterrupt:
        console.print("stopping; a checkpoint is being saved")
        process.send_signal(signal.SIGTERM)
    return _wait(process, console)


def _wait(process: subprocess.Popen[bytes], console: Console) -> int:
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            console.print("still saving; interrupted again, it is killed")
            process.kill()


def _tell_end(folder: Path, code: int, console: Console, *, as_json: bool) -> int:
    result_path = folder / RESULT_NAME
    if code == EXIT_STOPPED:
        console.print(f"stopped; go on with the same command and --job-dir {folder}", markup=False)
        return code
    if not result_path.exists():
        console.print(f"the trainer died with exit code {code}; see {folder / LOG_NAME}", style="red", markup=False)
        return code or 1
    result = json.loads(result_path.read_bytes())
    if as_json:
        sys.stdout.write(json.dumps(result) + "\n")
    if result["state"] != "succeeded":
        told = f"{result['failure_reason'].upper()}: {result['failure_message']}"
        console.print(told, style="red", markup=False)
    return code


def _tell_refusal(console: Console, error: SpecFileError | SpecRefused) -> None:
    lines = [str(error)]
    if isinstance(error, SpecRefused):
        lines = [f"{item.field or 'spec'}: {item.description}" for item in error.violations]
    for line in lines:
        console.print(line, style="red", markup=False)


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
