"""The `shoal` command: reads its arguments, runs a command, turns errors into one line and an exit code.

Exit codes:
    0    done
    1    failed; also: some inputs failed, a training job failed
    2    the command line, a spec or a request is wrong
    3    not found: model, version, label, job, dataset or file
    4    not now: the server cannot be reached, is busy, or the timeout passed; try again
    5    not allowed: the token is missing, unknown or too weak
    6    the training job was cancelled
    130  interrupted by Ctrl-C
    141  the reader of the output went away
"""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence

from shoal.channel import client_version
from shoal.commands import classify, datasets, external, generate, jobs, models, train
from shoal.commands.output import ExitCode
from shoal.commands.parser import FreeOrderParser
from shoal.errors import (
    ConfigurationError,
    DeadlineError,
    ExhaustedError,
    ForbiddenError,
    InvalidRequestError,
    NotFoundError,
    RpcError,
    ServerFaultError,
    ShoalError,
    UnauthenticatedError,
    UnavailableError,
)

EXIT_CODES: tuple[tuple[type[ShoalError], ExitCode], ...] = (
    (InvalidRequestError, ExitCode.USAGE),
    (ConfigurationError, ExitCode.USAGE),
    (NotFoundError, ExitCode.NOT_FOUND),
    (UnavailableError, ExitCode.NOT_NOW),
    (ExhaustedError, ExitCode.NOT_NOW),
    (DeadlineError, ExitCode.NOT_NOW),
    (UnauthenticatedError, ExitCode.NOT_ALLOWED),
    (ForbiddenError, ExitCode.NOT_ALLOWED),
)
COMMANDS = (classify, generate, train, jobs, models, datasets)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        code = _run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    except BrokenPipeError:
        _discard_output()
        return ExitCode.BROKEN_PIPE
    except SystemExit as ended:  # argparse has printed why
        return ended.code if isinstance(ended.code, int) else ExitCode.FAILED
    except ShoalError as error:
        _print_error(error)
        return exit_code(error)
    except OSError as error:
        what = f"{error.filename}: " if error.filename else ""
        print(f"shoal: {what}{error.strerror or error}", file=sys.stderr)
        return ExitCode.NOT_FOUND if isinstance(error, FileNotFoundError) else ExitCode.FAILED
    return code


def exit_code(error: ShoalError) -> ExitCode:
    """The exit code that tells of an error."""
    return next((code for cls, code in EXIT_CODES if isinstance(error, cls)), ExitCode.FAILED)


def build_parser() -> argparse.ArgumentParser:
    """The parser of everything but the commands that other packages own."""
    description = "Train, publish, hot-load and serve language models."
    parser = FreeOrderParser(
        prog="shoal",
        description=description,
        epilog=(__doc__ or "").partition("\n\n")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"shoal {client_version()}")
    _add_global_options(parser, None)
    shared = argparse.ArgumentParser(add_help=False)
    _add_global_options(shared, argparse.SUPPRESS)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for module in COMMANDS:
        module.add_parser(commands, shared)
    for name, help_text in external.known_commands().items():
        commands.add_parser(name, help=help_text, add_help=False)
    return parser


def _add_global_options(parser: argparse.ArgumentParser, default: str | None) -> None:
    group = parser.add_argument_group("server")
    group.add_argument(
        "--address", default=default, metavar="HOST:PORT", help="else $SHOAL_ADDRESS, else 127.0.0.1:50051"
    )
    group.add_argument("--token-file", default=default, metavar="FILE", help="bearer token; else $SHOAL_TOKEN_FILE")
    group.add_argument("--tls-ca", default=default, metavar="FILE", help="PEM authority; else $SHOAL_TLS_CA")
    group.add_argument(
        "--timeout", default=default, type=float, metavar="SECONDS", help="of each call; default: what suits it"
    )


def _run(arguments: list[str]) -> int:
    plugin = external.find(arguments)
    if plugin is not None:
        return plugin.run()
    parsed = build_parser().parse_args(arguments)
    if not hasattr(parsed, "run"):  # an external command behind global options
        raise ConfigurationError("serve, config and import take no options before their name")
    code: int = parsed.run(parsed)
    return code


def _print_error(error: ShoalError) -> None:
    print(f"shoal: {error}", file=sys.stderr)
    if not isinstance(error, RpcError):
        return
    for violation in error.violations:
        line = f"{violation.field}: {violation.description}"
        if line not in str(error):
            print(f"  {line}", file=sys.stderr)
    if error.retry_after_s is not None:
        print(f"  try again in {error.retry_after_s:g} s", file=sys.stderr)
    if isinstance(error, ServerFaultError) and error.request_id:
        print(f"  the server's log knows this request as {error.request_id}", file=sys.stderr)


def _discard_output() -> None:
    """Nobody reads any more; keep the interpreter from complaining about it at its end."""
    try:
        descriptor = sys.stdout.fileno()
    except io.UnsupportedOperation:
        return
    os.dup2(os.open(os.devnull, os.O_WRONLY), descriptor)


if __name__ == "__main__":
    sys.exit(main())
