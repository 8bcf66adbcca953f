"""`shoal jobs`: list, show, watch, cancel and delete training jobs."""

from __future__ import annotations

import argparse
from typing import Any

from shoal import types
from shoal.commands.arguments import add_json_option, open_client
from shoal.commands.follow import follow
from shoal.commands.output import ExitCode, figures, local_time, print_json, print_pairs, print_table, print_tree
from shoal.spec import spec_tree


def add_parser(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Declare the command."""
    parser = commands.add_parser("jobs", parents=[shared], help="list, show, watch, cancel, delete training jobs")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    listing = actions.add_parser("list", parents=[shared], help="newest first")
    listing.add_argument("--limit", type=int, default=20, help="most jobs to list (default: 20)")
    listing.set_defaults(run=_list)
    for name, function, help_text in (
        ("show", _show, "all about a job, its spec with every default"),
        ("watch", _watch, "its events from the first, then those to come"),
        ("cancel", _cancel, "stop it"),
        ("delete", _delete, "forget a job that has ended; what it published stays"),
    ):
        action = actions.add_parser(name, parents=[shared], help=help_text)
        action.add_argument("id", metavar="ID")
        action.set_defaults(run=function)
    for action in actions.choices.values():
        add_json_option(action)


def _list(arguments: argparse.Namespace) -> int:
    with open_client(arguments) as client:
        jobs = client.list_training_jobs(limit=arguments.limit)
    if arguments.json:
        print_json({"jobs": jobs})
    else:
        rows = [
            (job.id, job.spec.name, job.state, _share(job), _published(job), local_time(job.create_time))
            for job in jobs
        ]
        print_table(("id", "model", "state", ">done", "published", "created"), rows)
    return ExitCode.OK


def _show(arguments: argparse.Namespace) -> int:
    with open_client(arguments) as client:
        job = client.get_training_job(arguments.id)
    if arguments.json:
        print_json(job)
        return ExitCode.OK
    print_pairs(
        {
            "id": job.id,
            "state": job.state,
            "failure": f"{job.failure.reason}: {job.failure.message}" if job.failure else "",
            "done": _share(job),
            "published": _published(job),
            "evaluation": figures(job.metrics),
            "created": local_time(job.create_time),
            "started": local_time(job.start_time),
            "ended": local_time(job.end_time),
            "attempts": job.num_attempts,
        }
    )
    print("\nspec:")
    print_tree(spec_tree(job.spec), indent=2)
    return ExitCode.OK


def _watch(arguments: argparse.Namespace) -> int:
    with open_client(arguments) as client:
        return follow(client, arguments.id, as_json=arguments.json)


def _cancel(arguments: argparse.Namespace) -> int:
    with open_client(arguments) as client:
        job = client.cancel_training_job(arguments.id)
    print_json(job) if arguments.json else print(f"{job.id} is {job.state}")
    return ExitCode.OK


def _delete(arguments: argparse.Namespace) -> int:
    with open_client(arguments) as client:
        client.delete_training_job(arguments.id)
    print_json({"deleted": arguments.id}) if arguments.json else print(f"{arguments.id} is deleted")
    return ExitCode.OK


def _share(job: types.TrainingJob) -> str:
    if job.progress is None or job.progress.total_steps == 0:
        return ""
    return f"{100 * job.progress.step / job.progress.total_steps:.0f} %"


def _published(job: types.TrainingJob) -> str:
    return f"{job.spec.name}@{job.published_version}" if job.published_version else ""
