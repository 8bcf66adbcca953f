"""The configuration of a server: typed sections, their checks, and how YAML and environment are read.

Never changed after start, except certificates and tokens, which are reloaded whole or refused. Every key may come from
the environment as `SHOAL_SERVER__<SECTION>__<KEY>`; the environment wins over the file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import msgspec
import yaml

ENV_PREFIX = "SHOAL_SERVER__"
Service = Literal["classify", "generate", "models", "train"]


class ConfigError(Exception):
    """A key is unknown, of the wrong type or out of range; the message names key, value and range."""


class ListenConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where the server listens and who may come in."""

    address: str = "127.0.0.1:50051"  # host:port for gRPC; port 0 takes a free one
    metrics_address: str = "127.0.0.1:9090"  # host:port for /metrics; port 0 takes a free one
    insecure: bool = False  # allow a non-loopback address without TLS and tokens
    tls_cert: str | None = None  # PEM file
    tls_key: str | None = None  # PEM file
    tls_client_ca: str | None = None  # PEM file; clients must then present a certificate it signed
    tokens_file: str | None = None  # one bearer token a line
    num_fronts: int | None = None  # front processes; unset: one for each four cores, at least one
    max_message_bytes: int = 16 * 2**20
    max_connection_age_s: float = 1800.0
    max_connection_age_grace_s: float = 600.0
    drain_s: float = 30.0  # most time for requests in flight after SIGTERM
    lame_duck_s: float = 1.0  # health says NOT_SERVING for so long before the listener closes


class ModelPolicy(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which versions of one model are served."""

    serve: Literal["latest", "labelled"] | list[int] = "latest"  # "latest": the newest and every labelled one
    pinned: bool = False  # stays loaded: neither unloaded for being idle nor to make room
    idle_unload_s: float | None = None  # unset: repository.idle_unload_s


class RepositoryConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where versions lie and how new ones are found."""

    path: str = "./models"
    poll_interval_s: float = 2.0  # always polled, since network volumes send no events
    watch: bool = True  # also listen to file system events
    keep_versions: int = 5  # newest versions kept of each model; labelled and draining ones always are
    idle_unload_s: float | None = None  # a version not asked for so long rests until it is; unset: none does
    evict_idle: bool = False  # where memory is short, idle versions rest, the least recently used first
    models: dict[str, ModelPolicy] = {}

    def idle_unload_s_of(self, model: str) -> float | None:
        """After how long without a request a version of the model rests; None: never."""
        policy = self.models.get(model, ModelPolicy())
        if policy.pinned:
            return None
        return self.idle_unload_s if policy.idle_unload_s is None else policy.idle_unload_s

    def is_evictable(self, model: str) -> bool:
        """Whether idle versions of the model may make room for others."""
        return self.evict_idle and not self.models.get(model, ModelPolicy()).pinned

    @property
    def lets_rest(self) -> bool:
        """Whether any version may rest, so that its use has to be known."""
        return self.evict_idle or any(
            seconds is not None for seconds in (self.idle_unload_s, *(p.idle_unload_s for p in self.models.values()))
        )


class EngineConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The processes that run models."""

    num_engines: int = 1  # 0: none, for a server that only trains or manages
    device: str = "auto"  # "cpu", "cuda", "cuda:1" or "auto"
    dtype: Literal["auto", "float32", "bfloat16", "float16", "int8"] = "auto"
    # auto: bfloat16 where the device has it, else float32; float16: GPUs only; int8: classifiers' linear layers
    num_threads: int | None = None  # cores of one engine; unset: all for Classify, all but one for Generate, by engines
    memory_limit_bytes: int | None = None  # unset: the cgroup's limit and what is free
    max_loaded_bytes: int | None = None  # weights and KV caches of all versions of one engine; unset: no such bound
    max_restart_backoff_s: float = 30.0


class ClassifyConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Dynamic batching of Classify."""

    token_budget: int | None = None  # most tokens of one packed forward; unset: what suits the device
    max_waiting_tokens: int = 262_144  # queue bound of each engine, in tokens


class GenerateConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Continuous batching of Generate."""

    token_budget: int = 512  # most tokens of one step: decodes first, the rest for prefill chunks
    max_running: int = 64  # sequences in one step
    max_waiting: int = 256  # queue bound of each engine, in sequences
    kv_block_tokens: int = 16
    kv_cache_bytes: int = 2**29  # for each generator version
    default_max_new_tokens: int = 256


class TrainConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Training jobs."""

    max_running_jobs: int = 1
    max_waiting_jobs: int = 100
    max_attempts: int = 3  # starts of a job's process before it fails with WORKER_LOST
    data_roots: list[str] = []  # folders from which specs may name paths
    max_dataset_bytes: int = 2**30
    num_threads: int = 1  # intra-op threads of a job


class LimitsConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Bounds on what one request may carry."""

    max_inputs: int = 256  # inputs of one Classify call
    max_characters: int = 200_000  # characters of one text, counted before tokenizing
    max_stream_items: int = 256  # items of one StreamClassify not yet answered; from there on no message is read
    max_completions: int = 16
    template_time_limit_s: float = 0.5


class LogConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Log lines."""

    format: Literal["text", "json"] = "text"
    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"


class ServerConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Everything a server can be told."""

    services: tuple[Service, ...] = ("classify", "generate", "models", "train")
    state_dir: str = "./.shoal"  # jobs, datasets, labels, sockets
    listen: ListenConfig = msgspec.field(default_factory=ListenConfig)
    repository: RepositoryConfig = msgspec.field(default_factory=RepositoryConfig)
    engine: EngineConfig = msgspec.field(default_factory=EngineConfig)
    classify: ClassifyConfig = msgspec.field(default_factory=ClassifyConfig)
    generate: GenerateConfig = msgspec.field(default_factory=GenerateConfig)
    train: TrainConfig = msgspec.field(default_factory=TrainConfig)
    limits: LimitsConfig = msgspec.field(default_factory=LimitsConfig)
    log: LogConfig = msgspec.field(default_factory=LogConfig)


# Lowest and highest value of each numeric key.
RANGES: dict[str, tuple[float, float]] = {
    "listen.num_fronts": (1, 256),
    "listen.max_message_bytes": (65_536, 2**31 - 1),
    "listen.max_connection_age_s": (1, 31_536_000),
    "listen.max_connection_age_grace_s": (0, 31_536_000),
    "listen.drain_s": (0, 3600),
    "listen.lame_duck_s": (0, 600),
    "repository.poll_interval_s": (0.05, 3600),
    "repository.keep_versions": (1, 10_000),
    "repository.idle_unload_s": (1, 31_536_000),
    "engine.num_engines": (0, 64),
    "engine.num_threads": (1, 1024),
    "engine.memory_limit_bytes": (2**20, 2**50),
    "engine.max_loaded_bytes": (1, 2**50),
    "engine.max_restart_backoff_s": (0.1, 3600),
    "classify.token_budget": (16, 2**20),
    "classify.max_waiting_tokens": (16, 2**31),
    "generate.token_budget": (16, 2**20),
    "generate.max_running": (1, 4096),
    "generate.max_waiting": (0, 1_000_000),
    "generate.kv_block_tokens": (1, 1024),
    "generate.kv_cache_bytes": (2**20, 2**45),
    "generate.default_max_new_tokens": (1, 2**20),
    "train.max_running_jobs": (0, 64),
    "train.max_waiting_jobs": (0, 1_000_000),
    "train.max_attempts": (1, 100),
    "train.max_dataset_bytes": (1, 2**45),
    "train.num_threads": (1, 1024),
    "limits.max_inputs": (1, 65_536),
    "limits.max_characters": (1, 2**28),
    "limits.max_stream_items": (1, 65_536),
    "limits.max_completions": (1, 256),
    "limits.template_time_limit_s": (0.01, 60),
}


def load_config(path: Path | None = None, environment: Mapping[str, str] = os.environ) -> ServerConfig:
    """Read, merge and check the configuration; without a path only defaults and environment.

    Raises:
        ConfigError: naming key, value and what is allowed.
    """
    tree = _read_yaml(path) if path is not None else {}
    for name, value in sorted(environment.items()):
        if name.startswith(ENV_PREFIX):
            _set_key(tree, name.removeprefix(ENV_PREFIX).lower().split("__"), _parse_scalar(name, value))
    try:
        config = msgspec.convert(tree, ServerConfig, strict=True)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path or 'configuration'}: {error}") from None
    _check_ranges(config)
    _check_models(config.repository)
    _check_listen(config.listen)
    return config


def dump_config(config: ServerConfig) -> str:
    """The configuration as YAML, every default written out."""
    return yaml.safe_dump(msgspec.to_builtins(config), sort_keys=False)


def split_address(address: str) -> tuple[str, int]:
    """Host and port of `host:port`; IPv6 hosts stand in brackets.

    Raises:
        ConfigError: it is not of that form.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or int(port) > 65_535:
        raise ConfigError(f"address {address!r} is not host:port with a port of 0 to 65535")
    return host.strip("[]"), int(port)


def is_loopback(address: str) -> bool:
    """Whether only this machine can reach the address."""
    host, _ = split_address(address)
    return host in {"localhost", "::1"} or host.startswith("127.")


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML: {error}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: the top level must be a mapping of sections")
    return tree


def _parse_scalar(name: str, value: str) -> Any:
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError:
        raise ConfigError(f"{name}: value is not a YAML scalar") from None


def _set_key(tree: dict[str, Any], keys: list[str], value: Any) -> None:
    for key in keys[:-1]:
        below = tree.setdefault(key, {})
        if not isinstance(below, dict):
            raise ConfigError(f"{ENV_PREFIX}{'__'.join(keys).upper()}: {key} is not a section")
        tree = below
    tree[keys[-1]] = value


def _check_ranges(config: ServerConfig) -> None:
    for key, (low, high) in RANGES.items():
        section, name = key.split(".")
        value = getattr(getattr(config, section), name)
        if value is not None and not low <= value <= high:
            raise ConfigError(f"{key} is {value}; allowed are {low} to {high}")


def _check_models(repository: RepositoryConfig) -> None:
    low, high = RANGES["repository.idle_unload_s"]
    for name, policy in repository.models.items():
        if policy.idle_unload_s is not None and not low <= policy.idle_unload_s <= high:
            key = f"repository.models.{name}.idle_unload_s"
            raise ConfigError(f"{key} is {policy.idle_unload_s}; allowed are {low} to {high}")


def _check_listen(listen: ListenConfig) -> None:
    split_address(listen.metrics_address)
    if (listen.tls_cert is None) != (listen.tls_key is None):
        raise ConfigError("listen.tls_cert and listen.tls_key must be given together")
    if listen.tls_client_ca is not None and listen.tls_cert is None:
        raise ConfigError("listen.tls_client_ca needs listen.tls_cert and listen.tls_key")
    protected = listen.tls_cert is not None and (listen.tokens_file is not None or listen.tls_client_ca is not None)
    if not is_loopback(listen.address) and not protected and not listen.insecure:
        raise ConfigError(
            f"listen.address {listen.address} is reachable from other machines without TLS and tokens; "
            "set listen.tls_cert, listen.tls_key and listen.tokens_file, or pass --insecure"
        )
