"""The parts of one front, and how control's orders reach them. Knows no gRPC server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from shoal_server.config import ServerConfig, Service
from shoal_server.front.admission import bounds_for
from shoal_server.front.control_client import ControlClient
from shoal_server.front.engine_client import EngineClient
from shoal_server.front.health import MODEL_PREFIX, HealthBoard
from shoal_server.front.metrics import FrontMetrics
from shoal_server.front.routing import Router, VersionKey
from shoal_server.front.text_store import TextStore
from shoal_server.front.tokenizers import TokenizerThreads
from shoal_server.front.version_text import TextRefused
from shoal_server.front.waker import Waker
from shoal_server.ipc.messages import (
    Drain,
    PrepareVersion,
    Routing,
    RoutingApplied,
    VersionPrepared,
    VersionsInUse,
    VersionUse,
)
from shoal_server.log import Log
from shoal_server.process import Startup

SERVICE_NAMES: Final[dict[Service, str]] = {
    "classify": "shoal.v1.ClassifyService",
    "generate": "shoal.v1.GenerateService",
    "models": "shoal.v1.ModelService",
    "train": "shoal.v1.TrainService",
}
_ENGINE_SERVICES: Final = frozenset({"classify", "generate"})
_log = Log(__name__)


def num_fronts(config: ServerConfig) -> int:
    """Front processes of the server, as control has decided."""
    return config.listen.num_fronts or 1


class Front:
    """Everything of a front but its gRPC server."""

    def __init__(self, startup: Startup, drain: Callable[[Drain], None]) -> None:
        config = startup.config
        self.id = startup.index
        self.config = config
        self.metrics = FrontMetrics()
        self.health = HealthBoard()
        self.draining = asyncio.Event()  # set when streams that never end must end
        self.control = ControlClient(startup.control_address)
        self.texts = TextStore()
        self.tokenizers = TokenizerThreads()
        self.router = Router(self.metrics, self._report_routing)
        self.waker = Waker(self.router, self.control)
        bounds = bounds_for(
            max_waiting_tokens=config.classify.max_waiting_tokens,
            max_sequences=config.generate.max_waiting + config.generate.max_running,
            num_fronts=num_fronts(config),
        )
        self.engines = EngineClient(bounds, self._publish_health)
        self._order_drain = drain

    async def run(self) -> None:
        """Carry out control's orders.

        Raises:
            ControlLost: control is gone.
        """
        await self.control.run(self)

    def close(self) -> None:
        """Leave engines and control; free the threads."""
        self.engines.close()
        self.control.close()
        self.tokenizers.close()

    async def route(self, routing: Routing) -> None:
        """Use a new table once its engines are connected and its texts are held."""
        await self.engines.apply(routing.engines)
        texts = await self.texts.load_routed(routing)
        self.router.apply(routing, texts)
        self.texts.forget(routing)
        self._publish_health()
        self._report_routing()

    async def prepare(self, order: PrepareVersion) -> None:
        """Hold the text of a version that is about to become live."""
        error = ""
        try:
            await self.texts.load(VersionKey(model=order.model, version=order.version), order.path)
        except TextRefused as refused:
            error = str(refused)
        self.control.send(VersionPrepared(front_id=self.id, model=order.model, version=order.version, error=error))

    def drain(self, order: Drain) -> None:
        """Begin to end."""
        self._order_drain(order)

    def send_snapshot(self) -> None:
        """Send what was counted so far to control, and where versions may rest, what is in use."""
        self.control.send(self.metrics.snapshot(self.id))
        if self.config.repository.lets_rest:
            self._report_use()

    def _report_routing(self) -> None:
        in_flight = self.router.draining_in_flight()
        self.control.send(RoutingApplied(front_id=self.id, revision=self.router.revision, in_flight=in_flight))
        if self.router.wants_room:
            self._report_use()

    def _report_use(self) -> None:
        """Requests that wait for a version are among those that use it, from before it is live."""
        waiting = self.waker.waiting()
        uses = [
            VersionUse(
                model=served.key.model,
                version=served.key.version,
                num_open=served.in_flight + waiting.pop(served.key, 0),
                last_used_s=served.last_used_s,
            )
            for served in self.router.in_use()
        ]
        uses += [
            VersionUse(model=key.model, version=key.version, num_open=count, last_used_s=0.0)
            for key, count in waiting.items()
        ]
        self.control.send(VersionsInUse(front_id=self.id, revision=self.router.revision, uses=uses))

    def _publish_health(self) -> None:
        """Services that need engines serve while one is up (or none is configured), models while one has them."""
        connected = self.engines.connected()
        serving = self.router.serving
        has_engine = bool(connected) or self.config.engine.num_engines == 0
        board = {"": serving and has_engine}
        for service in self.config.services:
            board[SERVICE_NAMES[service]] = serving and (has_engine or service not in _ENGINE_SERVICES)
        for model, live in self.router.live_models().items():
            board[MODEL_PREFIX + model] = serving and live and bool(self.router.live_engines(model) & connected)
        self.health.publish(board)
