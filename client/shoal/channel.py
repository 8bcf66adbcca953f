"""Where the server is and how a channel to it is made: address, TLS, token, keepalive, retries.

Retries are gRPC's own, by service config, only for methods that `_methods.py` marks as safe and only on UNAVAILABLE;
the server's pushback is honoured. Knows no service.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TypedDict

import grpc

from shoal._methods import METHODS
from shoal.errors import ConfigurationError

DEFAULT_ADDRESS = "127.0.0.1:50051"
ADDRESS_VARIABLE = "SHOAL_ADDRESS"
TOKEN_FILE_VARIABLE = "SHOAL_TOKEN_FILE"  # noqa: S105 - the name of a variable
TLS_CA_VARIABLE = "SHOAL_TLS_CA"

KEEPALIVE_TIME_MS = 60_000  # a silent connection with open calls is probed so often
KEEPALIVE_TIMEOUT_MS = 20_000
MAX_RECEIVE_BYTES = 64 * 2**20
RETRY_BUFFER_BYTES = 16 * 2**20  # a larger request is sent once only
RETRY_POLICY = {
    "maxAttempts": 4,
    "initialBackoff": "0.1s",
    "maxBackoff": "2s",
    "backoffMultiplier": 3,
    "retryableStatusCodes": ["UNAVAILABLE"],
}
RETRY_THROTTLING = {"maxTokens": 100, "tokenRatio": 0.1}  # a server that fails most calls is not asked again


class ClientSettings(TypedDict, total=False):
    """What a client can be told beside the address. Files are PEM."""

    token: str | None  # bearer token
    token_file: str | os.PathLike[str] | None  # read again when it changes; else SHOAL_TOKEN_FILE
    tls: bool | None  # True: TLS, trusting the system's authorities; False: none. Default: TLS where tls_ca is set
    tls_ca: str | os.PathLike[str] | None  # authority of the server's certificate; else SHOAL_TLS_CA
    tls_cert: str | os.PathLike[str] | None  # the client's own certificate
    tls_key: str | os.PathLike[str] | None
    tls_server_name: str | None  # the name the certificate must bear, where it is not the address
    allow_insecure_token: bool  # send the token without TLS to another machine
    timeout: float | None  # seconds for each call that names none; None: what suits the call


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A server and what is needed to be let in. Never shows its token."""

    address: str
    token_source: TokenSource | None
    tls: TlsFiles | None
    server_name: str | None

    def open_channel(self) -> grpc.aio.Channel:
        """A new channel; call it in the event loop that will use it. Connects with the first call."""
        options = channel_options(self.address, self.server_name)
        if self.tls is None:
            return grpc.aio.insecure_channel(self.address, options=options)
        credentials = grpc.ssl_channel_credentials(self.tls.ca, self.tls.key, self.tls.cert)
        return grpc.aio.secure_channel(self.address, credentials, options=options)


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class TlsFiles:
    """The contents of the PEM files; None where there is none."""

    ca: bytes | None
    cert: bytes | None
    key: bytes | None


class TokenSource:
    """A fixed token, or one in a file that may be replaced while the client runs."""

    def __init__(self, *, fixed: str | None = None, path: Path | None = None) -> None:
        self._token = fixed
        self._path = path
        self._stamp: tuple[int, int] | None = None
        self.current()

    def current(self) -> str:
        """The token to send now.

        Raises:
            ConfigurationError: the file cannot be read, or it holds no token.
        """
        if self._path is not None:
            self._refresh(self._path)
        if not self._token or not self._token.isascii() or any(c.isspace() or not c.isprintable() for c in self._token):
            raise ConfigurationError(
                f"{self._path or 'token'}: holds no token, or one with characters that cannot be sent"
            )
        return self._token

    def _refresh(self, path: Path) -> None:
        try:
            status = path.stat()
            stamp = (status.st_mtime_ns, status.st_ino)
            if stamp != self._stamp:
                self._token = path.read_text(encoding="utf-8").strip()
                self._stamp = stamp
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"token file {path}: {_reason(error)}") from None


def resolve_endpoint(
    address: str | None, settings: ClientSettings, environment: Mapping[str, str] = os.environ
) -> Endpoint:
    """Put arguments, environment and defaults together; arguments win.

    Raises:
        ConfigurationError: the address is malformed, a file cannot be read, or a token would travel in the clear.
    """
    address = address or environment.get(ADDRESS_VARIABLE) or DEFAULT_ADDRESS
    _check_address(address)
    tls = _tls_files(settings, environment)
    token = _token_source(settings, environment)
    if token is not None and tls is None and not is_local(address) and not settings.get("allow_insecure_token"):
        raise ConfigurationError(
            f"a token for {address} would travel unencrypted: give tls_ca ({TLS_CA_VARIABLE}) or allow_insecure_token"
        )
    return Endpoint(address=address, token_source=token, tls=tls, server_name=settings.get("tls_server_name"))


def is_local(address: str) -> bool:
    """Whether the address is on this machine."""
    if address.startswith("unix:"):
        return True
    host = address.rpartition("/")[2].rpartition(":")[0].strip("[]")
    return host in {"localhost", "::1"} or host.startswith("127.")


def service_config() -> str:
    """The service config: retries where they are safe, calls spread over the addresses of a name."""
    names = [{"service": method.service, "method": method.name} for method in METHODS if method.retry]
    return json.dumps(
        {
            "loadBalancingConfig": [{"round_robin": {}}],
            "methodConfig": [{"name": names, "retryPolicy": RETRY_POLICY}],
            "retryThrottling": RETRY_THROTTLING,
        }
    )


def channel_options(address: str, server_name: str | None) -> list[tuple[str, str | int]]:
    """Options of every channel."""
    options: list[tuple[str, str | int]] = [
        ("grpc.service_config", service_config()),
        ("grpc.enable_retries", 1),
        ("grpc.per_rpc_retry_buffer_size", RETRY_BUFFER_BYTES),
        ("grpc.max_receive_message_length", MAX_RECEIVE_BYTES),
        ("grpc.keepalive_time_ms", KEEPALIVE_TIME_MS),
        ("grpc.keepalive_timeout_ms", KEEPALIVE_TIMEOUT_MS),
        ("grpc.initial_reconnect_backoff_ms", 200),
        ("grpc.min_reconnect_backoff_ms", 2_000),
        ("grpc.max_reconnect_backoff_ms", 5_000),
        ("grpc.use_local_subchannel_pool", 1),  # each client has connections of its own
        ("grpc.primary_user_agent", f"shoal/{client_version()}"),
    ]
    if is_local(address):
        options.append(("grpc.enable_http_proxy", 0))
    if server_name:
        options.append(("grpc.ssl_target_name_override", server_name))
    return options


def client_version() -> str:
    """The version of this distribution; "unknown" when it runs from a bare folder."""
    try:
        return version("shoal")
    except PackageNotFoundError:
        return "unknown"


def _check_address(address: str) -> None:
    if "://" in address and not address.startswith(("dns://", "unix://")):
        raise ConfigurationError(f"address {address!r}: give host:port without a scheme")
    if address.startswith("unix:"):
        return
    host, _, port = address.rpartition("/")[2].rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65_536:
        raise ConfigurationError(f"address {address!r} is not host:port with a port of 1 to 65535")


def _token_source(settings: ClientSettings, environment: Mapping[str, str]) -> TokenSource | None:
    token = settings.get("token")
    if token is not None:
        return TokenSource(fixed=token)
    path = settings.get("token_file") or environment.get(TOKEN_FILE_VARIABLE)
    return TokenSource(path=Path(path)) if path else None


def _tls_files(settings: ClientSettings, environment: Mapping[str, str]) -> TlsFiles | None:
    wanted = settings.get("tls")
    if wanted is False:
        return None
    ca = settings.get("tls_ca") or environment.get(TLS_CA_VARIABLE)
    cert, key = settings.get("tls_cert"), settings.get("tls_key")
    if (cert is None) != (key is None):
        raise ConfigurationError("tls_cert and tls_key go together")
    if not wanted and not ca and cert is None:
        return None
    return TlsFiles(ca=_read_pem("tls_ca", ca), cert=_read_pem("tls_cert", cert), key=_read_pem("tls_key", key))


def _read_pem(name: str, path: str | os.PathLike[str] | None) -> bytes | None:
    if not path:
        return None
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{name} {path}: {_reason(error)}") from None
    if b"-----BEGIN" not in content:
        raise ConfigurationError(f"{name} {path}: is not a PEM file")
    return content


def _reason(error: Exception) -> str:
    return error.strerror or str(error) if isinstance(error, OSError) else "is not UTF-8"
