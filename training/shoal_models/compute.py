"""In which dtype a version computes, and the form its weights take for that on a CPU.

T tokens, I inputs and O outputs of a linear layer.

A CPU without native bfloat16 multiplies it about ten times more slowly than float32, so there "bfloat16" means weights
rounded to bfloat16 and computed in float32. Linear layers on a CPU may be kept in oneDNN's own blocked layout, which
saves reordering them in every call.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from shoal_models.weights import rounded

_MAX_PACKED_WEIGHTS = 2**22  # in one piece: what is reordered at once holds up whoever waits for the processor


class ComputeError(Exception):
    """The device does not offer the dtype that was asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compute:
    """What weights are rounded to and what they are multiplied in."""

    rounded: torch.dtype
    computed: torch.dtype

    @property
    def name(self) -> str:
        """For people: "float32", "bfloat16" or "float32 (bfloat16 weights)"."""
        computed = str(self.computed).removeprefix("torch.")
        if self.rounded == self.computed:
            return computed
        return f"{computed} ({str(self.rounded).removeprefix('torch.')} weights)"

    @property
    def exact(self) -> bool:
        """Whether outputs may be compared with float32 ones at the float32 tolerance."""
        return self.rounded == torch.float32 and self.computed == torch.float32


def choose_compute(dtype: torch.dtype, device: torch.device) -> Compute:
    """How `dtype` is served on `device`.

    Raises:
        ComputeError: the device does not offer it.
    """
    if dtype == torch.float32:
        return Compute(rounded=dtype, computed=dtype)
    if device.type == "cpu":
        if dtype != torch.bfloat16:
            raise ComputeError(f"{dtype} is not served on a CPU; float32 and bfloat16 are")
        return Compute(rounded=dtype, computed=dtype if has_native_bfloat16() else torch.float32)
    if dtype == torch.bfloat16 and not torch.cuda.is_bf16_supported():
        raise ComputeError(f"{torch.cuda.get_device_name(device)} has no bfloat16")
    return Compute(rounded=dtype, computed=dtype)


def has_native_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 itself."""
    return _has_mkldnn() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # noqa: SLF001


def convert(model: nn.Module, compute: Compute) -> None:
    """Round and cast all floating-point weights in place."""
    done: dict[int, Tensor] = {}  # tied weights stay tied
    for parameter in model.parameters():
        if parameter.is_floating_point():
            key = id(parameter)
            if key not in done:
                done[key] = rounded(parameter.data, compute.rounded, compute.computed)
            parameter.data = done[key]
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_floating_point() and name not in module._non_persistent_buffers_set:  # noqa: SLF001
                setattr(module, name, rounded(buffer, compute.rounded, compute.computed))


class PrepackedLinear(nn.Module):
    """A linear layer, for inference on a CPU only, whose weight (O, I) lies in oneDNN's layout.

    oneDNN compiles a kernel for every number of rows that it meets and keeps it (measured on a 135M-parameter decoder:
    40 ms and 2 MB for each), so rows are padded to few numbers: `padded_rows`. A large weight is kept in several pieces
    (O), which costs a copy of the outputs (5 % of a vocabulary of 49,152 at 32 rows).
    """

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight_OI.shape
        piece = max(_MAX_PACKED_WEIGHTS // self.in_features, 1)
        self.packed = [
            torch.ops.mkldnn._reorder_linear_weight(part.contiguous())  # noqa: SLF001
            for part in torch.split(weight_OI, piece)
        ]
        biases = [None] * len(self.packed) if bias_O is None else torch.split(bias_O.detach().clone(), piece)
        self.biases: list[Tensor | None] = list(biases)

    def forward(self, inputs: Tensor) -> Tensor:
        """(..., I) to (..., O)."""
        num_rows = inputs.numel() // self.in_features
        if num_rows == 0:
            return inputs.new_empty((*inputs.shape[:-1], self.out_features))
        rows = inputs.reshape(num_rows, self.in_features)
        rows = nn.functional.pad(rows, (0, 0, 0, padded_rows(num_rows) - num_rows))
        parts: list[Tensor] = [
            torch.ops.mkldnn._linear_pointwise(rows, packed, bias, "none", [], "")  # noqa: SLF001
            for packed, bias in zip(self.packed, self.biases, strict=True)
        ]
        outputs = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
        return outputs[:num_rows].view(*inputs.shape[:-1], self.out_features)


def padded_rows(num_rows: int) -> int:
    """The next of 1 to 8, 10, 12, 14, 16, 20, 24, 28, 32, 40 ...: four an octave, so at most a fifth is padding."""
    step = max(1, 1 << max((num_rows - 1).bit_length() - 3, 0))
    return -(-num_rows // step) * step


def prepack_linears(model: nn.Module) -> int:
    """Replace linear layers (and GPT-2's transposed ones) by prepacked ones; returns how many.

    The plain weights are freed, except one tied to an embedding, which keeps its own copy.
    """
    if not _has_mkldnn():
        return 0
    replaced = 0
    with torch.inference_mode():
        for module in list(model.modules()):
            for name, child in list(module.named_children()):
                if type(child) is nn.Linear:
                    setattr(module, name, PrepackedLinear(child.weight, child.bias))
                elif type(child) is Conv1D:
                    setattr(module, name, PrepackedLinear(child.weight.t(), child.bias))
                else:
                    continue
                replaced += 1
    return replaced


def _has_mkldnn() -> bool:
    return bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
