"""`shoal train`: upload the data that a spec names, submit it, follow the job."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from shoal.commands.arguments import add_json_option, open_client
from shoal.commands.follow import follow
from shoal.commands.output import ExitCode, console, print_json, print_tree
from shoal.commands.spec_file import local_data, read_spec_file, with_datasets
from shoal.spec import parse_spec, spec_tree
from shoal.sync import Client


def add_parser(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "train",
        parents=[shared],
        help="train a model from a spec",
        description="Uploads the local files that SPEC names as data, submits it and follows the job. Ctrl-C detaches.",
    )
    parser.add_argument("spec", metavar="SPEC", help="YAML or JSON file; - for standard input")
    parser.add_argument("--dry-run", action="store_true", help="upload and check, show the spec with every default")
    parser.add_argument("--detach", action="store_true", help="submit, print the job's id and leave")
    parser.add_argument(
        "--request-id", metavar="ID", help="repeating a submission with the same id makes no second job"
    )
    parser.add_argument("--local", action="store_true", help="train in this process, without a server")
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Train; the exit code."""
    path = None if arguments.spec == "-" else Path(arguments.spec)
    tree = read_spec_file(path)
    parse_spec(tree)  # names every mistake before anything is uploaded
    with open_client(arguments) as client:
        files = local_data(tree, path.parent if path is not None else Path())
        spec = parse_spec(with_datasets(tree, {field: _upload(client, file) for field, file in files.items()}))
        if arguments.dry_run:
            resolved = spec_tree(client.create_training_job(spec, validate_only=True).spec)
            print_json(resolved) if arguments.json else print_tree(resolved)
            return ExitCode.OK
        given = {"request_id": arguments.request_id} if arguments.request_id else {}
        job = client.create_training_job(spec, **given)
        if arguments.detach:
            print_json(job) if arguments.json else print(job.id)
            return ExitCode.OK
        print(f"job {job.id}", file=sys.stderr)
        return follow(client, job.id, as_json=arguments.json)


def _upload(client: Client, path: Path) -> str:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=console(stderr=True), transient=True, disable=not sys.stderr.isatty()) as progress:
        task = progress.add_task(f"uploading {path.name}", total=None)

        def show(num_sent: int, num_bytes: int) -> None:
            progress.update(task, completed=num_sent, total=num_bytes)

        return client.upload_dataset(path, on_progress=show).name
