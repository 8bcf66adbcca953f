"""`shoal classify`: texts from the command line at once, lines of a file or pipe as a stream."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

from shoal import types
from shoal.commands.arguments import NamedModel, add_json_option, named_model, open_client
from shoal.commands.classified import Line, print_outcome, print_reply
from shoal.commands.lines import parse_line, read_lines, stdin_is_terminal
from shoal.commands.output import ExitCode, excerpt, print_json
from shoal.sync import Client

# A stream ends and another begins after so many lines, so that none outlives the age a server allows connections.
LINES_PER_STREAM = 20_000


def add_parser(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "classify",
        parents=[shared],
        help="score texts, or label their tokens, with a classifier",
        description="Scores TEXTs, or the lines of a file or of standard input in their order. A token model finds "
        "spans in them.",
    )
    parser.add_argument("model", type=named_model, metavar="MODEL", help="NAME, NAME@VERSION or NAME@LABEL")
    parser.add_argument("texts", nargs="*", metavar="TEXT", help="what to classify; without any, lines are read")
    parser.add_argument("--file", type=Path, help="read lines from here instead of standard input")
    parser.add_argument(
        "--lines",
        choices=("text", "pairs", "json"),
        default="text",
        help="what a line (or TEXT) is: a text, two texts with a tab between, or JSON (default: text)",
    )
    parser.add_argument("--top-k", type=int, metavar="N", help="labels to show (default: the best; with --json all)")
    parser.add_argument("--scores", choices=("probabilities", "logits"), help="default: probabilities")
    parser.add_argument("--overflow", choices=("refuse", "truncate_end", "truncate_start", "windows"))
    parser.add_argument("--pooling", choices=("mean", "max"), help="how windows are joined (default: mean)")
    parser.add_argument(
        "--aggregation",
        choices=("none", "simple", "first", "average", "max"),
        help="token models: how tokens become spans, as in transformers' pipeline (default: none)",
    )
    parser.add_argument(
        "--ignore-labels",
        metavar="NAMES",
        help='token models: spans to leave out, with commas between; "" leaves none out (default: O)',
    )
    parser.add_argument("--priority", choices=("low", "normal", "high"))
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Classify; the exit code."""
    with open_client(arguments) as client:
        if arguments.texts:
            return _classify_texts(client, arguments)
        if arguments.file is None and stdin_is_terminal():
            print("shoal: reading lines from the terminal; Ctrl-D ends them", file=sys.stderr)
        return _classify_lines(client, arguments)


def _options(arguments: argparse.Namespace) -> types.ClassifyOptions:
    model: NamedModel = arguments.model
    options = types.ClassifyOptions(version=model.version, label=model.label)
    if arguments.top_k is not None:
        options["top_k"] = arguments.top_k
    if arguments.scores:
        options["scores"] = arguments.scores
    if arguments.overflow:
        options["overflow"] = arguments.overflow
    if arguments.pooling:
        options["pooling"] = arguments.pooling
    if arguments.aggregation:
        options["aggregation"] = arguments.aggregation
    if arguments.ignore_labels is not None:
        options["ignore_labels"] = [name for name in arguments.ignore_labels.split(",") if name]
    if arguments.priority:
        options["priority"] = arguments.priority
    return options


def _num_labels(arguments: argparse.Namespace) -> int | None:
    """How many labels are shown of each input; None: what the server sent."""
    return 1 if arguments.top_k is None else None


def _classify_texts(client: Client, arguments: argparse.Namespace) -> int:
    lines = [_line(number, text, arguments.lines) for number, text in enumerate(arguments.texts, start=1)]
    reply = client.classify(arguments.model.name, [line.content for line in lines], **_options(arguments))
    if arguments.json:
        print_json(reply)
    else:
        print_reply(reply, lines, _num_labels(arguments))
    return ExitCode.OK


def _classify_lines(client: Client, arguments: argparse.Namespace) -> int:
    numbered = enumerate(read_lines(arguments.file))
    num_lines = num_failed = 0
    first_failure = ""
    while (first := next(numbered, None)) is not None:
        lines: dict[int, Line] = {}
        inputs = _parse(chain([first], islice(numbered, LINES_PER_STREAM - 1)), arguments.lines, lines)
        offset = first[0]
        with client.classify_stream(arguments.model.name, inputs, **_options(arguments)) as outcomes:
            for outcome in outcomes:
                index = offset + outcome.index
                num_lines += 1
                print_outcome(index, outcome, lines.pop(index), _num_labels(arguments), as_json=arguments.json)
                if outcome.error is not None:
                    num_failed += 1
                    first_failure = first_failure or f"line {index + 1}: {outcome.error}"
    if num_failed:
        print(f"shoal: {num_failed:,} of {num_lines:,} lines failed; the first: {first_failure}", file=sys.stderr)
        return ExitCode.FAILED
    return ExitCode.OK


def _parse(numbered: Iterator[tuple[int, str]], kind: str, lines: dict[int, Line]) -> Iterator[types.ClassifyInput]:
    for index, text in numbered:
        lines[index] = _line(index + 1, text, kind)
        yield lines[index].content


def _line(number: int, text: str, kind: str) -> Line:
    return Line(text=excerpt(text), content=parse_line(number, text, kind))
