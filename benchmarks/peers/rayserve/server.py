"""Ray Serve: one deployment of replicas behind its HTTP proxy, with `serve.batch`."""

from __future__ import annotations

import signal
import threading

import ray
from ray import serve
from starlette.requests import Request

from benchmarks.peers.padded import PaddedClassifier
from benchmarks.peers.served import read_served

SERVED = read_served()
NUM_CPUS = 4  # what replicas and proxy may book; threads are set by torch


@serve.deployment(
    num_replicas=SERVED.workers,
    max_ongoing_requests=256,
    ray_actor_options={"num_cpus": 1},
    logging_config={"log_level": "WARNING", "enable_access_log": False},
)
class Classifier:
    """Takes {"text": ...}, answers {"scores": [...]}."""

    def __init__(self) -> None:
        self._model = PaddedClassifier(SERVED)

    @serve.batch(max_batch_size=SERVED.max_batch, batch_wait_timeout_s=SERVED.delay_ms / 1e3)
    async def _scores(self, texts: list[str]) -> list[list[float]]:
        return self._model.scores(texts)

    async def __call__(self, request: Request) -> dict[str, list[float]]:
        """One request."""
        return {"scores": await self._scores((await request.json())["text"])}


if __name__ == "__main__":
    ray.init(
        num_cpus=NUM_CPUS,
        include_dashboard=False,
        _node_ip_address="127.0.0.1",
        object_store_memory=128 * 2**20,
        logging_level="WARNING",
    )
    serve.start(http_options={"host": "127.0.0.1", "port": SERVED.port})
    serve.run(
        Classifier.bind(),  # type: ignore[attr-defined]
        route_prefix="/classify",
    )
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    stopped.wait()
    serve.shutdown()
    ray.shutdown()
