"""Captures forwards as CUDA graphs, and says for which versions that pays.

Launching a layer takes the host about 110 us (ten kernels of 6 us and a call of PyTorch's variable-length attention,
50 us), replaying a whole graph about 15 us. A layer of W weights takes a GPU 2 W T / (3e14/s) for T tokens, so graphs
pay while T is below 1.6e10 / W: 9,300 tokens of MiniLM-L6, 2,300 of BERT-base, 1,300 of BERT-large; above, the host is
ahead of the GPU anyway. These figures are estimates.

Has never run on a GPU: all that was tested is graphs.py, with a recorder in the place of `CudaCapture`.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch
from torch import Tensor

from shoal_models.graphs import CaptureFailed, Replay

_LAUNCH_WEIGHTS = 1.6e10  # weights of a layer times tokens that a GPU multiplies while the host launches a layer
_NUM_STREAMS = 32  # that PyTorch hands out, over and over

_live: weakref.WeakSet[CudaCapture] = weakref.WeakSet()  # those that have a stream


def most_tokens(layer_weights: int) -> int:
    """Tokens up to which a forward is worth capturing, by the weights of one of its layers."""
    return int(_LAUNCH_WEIGHTS / max(layer_weights, 1))


class CudaCapture:
    """Captures the forwards of one version; they share their memory, since they run one after the other.

    Called by one thread of the process only. A graph's output is never freed while the graph lives, so no other graph
    writes to it. The graphs of a version are freed all together, and not while one runs.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._stream: torch.cuda.Stream | None = None

    @property
    def stream_id(self) -> int | None:
        """CUDA's handle of the stream that this one captures on, once it has."""
        return None if self._stream is None else self._stream.cuda_stream

    @property
    def num_bytes(self) -> int:
        """As `Capture`; what lies between inputs and outputs counts as free in PyTorch's own figures."""
        segments = torch.cuda.memory_snapshot(self._pool)  # type: ignore[no-untyped-call]
        return sum(int(segment["total_size"]) for segment in segments)

    def __call__(self, compute: Callable[[], Tensor]) -> Replay:
        """As `Capture`. Other threads may use the device meanwhile: only this one is held to what may be captured.

        Raises:
            CaptureFailed: there is no stream left.
        """
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self._device):
            compute()  # loads kernels, which cannot be captured; on the stream that also runs what is replayed
            if self._stream is None:
                self._stream = _own_stream(self._device)
                _live.add(self)
            with torch.cuda.stream(self._stream):
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                try:
                    output = compute()
                finally:
                    graph.capture_end()

        def replay() -> Tensor:
            graph.replay()
            return output

        return replay


def _own_stream(device: torch.device) -> torch.cuda.Stream:
    """A stream on which nothing else was captured that still lives.

    cuBLAS writes to a workspace that PyTorch keeps for each stream and, in some releases, frees with any of the graphs
    that were captured on it.
    """
    taken = {capture.stream_id for capture in _live}
    for _ in range(_NUM_STREAMS):
        stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        if stream.cuda_stream not in taken:
            return stream
    raise CaptureFailed(f"{len(taken):,} versions have captured forwards; limit {_NUM_STREAMS}")
