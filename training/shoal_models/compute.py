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

    def converted(self, weight: Tensor) -> Tensor:
        """A copy of `weight`, rounded and cast."""
        return weight.to(self.rounded, copy=True).to(self.computed)

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
    """Round and cast all floating-point weights in place; they own their memory afterwards.

    Linear layers that are prepacked have none left: prepack first, which saves copying them twice.
    """
    done: dict[int, Tensor] = {}  # tied weights stay tied
    for parameter in model.parameters():
        if parameter.is_floating_point():
            key = id(parameter)
            if key not in done:
                done[key] = compute.converted(parameter.data)
            parameter.data = done[key]
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_floating_point() and name not in module._non_persistent_buffers_set:  # noqa: SLF001
                setattr(module, name, buffer.to(compute.rounded).to(compute.computed))


class PrepackedLinear(nn.Module):
    """A linear layer, for inference on a CPU only, whose weight (O, I) lies in oneDNN's layout.

    oneDNN compiles a kernel for every number of rows that it meets and keeps it (measured on a 135M-parameter decoder:
    40 ms and 2 MB for each), so rows are padded to few numbers: `padded_rows`.
    """

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None, compute: Compute) -> None:
        """Copies both, converted; the originals are left alone."""
        super().__init__()
        self.out_features, self.in_features = weight_OI.shape
        weight_OI = weight_OI.detach().to(compute.rounded).to(compute.computed).contiguous()
        self.packed = torch.ops.mkldnn._reorder_linear_weight(weight_OI)  # noqa: SLF001
        self.bias = None if bias_O is None else compute.converted(bias_O.detach())

    def forward(self, inputs: Tensor) -> Tensor:
        """(..., I) to (..., O)."""
        num_rows = inputs.numel() // self.in_features
        if num_rows == 0:
            return inputs.new_empty((*inputs.shape[:-1], self.out_features))
        rows = inputs.reshape(num_rows, self.in_features)
        rows = nn.functional.pad(rows, (0, 0, 0, padded_rows(num_rows) - num_rows))
        outputs: Tensor = torch.ops.mkldnn._linear_pointwise(  # noqa: SLF001
            rows, self.packed, self.bias, "none", [], ""
        )
        return outputs[:num_rows].view(*inputs.shape[:-1], self.out_features)


def padded_rows(num_rows: int) -> int:
    """The next of 1 to 8, 10, 12, 14, 16, 20, 24, 28, 32, 40 ...: four an octave, so at most a fifth is padding."""
    step = max(1, 1 << max((num_rows - 1).bit_length() - 3, 0))
    return -(-num_rows // step) * step


def prepack_linears(model: nn.Module, compute: Compute) -> int:
    """Replace linear layers (and GPT-2's transposed ones) by converted and prepacked ones; returns how many.

    The plain weights are freed, except one tied to an embedding, which keeps its own copy.
    """
    if not _has_mkldnn():
        return 0
    replaced = 0
    with torch.inference_mode():
        for module in list(model.modules()):
            for name, child in list(module.named_children()):
                if type(child) is nn.Linear:
                    setattr(module, name, PrepackedLinear(child.weight, child.bias, compute))
                elif type(child) is Conv1D:
                    setattr(module, name, PrepackedLinear(child.weight.t(), child.bias, compute))
                else:
                    continue
                replaced += 1
    return replaced


def _has_mkldnn() -> bool:
    return bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
