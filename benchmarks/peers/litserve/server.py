"""LitServe: a FastAPI front and worker processes, with dynamic batching."""

from __future__ import annotations

import litserve

from benchmarks.peers.padded import PaddedClassifier
from benchmarks.peers.served import read_served


class Classifier(litserve.LitAPI):
    """Takes {"text": ...}, answers {"scores": [...]}."""

    def setup(self, device: str) -> None:  # noqa: ARG002  one device
        """Load the model, in each worker."""
        self._model = PaddedClassifier(read_served())

    def decode_request(self, request: dict[str, str]) -> str:
        """The text."""
        return request["text"]

    def batch(self, inputs: list[str]) -> list[str]:
        """Keep texts as a list."""
        return inputs

    def predict(self, inputs: list[str] | str) -> list[list[float]]:
        """One batch; one text where batching is off."""
        return self._model.scores([inputs] if isinstance(inputs, str) else inputs)

    def unbatch(self, output: list[list[float]]) -> list[list[float]]:
        """One answer a text."""
        return output

    def encode_response(self, output: list[float] | list[list[float]]) -> dict[str, list[float]]:
        """As JSON."""
        first = output[0]
        return {"scores": first if isinstance(first, list) else output}  # type: ignore[dict-item]


if __name__ == "__main__":
    served = read_served()
    api = Classifier(max_batch_size=served.max_batch, batch_timeout=served.delay_ms / 1e3)
    server = litserve.LitServer(
        api, accelerator="cpu", workers_per_device=served.workers, timeout=False, fast_queue=False
    )
    server.run(host="127.0.0.1", port=served.port, num_api_servers=1, generate_client_file=False, log_level="warning")
