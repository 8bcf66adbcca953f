"""TLS files and bearer tokens: read whole, and reloaded whole or refused.

Both are read again on SIGHUP and when their files change. A set that cannot be used (a key that does not fit its
certificate, an empty token file) leaves the one before in force. Never logs a secret.
"""

from __future__ import annotations

import asyncio
import hashlib
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Final, cast

import grpc

from shoal_server.config import ConfigError, ListenConfig
from shoal_server.errors import Unauthenticated
from shoal_server.log import Log

WATCH_INTERVAL_S: Final = 2.0
MIN_TOKEN_CHARACTERS: Final = 16
_log = Log(__name__)


class TokenBook:
    """The bearer tokens that open the door; without a file the door is open.

    Only digests are kept, and a set look-up of digests tells an attacker's clock nothing about the tokens.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._digests: frozenset[bytes] = frozenset()

    @classmethod
    def open(cls, path: str | None) -> TokenBook:
        """A book with the tokens of a file.

        Raises:
            ConfigError: the file cannot be used.
        """
        book = cls(None if path is None else Path(path))
        book.use(book.read())
        return book

    def check(self, authorization: str | None) -> None:
        """Let the caller in, or not.

        Raises:
            Unauthenticated: tokens are asked for, and this is none.
        """
        if self._path is None:
            return
        scheme, _, token = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or hashlib.sha256(token.strip().encode()).digest() not in self._digests:
            raise Unauthenticated("a bearer token that this server knows is required in the metadata key authorization")

    def read(self) -> frozenset[bytes]:
        """The digests that the file holds now.

        Raises:
            ConfigError: it is unreadable or holds a line that is no token.
        """
        return frozenset() if self._path is None else _read_tokens(self._path)

    def use(self, digests: frozenset[bytes]) -> None:
        """From now on only these open the door."""
        self._digests = digests


class Certificates:
    """The server's certificate, its key and the authority that signs clients."""

    def __init__(self, listen: ListenConfig) -> None:
        if listen.tls_cert is None or listen.tls_key is None:
            raise ConfigError("listen.tls_cert and listen.tls_key are not set")
        self._cert, self._key = Path(listen.tls_cert), Path(listen.tls_key)
        self._client_ca = Path(listen.tls_client_ca) if listen.tls_client_ca is not None else None
        self._current = self.read()
        self._fresh = False

    def server_credentials(self) -> grpc.ServerCredentials:
        """Credentials that ask here, at each handshake, whether there is something newer."""
        return grpc.dynamic_ssl_server_credentials(
            self._current,
            cast("Callable[[], grpc.ServerCertificateConfiguration]", self._fetch),
            require_client_authentication=self._client_ca is not None,
        )

    def use(self, configuration: grpc.ServerCertificateConfiguration) -> None:
        """From the next handshake on, use these."""
        self._current = configuration
        self._fresh = True

    def _fetch(self) -> grpc.ServerCertificateConfiguration | None:
        if not self._fresh:
            return None
        self._fresh = False
        return self._current

    def read(self) -> grpc.ServerCertificateConfiguration:
        """What the files hold now.

        Raises:
            ConfigError: they are unreadable or do not fit each other.
        """
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self._cert, self._key)
            if self._client_ca is not None:
                ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(self._client_ca)
            pair = (self._key.read_bytes(), self._cert.read_bytes())
            authority = self._client_ca.read_bytes() if self._client_ca is not None else None
        except (OSError, ssl.SSLError) as error:  # SSLError is an OSError whose text names no secret
            raise ConfigError(f"the TLS files cannot be used: {error.strerror or type(error).__name__}") from None
        return grpc.ssl_server_certificate_configuration([pair], authority)


class CredentialsWatch:
    """Reloads when a file changes or when told to."""

    def __init__(self, paths: list[Path], reload: Callable[[], None]) -> None:
        self._paths = paths
        self._reload = reload
        self._seen = self._stamps()

    async def run(self) -> None:
        """Look at the files for ever."""
        while True:
            await asyncio.sleep(WATCH_INTERVAL_S)
            stamps = await asyncio.to_thread(self._stamps)
            if stamps != self._seen:
                self._seen = stamps
                self.reload()

    def reload(self) -> None:
        """Reload now; what cannot be used is refused and logged."""
        try:
            self._reload()
        except ConfigError as error:
            _log.error("credentials_refused", reason=str(error))
        else:
            _log.info("credentials_reloaded")

    def _stamps(self) -> list[tuple[int, int, int] | None]:
        return [_stamp(path) for path in self._paths]


def watched_paths(listen: ListenConfig) -> list[Path]:
    """The files that credentials come from."""
    names = (listen.tls_cert, listen.tls_key, listen.tls_client_ca, listen.tokens_file)
    return [Path(name) for name in names if name is not None]


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def _read_tokens(path: Path) -> frozenset[bytes]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"listen.tokens_file {path} is unreadable: {type(error).__name__}") from None
    for number, line in enumerate(lines, start=1):
        if line and not line.startswith("#") and (len(line) < MIN_TOKEN_CHARACTERS or any(c.isspace() for c in line)):
            raise ConfigError(
                f"listen.tokens_file {path} line {number} is no token: "
                f"{MIN_TOKEN_CHARACTERS} characters or more, no spaces"
            )
    digests = frozenset(hashlib.sha256(line.encode()).digest() for line in lines if line and not line.startswith("#"))
    if not digests:
        raise ConfigError(f"listen.tokens_file {path} holds no token")
    return digests
