"""PyTriton: Triton's own front and dynamic batcher, with the model in Python workers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

from benchmarks.peers.padded import PaddedClassifier
from benchmarks.peers.served import read_served

NUM_LABELS = 5


class Classifier:
    """One worker; its model is loaded with the first call, in the process that serves it."""

    def __init__(self) -> None:
        self._model: PaddedClassifier | None = None

    @batch
    def __call__(self, text: NDArray[np.object_]) -> dict[str, NDArray[np.float32]]:
        """One batch."""
        if self._model is None:
            self._model = PaddedClassifier(read_served())
        texts = [value.decode() for value in text[:, 0]]
        return {"scores": np.asarray(self._model.scores(texts), dtype=np.float32)}


if __name__ == "__main__":
    served = read_served()
    config = TritonConfig(
        http_address="127.0.0.1", http_port=served.port, allow_grpc=False, allow_metrics=False, log_verbose=0
    )
    with Triton(config=config) as triton:
        triton.bind(
            model_name="minilm",
            infer_func=[Classifier() for _ in range(served.workers)],
            inputs=[Tensor(name="text", dtype=bytes, shape=(1,))],
            outputs=[Tensor(name="scores", dtype=np.float32, shape=(NUM_LABELS,))],
            config=ModelConfig(
                max_batch_size=served.max_batch,
                batcher=DynamicBatcher(max_queue_delay_microseconds=int(served.delay_ms * 1e3)),
            ),
        )
        triton.serve()
