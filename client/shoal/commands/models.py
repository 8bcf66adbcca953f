"""`shoal models`: list and show what is served, load, unload, delete versions, set labels."""

from __future__ import annotations

import argparse
from typing import Any

from shoal import types
from shoal.commands.arguments import NamedModel, add_json_option, named_version, open_client, optional_version
from shoal.commands.output import (
    ExitCode,
    duration,
    figures,
    local_time,
    print_json,
    print_pairs,
    print_table,
    printable,
    size,
)


def add_parser(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Declare the command."""
    parser = commands.add_parser("models", parents=[shared], help="list, show, load, unload, delete, label models")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    actions.add_parser("list", parents=[shared], help="all models").set_defaults(run=_list)
    show = actions.add_parser("show", parents=[shared], help="a model's versions, states, and why one was refused")
    show.add_argument("name", metavar="NAME")
    show.set_defaults(run=_show)
    for name, function, kind, metavar, help_text in (
        ("load", _load, optional_version, "NAME[@VERSION]", "load a version, by default the newest, and wait"),
        ("unload", _unload, optional_version, "NAME[@VERSION]", "unload a version or all; it stays so until loaded"),
        ("delete", _delete, named_version, "NAME@VERSION", "delete a version that is not served"),
    ):
        action = actions.add_parser(name, parents=[shared], help=help_text)
        action.add_argument("model", type=kind, metavar=metavar)
        action.set_defaults(run=function)
    label = actions.add_parser("label", parents=[shared], help="point a label at a version, or remove it")
    label.add_argument(
        "model", type=optional_version, metavar="NAME[@VERSION]", help="without a version: with --remove"
    )
    label.add_argument("label", metavar="LABEL")
    label.add_argument("--remove", action="store_true", help="remove the label")
    label.add_argument("--expect", type=int, metavar="VERSION", help="only if it points there now; 0: nowhere")
    label.set_defaults(run=_label, parser=label)
    for action in actions.choices.values():
        add_json_option(action)


def _list(arguments: argparse.Namespace) -> int:
    with open_client(arguments) as client:
        models = client.list_models()
    if arguments.json:
        print_json({"models": models})
        return ExitCode.OK
    rows = [
        (
            model.name,
            model.kind,
            model.default_version or "-",
            ", ".join(f"{version.version} {version.state}" for version in model.versions),
            ", ".join(f"{label} → {version.version}" for version in model.versions for label in version.labels),
        )
        for model in models
    ]
    print_table(("name", "kind", ">default", "versions", "labels"), rows)
    return ExitCode.OK


def _show(arguments: argparse.Namespace) -> int:
    with open_client(arguments) as client:
        model = client.get_model(arguments.name)
    if arguments.json:
        print_json(model)
    else:
        _print_model(model)
    return ExitCode.OK


def _print_model(model: types.Model) -> None:
    newest = model.versions[0] if model.versions else None
    print_pairs(
        {
            "name": model.name,
            "kind": model.kind,
            "default version": model.default_version or "none",
            "architecture": newest.architecture if newest else "",
            "head": newest.head if newest else "",
            "classes": ", ".join(newest.class_labels) if newest else "",
            "longest input": f"{newest.max_tokens:,} tokens" if newest and newest.max_tokens else "",
            "chat template": "yes" if newest and newest.chat else "",
        }
    )
    rows = [
        (
            version.version,
            version.state,
            ", ".join(version.labels),
            local_time(version.publish_time),
            size(version.weight_bytes) if version.weight_bytes else "",
            size(version.memory_bytes) if version.memory_bytes else "",
            "" if version.load_s is None else duration(version.load_s),
            version.execution,
            version.compute_dtype,
            figures(version.metrics),
        )
        for version in model.versions
    ]
    print_table(
        (
            ">version",
            "state",
            "labels",
            "published",
            ">weights",
            ">memory",
            ">load",
            "execution",
            "computes in",
            "evaluation",
        ),
        rows,
    )
    for version in model.versions:
        if version.reason:
            print(f"version {version.version} was refused: {printable(version.reason)}")


def _load(arguments: argparse.Namespace) -> int:
    with open_client(arguments) as client:
        version = client.load_model(arguments.model.name, arguments.model.version)
    if arguments.json:
        print_json(version)
    else:
        print(f"{arguments.model.name}@{version.version} is {version.state}")
    return ExitCode.OK


def _unload(arguments: argparse.Namespace) -> int:
    model: NamedModel = arguments.model
    with open_client(arguments) as client:
        versions = client.unload_model(model.name, model.version)
    if arguments.json:
        print_json({"model": model.name, "draining": versions})
    elif versions:
        print(f"{model.name}: draining {', '.join(str(version) for version in versions)}")
    else:
        print(f"{model.name}: nothing was live; it stays unloaded")
    return ExitCode.OK


def _delete(arguments: argparse.Namespace) -> int:
    model: NamedModel = arguments.model
    assert model.version is not None
    with open_client(arguments) as client:
        client.delete_model_version(model.name, model.version)
    if arguments.json:
        print_json({"model": model.name, "deleted": model.version})
    else:
        print(f"{model.name}@{model.version} is deleted")
    return ExitCode.OK


def _label(arguments: argparse.Namespace) -> int:
    target: NamedModel = arguments.model
    if arguments.remove == (target.version is not None):
        arguments.parser.error("give either NAME@VERSION, or NAME with --remove")
    with open_client(arguments) as client:
        model = client.set_model_label(target.name, arguments.label, target.version, expected_version=arguments.expect)
    if arguments.json:
        print_json(model)
    elif target.version is None:
        print(f"{target.name}: label {arguments.label} is removed")
    else:
        print(f"{target.name}: label {arguments.label} points at version {target.version}")
    return ExitCode.OK
