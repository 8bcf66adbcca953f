"""The V2 (open) inference protocol over REST, for one text: what MLServer and Triton speak."""

from __future__ import annotations

from benchmarks.http_calls import Route

MODEL = "minilm"


def route(shape: list[int]) -> Route:
    """`shape` is that of the one text as the server's model takes it."""
    return Route(
        path=f"/v2/models/{MODEL}/infer",
        request=lambda text: {"inputs": [{"name": "text", "shape": shape, "datatype": "BYTES", "data": [text]}]},
        scores=lambda body: list(body["outputs"][0]["data"]),
    )
