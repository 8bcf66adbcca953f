"""Captures forwards as CUDA graphs, and says for which versions that pays.

Launching a layer takes the host about 110 us (ten kernels of 6 us and a call of PyTorch's variable-length attention,
50 us), replaying a whole graph about 15 us. A layer of W weights takes a GPU 2 W T / (3e14/s) for T tokens, so graphs
pay while T is below 1.6e10 / W: 9,300 tokens of MiniLM-L6, 2,300 of BERT-base, 1,300 of BERT-large; above, the host is
ahead of the GPU anyway. These figures are estimates.

Has never run on a GPU: all that was tested is graphs.py, with a recorder in the place of `CudaCapture`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from shoal_models.graphs import Replay

_LAUNCH_WEIGHTS = 1.6e10  # weights of a layer times tokens that a GPU multiplies while the host launches a layer


def most_tokens(layer_weights: int) -> int:
    """Tokens up to which a forward is worth capturing, by the weights of one of its layers."""
    return int(_LAUNCH_WEIGHTS / max(layer_weights, 1))


class CudaCapture:
    """Captures the forwards of one version; they share their memory, since they run one after the other.

    A graph's output is never freed while the graph lives, so no other graph writes to it.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        with torch.cuda.device(device):
            self._pool = torch.cuda.graph_pool_handle()
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def __call__(self, compute: Callable[[], Tensor]) -> Replay:
        """As `Capture`. Other threads may use the device meanwhile: only this one is held to what may be captured."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.device(self._device):
            before = torch.cuda.current_stream()
            self._stream.wait_stream(before)
            with torch.cuda.stream(self._stream):
                compute()  # loads kernels and makes workspaces, which cannot be captured
                self._stream.synchronize()
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                try:
                    output = compute()
                finally:
                    graph.capture_end()
            before.wait_stream(self._stream)

        def replay() -> Tensor:
            graph.replay()
            return output

        return replay
