"""Mosec: one stage of workers behind its Rust front, with dynamic batching."""

from __future__ import annotations

import sys

from mosec import Server, Worker

from benchmarks.peers.padded import PaddedClassifier
from benchmarks.peers.served import read_served


class Classifier(Worker):
    """Takes {"text": ...}, answers {"scores": [...]}."""

    def __init__(self) -> None:
        super().__init__()
        self._model = PaddedClassifier(read_served())

    def forward(self, data: list[dict[str, str]]) -> list[dict[str, list[float]]]:
        """One batch."""
        return [{"scores": scores} for scores in self._model.scores([given["text"] for given in data])]


class SingleClassifier(Worker):
    """The same without batching, where Mosec hands over one request and not a list."""

    def __init__(self) -> None:
        super().__init__()
        self._model = PaddedClassifier(read_served())

    def forward(self, data: dict[str, str]) -> dict[str, list[float]]:
        """One request."""
        return {"scores": self._model.scores([data["text"]])[0]}


if __name__ == "__main__":
    served = read_served()
    sys.argv[1:] = ["--address", "127.0.0.1", "--port", str(served.port), "--timeout", "600000"]
    server = Server()
    if served.max_batch > 1:
        server.append_worker(
            Classifier, num=served.workers, max_batch_size=served.max_batch, max_wait_time=int(served.delay_ms)
        )
    else:
        server.append_worker(SingleClassifier, num=served.workers)
    server.run()
