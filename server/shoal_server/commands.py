"""The commands that the server adds to `shoal`: `serve` and `config`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path

from shoal_server.config import ENV_PREFIX, ConfigError, ServerConfig, dump_config, load_config, split_address

EXIT_BAD_CONFIG = 2

# Flags that are nothing but configuration keys.
_KEY_FLAGS = {
    "models": "repository.path",
    "state_dir": "state_dir",
    "device": "engine.device",
    "dtype": "engine.dtype",
    "engines": "engine.num_engines",
    "fronts": "listen.num_fronts",
    "log_level": "log.level",
    "log_format": "log.format",
}


def serve(argv: list[str]) -> int:
    """`shoal serve`: run a server until it is told to stop; returns its exit code."""
    flags = _serve_parser().parse_args(argv)
    try:
        config = _configure(flags)
    except ConfigError as error:
        return _complain(error)
    from shoal_server.app import run_server  # control's imports only once a server is wanted

    return run_server(config)


def config(argv: list[str]) -> int:
    """`shoal config check FILE` and `shoal config show [FILE]`."""
    parser = argparse.ArgumentParser(prog="shoal config", description="Look at a server's configuration.")
    actions = parser.add_subparsers(dest="action", required=True)
    check = actions.add_parser("check", help="check a file; exit code 0 when it is good, 2 when not")
    check.add_argument("file", type=Path)
    show = actions.add_parser("show", help="print the whole configuration, every default written out")
    show.add_argument("file", type=Path, nargs="?")
    flags = parser.parse_args(argv)
    try:
        loaded = load_config(flags.file)
    except ConfigError as error:
        return _complain(error)
    sys.stdout.write(f"{flags.file} is good\n" if flags.action == "check" else dump_config(loaded))
    return 0


def _serve_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="shoal serve",
        description="Serve and train the models of a repository. Flags win over SHOAL_SERVER__* and the file.",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="YAML file; `shoal config show` prints one")
    parser.add_argument("--insecure", action="store_true", help="listen on any address without TLS and tokens")
    parser.add_argument("--host", help="address for gRPC (127.0.0.1)")
    parser.add_argument("--port", type=int, help="port for gRPC (50051); 0 takes a free one")
    parser.add_argument("--metrics-port", type=int, help="port for /metrics (9090); 0 takes a free one")
    parser.add_argument("--models", metavar="FOLDER", help="repository of models (./models)")
    parser.add_argument("--state-dir", metavar="FOLDER", help="jobs, datasets, labels (./.shoal)")
    parser.add_argument("--device", help='"cpu", "cuda", "cuda:1" or "auto"')
    parser.add_argument("--dtype", choices=["auto", "float32", "bfloat16", "float16", "int8"])
    parser.add_argument("--engines", type=int, metavar="N", help="engine processes; 0 to serve no models")
    parser.add_argument("--fronts", type=int, metavar="N", help="front processes")
    parser.add_argument("--log-level", choices=["DEBUG", "INFO", "WARNING", "ERROR"])
    parser.add_argument("--log-format", choices=["text", "json"])
    return parser


def _configure(flags: argparse.Namespace) -> ServerConfig:
    """File, environment and flags, the later over the earlier.

    Raises:
        ConfigError: as `load_config`.
    """
    keys = {key: value for flag, key in _KEY_FLAGS.items() if (value := getattr(flags, flag)) is not None}
    if flags.insecure:
        keys["listen.insecure"] = True
    environment = {**os.environ, **_as_environment(keys)}
    if flags.host is not None or flags.port is not None or flags.metrics_port is not None:
        lenient = {**environment, **_as_environment({"listen.insecure": True})}
        listen = load_config(flags.config, lenient).listen  # only to know the halves that the flags leave open
        address = _join(listen.address, flags.host, flags.port)
        metrics_address = _join(listen.metrics_address, None, flags.metrics_port)
        environment |= _as_environment({"listen.address": address, "listen.metrics_address": metrics_address})
    return load_config(flags.config, environment)


def _join(address: str, host: str | None, port: int | None) -> str:
    old_host, old_port = split_address(address)
    host = old_host if host is None else host.strip("[]")
    bracketed = f"[{host}]" if ":" in host else host
    return f"{bracketed}:{old_port if port is None else port}"


def _as_environment(keys: dict[str, object]) -> dict[str, str]:
    return {ENV_PREFIX + key.replace(".", "__").upper(): json.dumps(value) for key, value in keys.items()}


def _complain(error: ConfigError) -> int:
    sys.stderr.write(f"shoal: {error}\n")
    return EXIT_BAD_CONFIG
