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
from shoal.commands.lines import parse_line, read_lines, stdin_is_terminal
from shoal.commands.output import ExitCode, excerpt, print_json, print_table
from shoal.errors import RpcError
from shoal.sync import Client

# A stream ends and another begins after so many lines, so that none outlives the age a server allows connections.
LINES_PER_STREAM = 20_000


def add_parser(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "classify",
        parents=[shared],
        help="score texts with a classifier",
        description="Scores TEXTs, or the lines of a file or of standard input in their order.",
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
    elif not arguments.json:
        options["top_k"] = 1
    if arguments.scores:
        options["scores"] = arguments.scores
    if arguments.overflow:
        options["overflow"] = arguments.overflow
    if arguments.priority:
        options["priority"] = arguments.priority
    return options


def _classify_texts(client: Client, arguments: argparse.Namespace) -> int:
    inputs = [parse_line(number, text, arguments.lines) for number, text in enumerate(arguments.texts, start=1)]
    reply = client.classify(arguments.model.name, inputs, **_options(arguments))
    if arguments.json:
        print_json(reply)
        return ExitCode.OK
    rows = [
        (excerpt(text) if place == 0 else "", scored.label, f"{scored.score:.4f}")
        for text, result in zip(arguments.texts, reply, strict=True)
        for place, scored in enumerate(result.ranking)
    ]
    print_table(("text", "label", ">score"), rows, title=f"{reply.served_by.model}@{reply.served_by.version}")
    return ExitCode.OK


def _classify_lines(client: Client, arguments: argparse.Namespace) -> int:
    lines = enumerate(read_lines(arguments.file))
    num_lines = num_failed = 0
    first_failure = ""
    while (first := next(lines, None)) is not None:
        texts: dict[int, str] = {}
        inputs = _parse(chain([first], islice(lines, LINES_PER_STREAM - 1)), arguments.lines, texts)
        offset = first[0]
        with client.classify_stream(arguments.model.name, inputs, **_options(arguments)) as outcomes:
            for outcome in outcomes:
                index = offset + outcome.index
                num_lines += 1
                _print_outcome(index, outcome, texts.pop(index, ""), as_json=arguments.json)
                if outcome.error is not None:
                    num_failed += 1
                    first_failure = first_failure or f"line {index + 1}: {outcome.error}"
    if num_failed:
        print(f"shoal: {num_failed:,} of {num_lines:,} lines failed; the first: {first_failure}", file=sys.stderr)
        return ExitCode.FAILED
    return ExitCode.OK


def _parse(lines: Iterator[tuple[int, str]], kind: str, texts: dict[int, str]) -> Iterator[types.ClassifyInput]:
    for index, line in lines:
        texts[index] = excerpt(line)
        yield parse_line(index + 1, line, kind)


def _print_outcome(index: int, outcome: types.StreamedClassification, text: str, *, as_json: bool) -> None:
    if as_json:
        print_json({"index": index, **_as_json(outcome)})
    elif outcome.error is not None:
        sys.stdout.write(f"error\t{outcome.error.code.name}\t{text}\n")
    elif outcome.result is not None:
        scored = "\t".join(f"{label}\t{score:.4f}" for label, score in outcome.result.ranking)
        sys.stdout.write(f"{scored}\t{text}\n")
    sys.stdout.flush()  # whoever feeds the pipe may wait for the answer


def _as_json(outcome: types.StreamedClassification) -> dict[str, object]:
    if outcome.error is not None:
        return {"error": _error_as_json(outcome.error)}
    assert outcome.result is not None
    assert outcome.served_by is not None
    result = outcome.result
    return {
        "labels": result.labels,
        "scores": result.scores,
        "num_input_tokens": result.num_input_tokens,
        "num_dropped_tokens": result.num_dropped_tokens,
        "num_windows": result.num_windows,
        "model": outcome.served_by.model,
        "version": outcome.served_by.version,
    }


def _error_as_json(error: RpcError) -> dict[str, object]:
    return {"code": error.code.name, "reason": error.reason, "message": error.message, "violations": error.violations}
