"""Arguments that several commands share, and the client made from them."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from shoal.sync import Client


@dataclass(frozen=True, slots=True, kw_only=True)
class NamedModel:
    """A model as a person names it: NAME, NAME@VERSION or NAME@LABEL."""

    name: str
    version: int | None = None
    label: str | None = None


def named_model(text: str) -> NamedModel:
    """Read a model's name.

    Raises:
        ArgumentTypeError: nothing stands before or behind the "@".
    """
    name, separator, selector = text.partition("@")
    if not name or (separator and not selector):
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME, NAME@VERSION or NAME@LABEL")
    if selector.isascii() and selector.isdigit():
        return NamedModel(name=name, version=int(selector))
    return NamedModel(name=name, label=selector or None)


def named_version(text: str) -> NamedModel:
    """Read a model's name with its version.

    Raises:
        ArgumentTypeError: there is no version.
    """
    model = named_model(text)
    if model.version is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME@VERSION")
    return model


def optional_version(text: str) -> NamedModel:
    """Read a model's name with or without a version.

    Raises:
        ArgumentTypeError: a label stands where the version should.
    """
    model = named_model(text)
    if model.label is not None:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME or NAME@VERSION")
    return model


def open_client(arguments: argparse.Namespace) -> Client:
    """A client of the server that the global options name."""
    return Client(
        arguments.address,
        token_file=arguments.token_file,
        tls_ca=arguments.tls_ca,
        timeout=arguments.timeout,
    )


def add_json_option(parser: argparse.ArgumentParser) -> None:
    """`--json`."""
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
