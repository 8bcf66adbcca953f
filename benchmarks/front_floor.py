"""A gRPC server that does nothing: what `grpc.aio` alone costs a request, the floor under every front.

`python -m benchmarks.front_floor` answers each Classify call with bytes made beforehand and prints its port.
"""

from __future__ import annotations

import argparse
import asyncio
from typing import Any

import grpc
import uvloop
from shoal.v1 import classify_pb2

NUM_LABELS = 5


def main(arguments: list[str] | None = None) -> int:
    """Entry point; serves until it is killed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.front_floor", description=__doc__)
    parser.add_argument("--texts", type=int, default=1, help="results of an answer (default %(default)s)")
    uvloop.run(_serve(_answer(parser.parse_args(arguments).texts)))
    return 0


def _answer(num_texts: int) -> bytes:
    share = 1 / NUM_LABELS
    result = classify_pb2.Classification(
        label_ids=range(NUM_LABELS), scores=[share] * NUM_LABELS, num_input_tokens=27, num_windows=1
    )
    return classify_pb2.ClassifyResponse(results=[result] * num_texts).SerializeToString()


async def _serve(answer: bytes) -> None:
    async def classify(_: bytes, __: grpc.aio.ServicerContext[bytes, bytes]) -> bytes:
        return answer

    server = grpc.aio.server()
    handlers: dict[str, Any] = {"Classify": grpc.unary_unary_rpc_method_handler(classify)}
    server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("shoal.v1.ClassifyService", handlers)])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(port, flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    raise SystemExit(main())
