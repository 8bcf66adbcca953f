"""MLServer: a custom runtime of the V2 inference protocol; adaptive batching and the pool of workers are its own."""

from __future__ import annotations

import numpy as np
from mlserver import MLModel
from mlserver.codecs import NumpyCodec, StringCodec
from mlserver.types import InferenceRequest, InferenceResponse

from benchmarks.peers.padded import PaddedClassifier
from benchmarks.peers.served import read_served


class Classifier(MLModel):
    """Takes BYTES "text" of shape [n], answers FP32 "scores" of shape [n, labels]."""

    async def load(self) -> bool:
        """In each worker."""
        self._model = PaddedClassifier(read_served())
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """One batch, which MLServer has put together."""
        scores = np.asarray(self._model.scores(StringCodec.decode_input(payload.inputs[0])), dtype=np.float32)
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("scores", scores)])
