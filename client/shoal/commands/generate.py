"""`shoal generate`: a prompt or a conversation, streamed to the terminal."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from shoal import types
from shoal.commands.arguments import NamedModel, add_json_option, named_model, open_client
from shoal.commands.lines import read_all, stdin_is_terminal
from shoal.commands.output import ExitCode, duration, print_json, printable
from shoal.errors import FieldViolation, InvalidRequestError
from shoal.sync import Client

SAMPLING_OPTIONS = (
    ("--max-new-tokens", int, "N", "default: the server's"),
    ("--min-new-tokens", int, "N", "default: 0"),
    ("--temperature", float, "T", "0 to 10, 0 is greedy (default: 1)"),
    ("--top-k", int, "K", "keep the K likeliest tokens (default: all)"),
    ("--top-p", float, "P", "keep the likeliest tokens that make up P (default: 1)"),
    ("--min-p", float, "P", "keep tokens at least P times as likely as the likeliest (default: 0)"),
    ("--repetition-penalty", float, "R", "above 0, up to 10 (default: 1)"),
    ("--seed", int, "N", "the same seed gives the same text"),
    ("--logprobs", int, "N", "log-probabilities of tokens and of N alternatives; with --json"),
    ("--num-completions", int, "N", "1 to 16 (default: 1)"),
)


def add_parser(commands: Any, shared: argparse.ArgumentParser) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "generate",
        parents=[shared],
        help="continue a prompt or a conversation",
        description="Continues PROMPT or standard input. With --chat and no prompt, a terminal becomes a chat.",
    )
    parser.add_argument("model", type=named_model, metavar="MODEL", help="NAME, NAME@VERSION or NAME@LABEL")
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help="without one, standard input is read")
    parser.add_argument("--file", type=Path, help="read the prompt from here")
    parser.add_argument("--chat", action="store_true", help="the prompt is a message; uses the model's chat template")
    parser.add_argument("--system", metavar="TEXT", help="instructions for the whole conversation; implies --chat")
    for flag, kind, metavar, help_text in SAMPLING_OPTIONS:
        parser.add_argument(flag, type=kind, metavar=metavar, help=help_text)
    parser.add_argument("--stop", action="append", metavar="TEXT", help="end before this text; may be repeated")
    parser.add_argument("--ignore-eos", action="store_true", help="go on past the end of sequence")
    parser.add_argument("--priority", choices=("low", "normal", "high"))
    parser.add_argument("--stream", action="store_true", help="with --json: a line for each delta, then the summary")
    add_json_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Generate; the exit code."""
    chat = arguments.chat or arguments.system is not None
    interactive = chat and arguments.prompt is None and arguments.file is None and stdin_is_terminal()
    with open_client(arguments) as client:
        if interactive and not arguments.json:
            return _converse(client, arguments)
        if arguments.prompt is None and arguments.file is None and stdin_is_terminal():
            raise InvalidRequestError.of([FieldViolation(field="PROMPT", description="is missing")])
        text = arguments.prompt if arguments.prompt is not None else read_all(arguments.file)
        options = _options(arguments)
        if chat:
            options["messages"] = [*_system(arguments), types.ChatMessage(role="user", content=text)]
        return _answer(client, arguments, None if chat else text, options)


def _options(arguments: argparse.Namespace) -> types.GenerateOptions:
    model: NamedModel = arguments.model
    names = [flag.removeprefix("--").replace("-", "_") for flag, *_ in SAMPLING_OPTIONS]
    given = {name: getattr(arguments, name) for name in [*names, "stop", "priority"]}
    options = types.GenerateOptions(version=model.version, label=model.label, ignore_eos=arguments.ignore_eos)
    options.update({name: value for name, value in given.items() if value is not None})  # type: ignore[typeddict-item]
    return options


def _system(arguments: argparse.Namespace) -> list[types.AnyChatMessage]:
    return [types.ChatMessage(role="system", content=arguments.system)] if arguments.system is not None else []


def _answer(client: Client, arguments: argparse.Namespace, prompt: str | None, options: types.GenerateOptions) -> int:
    name = arguments.model.name
    if arguments.json and arguments.stream:
        with client.stream_generate(name, prompt, **options) as stream:
            for delta in stream:
                print_json({"delta": delta})
                sys.stdout.flush()
            print_json({"summary": stream.summary})
    elif arguments.json:
        print_json(client.generate(name, prompt, **options))
    elif (arguments.num_completions or 1) > 1:
        _print_completions(client.generate(name, prompt, **options))
    else:
        _stream(client, name, prompt, options)
    return ExitCode.OK


def _stream(client: Client, name: str, prompt: str | None, options: types.GenerateOptions) -> str:
    """Print text as it comes; all of it is returned."""
    pieces: list[str] = []
    for_person = sys.stdout.isatty()
    with client.stream_generate(name, prompt, **options) as stream:
        for delta in stream:
            pieces.append(delta.text)
            sys.stdout.write(printable(delta.text) if for_person else delta.text)
            sys.stdout.flush()
        sys.stdout.write("\n")
        _print_summary(stream.summary)
    return "".join(pieces)


def _print_completions(result: types.GenerateResult) -> None:
    for_person = sys.stdout.isatty()
    for index, completion in enumerate(result.completions):
        print(f"--- {index + 1} of {len(result.completions)}: {completion.finish_reason}")
        print(printable(completion.text) if for_person else completion.text)
    _print_summary(result.summary)


def _print_summary(summary: types.GenerationSummary) -> None:
    """A last line for a person; a pipe gets the text alone."""
    if not sys.stderr.isatty():
        return
    first_s = summary.time_to_first_token_s
    parts = [
        f"{summary.served_by.model}@{summary.served_by.version}",
        f"{summary.num_prompt_tokens} + {summary.num_output_tokens} tokens",
        f"in {duration(summary.timings.queue_s + summary.timings.run_s)}",
        *([] if first_s is None else [f"first after {first_s * 1000:.0f} ms"]),
        ", ".join(completion.finish_reason for completion in summary.completions),
    ]
    print(" · ".join(parts), file=sys.stderr)


def _converse(client: Client, arguments: argparse.Namespace) -> int:
    """Turn by turn until the input ends; Ctrl-C ends a reply, and twice the conversation."""
    messages = _system(arguments)
    print(f"Chat with {arguments.model.name}; Ctrl-D ends it.", file=sys.stderr)
    while True:
        try:
            text = input("> ")
        except EOFError:
            print(file=sys.stderr)
            return ExitCode.OK
        if not text.strip():
            continue
        options = _options(arguments)
        options["messages"] = [*messages, types.ChatMessage(role="user", content=text)]
        try:
            reply = _stream(client, arguments.model.name, None, options)
        except KeyboardInterrupt:
            print(" (cut off)", file=sys.stderr)
            continue
        messages = [*options["messages"], types.ChatMessage(role="assistant", content=reply)]
