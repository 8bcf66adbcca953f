"""In which dtype a version computes, and how its weights are brought into it.

A CPU without native bfloat16 multiplies it about ten times more slowly than float32, so there "bfloat16" means weights
rounded to bfloat16 and computed in float32. With "int8" the linear layers of a classifier multiply 8-bit integers, and
all else of it, as well as generators, is served in what the device computes fastest of bfloat16 and float32.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shoal_models.int8_linear import why_no_int8
from shoal_models.linears import has_mkldnn
from shoal_models.weights import rounded


class ComputeError(Exception):
    """The device does not offer the dtype that was asked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Compute:
    """What weights are rounded to and what they are multiplied in."""

    rounded: torch.dtype
    computed: torch.dtype
    int8: bool = False  # linear layers of classifiers multiply 8-bit integers
    fixed_steps: bool = False  # those of lean layers mostly in steps found at load, see int8_fixed.py

    @property
    def name(self) -> str:
        """For people, as "float32 (bfloat16 weights)" or "int8 (linear layers, fixed steps; else bfloat16)"."""
        computed = str(self.computed).removeprefix("torch.")
        if self.int8:
            return f"int8 (linear layers{', fixed steps' if self.fixed_steps else ''}; else {computed})"
        if self.rounded == self.computed:
            return computed
        return f"{computed} ({str(self.rounded).removeprefix('torch.')} weights)"

    @property
    def exact(self) -> bool:
        """Whether outputs may be compared with float32 ones at the float32 tolerance."""
        return self.rounded == torch.float32 and self.computed == torch.float32 and not self.int8

    def without_int8(self) -> Compute:
        """The same with floating-point linear layers."""
        return dataclasses.replace(self, int8=False, fixed_steps=False)

    def with_row_steps(self) -> Compute:
        """The same with steps found for each row when it comes."""
        return dataclasses.replace(self, fixed_steps=False)

    def in_float32(self) -> Compute:
        """The same computed in float32, but for 8-bit integers."""
        return dataclasses.replace(self, computed=torch.float32)


def choose_compute(dtype: torch.dtype, device: torch.device) -> Compute:
    """How `dtype` is served on `device`.

    Raises:
        ComputeError: the device does not offer it.
    """
    if dtype == torch.float32:
        return Compute(rounded=dtype, computed=dtype)
    if dtype == torch.int8:
        return _choose_int8(device)
    if device.type == "cpu":
        if dtype != torch.bfloat16:
            raise ComputeError(f"{dtype} is not served on a CPU; float32, bfloat16 and int8 are")
        return Compute(rounded=dtype, computed=dtype if has_native_bfloat16() else torch.float32)
    if dtype == torch.bfloat16 and not torch.cuda.is_bf16_supported():
        raise ComputeError(f"{torch.cuda.get_device_name(device)} has no bfloat16")
    return Compute(rounded=dtype, computed=dtype)


def _choose_int8(device: torch.device) -> Compute:
    reason = why_no_int8(device)
    if reason:
        raise ComputeError(f"int8 is not served here: {reason}; float32 and bfloat16 are")
    has_bfloat16 = has_native_bfloat16() if device.type == "cpu" else torch.cuda.is_bf16_supported()
    dtype = torch.bfloat16 if has_bfloat16 else torch.float32
    return Compute(rounded=dtype, computed=dtype, int8=True, fixed_steps=device.type == "cpu")


def has_native_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 itself."""
    return has_mkldnn() and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())  # noqa: SLF001


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
