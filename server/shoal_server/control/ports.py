"""Ports of the server: found free, or taken with a clear message, and kept while fronts come and go."""

from __future__ import annotations

import errno
import socket
from dataclasses import dataclass

from shoal_server.config import split_address

_FAMILY_ABSENT = (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT)


class PortTaken(Exception):
    """Another process listens there, or the address is not one of this machine; the message says which."""


class HeldPort:
    """A bound socket that never listens, so that nobody else is given the port between two fronts.

    Fronts bind beside it: several with SO_REUSEPORT, a single one with SO_REUSEADDR, as gRPC sets them.
    """

    def __init__(self, sockets: list[socket.socket], port: int) -> None:
        self._sockets = sockets
        self.port = port

    def release(self) -> None:
        """Give the port back."""
        for held in self._sockets:
            held.close()


def hold_port(address: str, *, shared: bool) -> HeldPort:
    """Choose and keep the port of `host:port`; port 0 takes a free one. `shared`: several fronts will listen on it.

    Raises:
        PortTaken: someone listens there already, or the host cannot be bound.
    """
    host, port = split_address(address)
    sockets: list[socket.socket] = []
    try:
        for place in _resolve(host):
            try:
                port = _probe(place, port)
                sockets.append(_bind(place, port, socket.SO_REUSEPORT if shared else socket.SO_REUSEADDR))
            except OSError as error:
                if error.errno not in _FAMILY_ABSENT or not sockets:
                    raise
    except OSError as error:
        for held in sockets:
            held.close()
        raise PortTaken(describe_bind_error(address, error)) from error
    return HeldPort(sockets, port)


def describe_bind_error(address: str, error: OSError) -> str:
    """Why an address cannot be had, for people."""
    if error.errno == errno.EADDRINUSE:
        return f"{address} is taken: another server listens there"
    return f"{address} cannot be listened on: {error.strerror or error}"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    family: socket.AddressFamily
    host: str


def _resolve(host: str) -> list[_Place]:
    """Addresses of a host, IPv4 first, since a machine may name an IPv6 one that it does not have."""
    found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    places = dict.fromkeys(_Place(family=family, host=str(where[0])) for family, _, _, _, where in found)
    return sorted(places, key=lambda place: place.family != socket.AF_INET)


def _probe(place: _Place, port: int) -> int:
    """Bind alone, which fails while anyone listens there, whatever options they set; returns the port."""
    with _bind(place, port, socket.SO_REUSEADDR) as probe:  # passes over connections in TIME_WAIT, not over listeners
        probe.listen(1)
        return int(probe.getsockname()[1])


def _bind(place: _Place, port: int, option: int) -> socket.socket:
    bound = socket.socket(place.family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, option, 1)
        if place.family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind((place.host, port))
    except OSError:
        bound.close()
        raise
    return bound
