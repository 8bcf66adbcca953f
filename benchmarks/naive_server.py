"""The server to beat: what a competent user writes in an afternoon with grpcio and transformers.

One process; a synchronous gRPC server with a thread pool; one forward at a time under a lock, on all cores; each
request as it comes, without padding; Generate by transformers' own `generate` with its KV cache, streamed token by
token, and ended when its client leaves. Speaks shoal.v1 as far as the benchmarks need, from the folders Shoal loads.
"""

from __future__ import annotations

import argparse
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import grpc
import torch
from shoal.v1 import classify_pb2, classify_pb2_grpc, common_pb2, generate_pb2, generate_pb2_grpc
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    StoppingCriteria,
)
from transformers.generation.streamers import BaseStreamer

NUM_THREADS = 80  # requests that wait for the lock; more than any benchmark has in flight
_END = -1


class ClassifyServicer(classify_pb2_grpc.ClassifyServiceServicer):
    """Classify, one text after the other."""

    def __init__(self, folder: Path, dtype: torch.dtype, lock: threading.Lock) -> None:
        self._served_by = common_pb2.ServedBy(model=folder.parent.name, version=int(folder.name))
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        self._model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=dtype).eval()
        self._labels = [self._model.config.id2label[i] for i in range(self._model.config.num_labels)]
        self._lock = lock

    def Classify(  # noqa: N802  the protocol's name
        self,
        request: classify_pb2.ClassifyRequest,
        context: grpc.ServicerContext,  # noqa: ARG002
    ) -> classify_pb2.ClassifyResponse:
        """Softmax scores, best first."""
        reply = classify_pb2.ClassifyResponse(served_by=self._served_by, labels=self._labels)
        reply.head = classify_pb2.HEAD_KIND_SINGLE_LABEL
        for given in request.inputs:
            encoded = self._tokenizer(given.text, return_tensors="pt", truncation=True)
            with self._lock, torch.inference_mode():
                scores = self._model(**encoded).logits[0].float().softmax(dim=-1)
            best = scores.argsort(descending=True)
            reply.results.add(
                label_ids=best.tolist(), scores=scores[best].tolist(), num_input_tokens=encoded["input_ids"].shape[1]
            )
        return reply


class _TokenQueue(BaseStreamer):
    """Takes tokens from `generate`, which hands over the prompt first."""

    def __init__(self) -> None:
        self.tokens: SimpleQueue[int] = SimpleQueue()
        self._saw_prompt = False

    def put(self, value: torch.Tensor) -> None:
        """A new token, or the prompt."""
        if self._saw_prompt:
            for token in value.reshape(-1).tolist():
                self.tokens.put(token)
        self._saw_prompt = True

    def end(self) -> None:
        """No more tokens."""
        self.tokens.put(_END)


class _ClientLeft(StoppingCriteria):
    def __init__(self, context: grpc.ServicerContext) -> None:
        self._context = context

    def __call__(self, input_ids: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return torch.full((input_ids.shape[0],), not self._context.is_active(), dtype=torch.bool)


class GenerateServicer(generate_pb2_grpc.GenerateServiceServicer):
    """StreamGenerate, greedy, one request after the other."""

    def __init__(self, folder: Path, dtype: torch.dtype, lock: threading.Lock) -> None:
        self._served_by = common_pb2.ServedBy(model=folder.parent.name, version=int(folder.name))
        self._tokenizer = AutoTokenizer.from_pretrained(folder)
        model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
        self._model = model.eval()
        self._model.generation_config.pad_token_id = self._model.generation_config.pad_token_id or 0
        self._lock = lock

    def StreamGenerate(  # noqa: N802  the protocol's name
        self, request: generate_pb2.StreamGenerateRequest, context: grpc.ServicerContext
    ) -> Iterator[generate_pb2.StreamGenerateResponse]:
        """One delta for each token, then the summary."""
        prompt = self._tokenizer(request.generation.text, return_tensors="pt")
        queue = _TokenQueue()
        worker = threading.Thread(target=self._generate, args=(prompt, request.generation.stop, queue, context))
        worker.start()
        generated: list[int] = []
        text = ""
        while (token := queue.tokens.get()) != _END:
            generated.append(token)
            whole = str(self._tokenizer.decode(generated, skip_special_tokens=True))
            delta = generate_pb2.GenerationDelta(text=whole[len(text) :], token_ids=[token])
            text = whole
            yield generate_pb2.StreamGenerateResponse(delta=delta)
        worker.join()
        usage = generate_pb2.Usage(num_prompt_tokens=prompt["input_ids"].shape[1], num_output_tokens=len(generated))
        summary = generate_pb2.GenerationSummary(served_by=self._served_by, usage=usage)
        summary.completions.add(finish_reason=generate_pb2.FINISH_REASON_LENGTH, num_output_tokens=len(generated))
        yield generate_pb2.StreamGenerateResponse(summary=summary)

    def _generate(
        self,
        prompt: Any,
        stop: generate_pb2.StopConditions,
        queue: _TokenQueue,
        context: grpc.ServicerContext,
    ) -> None:
        try:
            with self._lock, torch.inference_mode():
                if context.is_active():
                    self._model.generate(
                        **prompt,
                        do_sample=False,
                        max_new_tokens=stop.max_new_tokens,
                        min_new_tokens=stop.min_new_tokens or None,
                        streamer=queue,
                        stopping_criteria=[_ClientLeft(context)],
                    )
        finally:
            queue.end()


def main(arguments: list[str] | None = None) -> int:
    """Serve until SIGTERM; the first line printed is the port."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks naive-server", description=__doc__)
    parser.add_argument("--address", default="127.0.0.1:0", help="host:port (default %(default)s)")
    parser.add_argument("--classify", type=Path, metavar="FOLDER", help="<model>/<version> of a classifier")
    parser.add_argument("--generate", type=Path, metavar="FOLDER", help="<model>/<version> of a generator")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    options = parser.parse_args(arguments)
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    dtype = getattr(torch, options.dtype)
    lock = threading.Lock()
    server = grpc.server(ThreadPoolExecutor(NUM_THREADS), options=[("grpc.so_reuseport", 0)])
    if options.classify is not None:
        servicer = ClassifyServicer(options.classify, dtype, lock)
        classify_pb2_grpc.add_ClassifyServiceServicer_to_server(servicer, server)  # type: ignore[no-untyped-call]
    if options.generate is not None:
        generator = GenerateServicer(options.generate, dtype, lock)
        generate_pb2_grpc.add_GenerateServiceServicer_to_server(generator, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port(options.address)
    server.start()
    print(port, flush=True)
    stopped = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.set())
    stopped.wait()
    server.stop(grace=None).wait()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
