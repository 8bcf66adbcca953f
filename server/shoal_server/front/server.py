"""The front process: builds its parts, listens, carries out control's orders, and ends in good order."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import sys
import time
from typing import Any, Final

import grpc
import uvloop

from shoal_server.config import ConfigError
from shoal_server.front.control_client import ControlLost
from shoal_server.front.credentials import Certificates, CredentialsWatch, TokenBook, watched_paths
from shoal_server.front.front import Front, num_fronts
from shoal_server.front.interceptors import Interceptors
from shoal_server.front.services import services_of
from shoal_server.ipc.messages import Drain, FrontHello
from shoal_server.log import Log
from shoal_server.process import Startup
from shoal_server.scheduling import be_prompt, patient_threads

SNAPSHOT_INTERVAL_S: Final = 1.0
NUM_YOUNG: Final = 10_000  # objects between collections; a call of 32 texts makes about a thousand at once
EXIT_CANNOT_LISTEN: Final = 74
EXIT_CONTROL_LOST: Final = 75
EXIT_BAD_CREDENTIALS: Final = 78
_log = Log(__name__)


def main(startup: Startup) -> None:
    """Entry point of a front process; returns after an ordered drain."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # our own threads share the work
    try:
        uvloop.run(FrontServer(startup).run())
    except ControlLost as error:
        _log.error("control_lost", reason=str(error))
        sys.exit(EXIT_CONTROL_LOST)
    except ConfigError as error:
        _log.error("credentials_unusable", reason=str(error))
        sys.exit(EXIT_BAD_CREDENTIALS)
    except CannotListen as error:
        _log.error("cannot_listen", reason=str(error))
        sys.exit(EXIT_CANNOT_LISTEN)


class CannotListen(Exception):
    """The address is taken or not of this machine."""


class FrontServer:
    """A front with its gRPC server."""

    def __init__(self, startup: Startup) -> None:
        self._startup = startup
        self._listen = startup.config.listen
        self._drain_order: Drain | None = None
        self._drain_ordered = asyncio.Event()

    async def run(self) -> None:
        """Serve until control says to drain.

        Raises:
            ControlLost, ConfigError, CannotListen: as they say.
        """
        tokens = TokenBook.open(self._listen.tokens_file)
        certificates = Certificates(self._listen) if self._listen.tls_cert is not None else None
        front = Front(self._startup, self._order_drain)
        with patient_threads():  # gRPC's, each of whose several wake-ups a call would interrupt the loop
            server, port = self._build(front, tokens, certificates)
            await server.start()
        be_prompt()
        hello = FrontHello(front_id=self._startup.index, pid=os.getpid(), port=port)
        await front.control.start(hello)
        _collect_garbage_seldom()
        _log.info("front_listens", address=self._startup.grpc_address, port=port, tls=certificates is not None)
        background = [
            asyncio.create_task(coroutine)
            for coroutine in (front.run(), _send_snapshots(front), self._watch_credentials(tokens, certificates).run())
        ]
        ordered = asyncio.create_task(self._drain_ordered.wait())
        try:
            done, _ = await asyncio.wait([ordered, *background], return_when=asyncio.FIRST_COMPLETED)
            if ordered not in done:
                await _first_error(done)
            await self._drain(front, server)
        finally:
            for task in (ordered, *background):
                task.cancel()
            await asyncio.gather(ordered, *background, return_exceptions=True)
            await server.stop(0)
            front.close()

    def _order_drain(self, order: Drain) -> None:
        self._drain_order = order
        self._drain_ordered.set()

    async def _drain(self, front: Front, server: grpc.aio.Server) -> None:
        """Tell health first, give balancers time to see it, close the door, let what is under way finish."""
        assert self._drain_order is not None, "set before the event"
        began_s = time.monotonic()
        front.health.drain()
        await asyncio.sleep(self._drain_order.lame_duck_s)
        front.draining.set()
        front.health.close()
        remaining_s = max(0.0, self._drain_order.drain_s - (time.monotonic() - began_s))
        await server.stop(remaining_s)
        front.send_snapshot()
        _log.info("front_drained", took_s=round(time.monotonic() - began_s, 3))

    def _build(self, front: Front, tokens: TokenBook, certificates: Certificates | None) -> tuple[grpc.aio.Server, int]:
        interceptors = Interceptors(front.metrics, tokens)
        server = grpc.aio.server(options=self._options())
        server.add_generic_rpc_handlers([interceptors.wrap(service) for service in services_of(front)])
        address = self._startup.grpc_address
        try:
            if certificates is not None:
                port = server.add_secure_port(address, certificates.server_credentials())
            else:
                port = server.add_insecure_port(address)
        except RuntimeError:
            raise CannotListen(f"{address} cannot be listened on: taken, or not an address of this machine") from None
        return server, port

    def _options(self) -> list[tuple[str, Any]]:
        listen = self._listen
        return [
            ("grpc.so_reuseport", int(num_fronts(self._startup.config) > 1)),
            ("grpc.max_receive_message_length", listen.max_message_bytes),
            ("grpc.max_send_message_length", listen.max_message_bytes),
            ("grpc.max_connection_age_ms", round(listen.max_connection_age_s * 1000)),
            ("grpc.max_connection_age_grace_ms", round(listen.max_connection_age_grace_s * 1000)),
            ("grpc.keepalive_time_ms", 30_000),  # a client that vanished without a word is noticed within 40 s
            ("grpc.keepalive_timeout_ms", 10_000),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),  # clients may ping as often
        ]

    def _watch_credentials(self, tokens: TokenBook, certificates: Certificates | None) -> CredentialsWatch:
        def reload() -> None:
            digests = tokens.read()
            if certificates is not None:
                certificates.use(certificates.read())
            tokens.use(digests)  # both were readable: all is replaced, or nothing

        watch = CredentialsWatch(watched_paths(self._listen), reload)
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, watch.reload)
        return watch


def _collect_garbage_seldom() -> None:
    """What was imported stays and is looked at no more; a request leaves nothing behind that needs collecting."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(NUM_YOUNG, 20, 50)


async def _send_snapshots(front: Front) -> None:
    while True:
        await asyncio.sleep(SNAPSHOT_INTERVAL_S)
        front.send_snapshot()


async def _first_error(done: set[asyncio.Task[Any]]) -> None:
    """Raise what ended a task that should run for ever; of a group the one error that counts."""
    for task in done:
        error = task.exception()
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        if error is not None:
            raise error
    raise RuntimeError("a task that should run for ever has ended")
