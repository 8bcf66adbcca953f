"""`shoal datasets`: upload, show and delete datasets."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from shoal import types
from shoal.commands.arguments import add_json_option, open_client
from shoal.commands.output import ExitCode, local_time, print_json, print_pairs, size


def add_parser(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Declare the command."""
    parser = commands.add_parser("datasets", parents=[shared], help="upload, show, delete datasets")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    upload = actions.add_parser("upload", parents=[shared], help="store a csv, jsonl or parquet file; prints its name")
    upload.add_argument("path", type=Path, metavar="FILE")
    upload.add_argument("--format", choices=("csv", "jsonl", "parquet"), help="where the ending does not tell")
    upload.set_defaults(run=_upload)
    for name, function, help_text in (("show", _show, "size and format"), ("delete", _delete, "delete it")):
        action = actions.add_parser(name, parents=[shared], help=help_text)
        action.add_argument("name", metavar="NAME", help="dataset://<sha256>")
        action.set_defaults(run=function)
    for action in actions.choices.values():
        add_json_option(action)


def _upload(arguments: argparse.Namespace) -> int:
    with open_client(arguments) as client:
        dataset = client.upload_dataset(arguments.path, format=arguments.format)
    print_json(dataset) if arguments.json else print(dataset.name)
    return ExitCode.OK


def _show(arguments: argparse.Namespace) -> int:
    with open_client(arguments) as client:
        dataset = client.get_dataset(arguments.name)
    print_json(dataset) if arguments.json else _print_dataset(dataset)
    return ExitCode.OK


def _print_dataset(dataset: types.Dataset) -> None:
    print_pairs(
        {
            "name": dataset.name,
            "format": dataset.format,
            "size": size(dataset.size_bytes),
            "created": local_time(dataset.create_time),
        }
    )


def _delete(arguments: argparse.Namespace) -> int:
    with open_client(arguments) as client:
        client.delete_dataset(arguments.name)
    print_json({"deleted": arguments.name}) if arguments.json else print(f"{arguments.name} is deleted")
    return ExitCode.OK
