"""Linear layers with what follows them, and the form that a CPU multiplies fastest.

T rows, I inputs and O outputs.

oneDNN reorders a plain weight in every call; one that lies in its own blocked layout is ready. Its float32 kernels are
also over twice as fast as those that PyTorch calls by default on processors that are not Intel's (measured: 260 against
112 GFLOP/s on one core with AVX-512).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from shoal_models.sizes import few_sizes

_MAX_PACKED_WEIGHTS = 2**22  # in one piece: what is reordered at once holds up whoever waits for the processor


@dataclass(frozen=True, slots=True, kw_only=True)
class Activation:
    """An activation that oneDNN applies within a product."""

    name: str  # oneDNN's
    algorithm: str = ""

    def __call__(self, outputs: Tensor) -> Tensor:
        """The same, on its own."""
        if self.name == "gelu":
            return F.gelu(outputs, approximate=self.algorithm)
        return torch.relu(outputs) if self.name == "relu" else outputs


NO_ACTIVATION = Activation(name="none")
ACTIVATIONS = {
    "gelu": Activation(name="gelu", algorithm="none"),
    "gelu_new": Activation(name="gelu", algorithm="tanh"),
    "gelu_pytorch_tanh": Activation(name="gelu", algorithm="tanh"),
    "relu": Activation(name="relu"),
}
"""Those of transformers that can be fused, by their names there."""


class FusedLinear(nn.Linear):
    """A linear layer, then its activation, then a residual added."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None, activation: Activation = NO_ACTIVATION) -> None:
        """Takes over weight and bias."""
        nn.Module.__init__(self)
        self.out_features, self.in_features = weight_OI.shape
        self.weight = nn.Parameter(weight_OI, requires_grad=False)
        self.register_parameter("bias", None if bias_O is None else nn.Parameter(bias_O, requires_grad=False))
        self.activation = activation

    def forward(self, inputs_TI: Tensor, residual_TO: Tensor | None = None) -> Tensor:
        """(T, I) to (T, O)."""
        outputs_TO = self.activation(F.linear(inputs_TI, self.weight, self.bias))
        return outputs_TO if residual_TO is None else outputs_TO + residual_TO


class PrepackedLinear(nn.Module):
    """The same for inference on a CPU, its weight in oneDNN's layout; also stands in for a plain linear layer.

    Rows are padded to few sizes. A large weight is kept in several pieces (O), which costs a copy of the outputs (5 %
    of a vocabulary of 49,152 at 32 rows).
    """

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None, activation: Activation = NO_ACTIVATION) -> None:
        super().__init__()
        self.out_features, self.in_features = weight_OI.shape
        self.activation = activation
        piece = max(_MAX_PACKED_WEIGHTS // self.in_features, 1)
        self.packed = [
            torch.ops.mkldnn._reorder_linear_weight(part.contiguous())  # noqa: SLF001
            for part in torch.split(weight_OI, piece)
        ]
        biases = [None] * len(self.packed) if bias_O is None else torch.split(bias_O.detach().clone(), piece)
        self.biases: list[Tensor | None] = list(biases)

    def forward(self, inputs: Tensor, residual: Tensor | None = None) -> Tensor:
        """(..., I) to (..., O)."""
        rows = inputs.view(-1, self.in_features) if inputs.is_contiguous() else inputs.reshape(-1, self.in_features)
        num_rows = len(rows)
        if num_rows == 0:
            return inputs.new_empty((*inputs.shape[:-1], self.out_features))
        padding = few_sizes(num_rows) - num_rows
        if padding or len(self.packed) > 1 or (residual is not None and self.activation is not NO_ACTIVATION):
            outputs = self._in_pieces(F.pad(rows, (0, 0, 0, padding)) if padding else rows)[:num_rows]
            outputs = outputs if residual is None else outputs + residual.view(num_rows, self.out_features)
        else:
            outputs = self._whole(rows, residual)
        return outputs.view(*inputs.shape[:-1], self.out_features)

    def _whole(self, rows: Tensor, residual: Tensor | None) -> Tensor:
        packed, bias = self.packed[0], self.biases[0]
        if residual is None:
            return _product(rows, packed, bias, self.activation)
        residual = residual.view(len(rows), self.out_features)
        outputs: Tensor = torch.ops.mkldnn._linear_pointwise.binary(rows, residual, packed, bias, "add")  # noqa: SLF001
        return outputs

    def _in_pieces(self, rows: Tensor) -> Tensor:
        pairs = zip(self.packed, self.biases, strict=True)
        parts = [_product(rows, packed, bias, self.activation) for packed, bias in pairs]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def prepack_linears(model: nn.Module) -> int:
    """Replace linear layers (and GPT-2's transposed ones) by prepacked ones; returns how many.

    The plain weights are freed, except one tied to an embedding, which keeps its own copy.
    """
    if not has_mkldnn():
        return 0
    replaced = 0
    with torch.inference_mode():
        for module in list(model.modules()):
            for name, child in list(module.named_children()):
                packed = _prepacked(child)
                if packed is not None:
                    setattr(module, name, packed)
                    replaced += 1
    return replaced


def has_mkldnn() -> bool:
    """Whether this build of PyTorch has oneDNN."""
    return bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]


def _prepacked(layer: Any) -> PrepackedLinear | None:
    if type(layer) is FusedLinear:
        return PrepackedLinear(layer.weight, layer.bias, layer.activation)
    if type(layer) is nn.Linear:
        return PrepackedLinear(layer.weight, layer.bias)
    return PrepackedLinear(layer.weight.t(), layer.bias) if type(layer) is Conv1D else None


def _product(rows: Tensor, packed: Tensor, bias: Tensor | None, activation: Activation) -> Tensor:
    outputs: Tensor = torch.ops.mkldnn._linear_pointwise(  # noqa: SLF001
        rows, packed, bias, activation.name, [], activation.algorithm
    )
    return outputs
