"""BentoML: one service with a batchable endpoint, whose dispatcher adapts batch and wait to what it sees."""

from __future__ import annotations

import bentoml

from benchmarks.peers.padded import PaddedClassifier
from benchmarks.peers.served import read_served

SERVED = read_served()


@bentoml.service(workers=SERVED.workers, traffic={"timeout": 600})
class Classifier:
    """Takes {"texts": [...]}, answers a list of scores for each."""

    def __init__(self) -> None:
        self._model = PaddedClassifier(SERVED)

    @bentoml.api(batchable=SERVED.max_batch > 1, max_batch_size=max(2, SERVED.max_batch), max_latency_ms=60_000)
    def classify(self, texts: list[str]) -> list[list[float]]:
        """One batch, which BentoML has put together."""
        return self._model.scores(texts)
