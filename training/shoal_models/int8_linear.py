"""Linear layers whose weights and inputs are multiplied as 8-bit integers.

T rows, I inputs and O outputs. A weight has one scale for each output, an input one for each row, found when it comes:
what a row becomes depends on nothing but itself. Sums are exact integers; scales, bias, activation and residual are
float32. Steps that do not come of the rows: int8_fixed.py; which layers are replaced: int8_model.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shoal_models.linears import NO_ACTIVATION, Activation, has_mkldnn
from shoal_models.sizes import filled_up

LARGEST = 127.0  # -128 is left out, so that what is quantised is as symmetric as its scale
ZERO_POINT = 128  # of rows as oneDNN wants them: unsigned; for signed ones it has only a reference kernel
_MIN_CUDA_ROWS = 17  # `torch._int_mm` takes no fewer,
_CUDA_STEP = 8  # and only multiples of this many inputs and outputs


@dataclass(frozen=True, slots=True, kw_only=True)
class Quantised:
    """Rows as signed integers times their steps."""

    values_TI: Tensor  # int8, -127 to 127
    steps_T1: Tensor  # float32


def quantise_rows(rows_TI: Tensor) -> Quantised:
    """Every row by a step of its own: the largest absolute value becomes 127. A row of zeros stays one."""
    rows_TI = rows_TI.float().contiguous()
    largest_T1 = torch.maximum(rows_TI.amax(-1, keepdim=True), rows_TI.amin(-1, keepdim=True).neg_())
    steps_T1 = (largest_T1 / LARGEST).clamp_min_(torch.finfo(torch.float32).tiny)
    values_TI = (rows_TI * steps_T1.reciprocal()).round_().to(torch.int8)
    return Quantised(values_TI=values_TI, steps_T1=steps_T1)


def prepacked(weight: Quantised) -> Tensor:
    """A weight, a row for each output, in oneDNN's layout."""
    packed: Tensor = torch.ops.onednn.qlinear_prepack(weight.values_TI, [1, weight.values_TI.shape[1]])
    return packed


class OneDnnProduct:
    """The product of quantised rows and a weight on a CPU with VNNI, the weight in oneDNN's layout."""

    def __init__(self, weight: Quantised) -> None:
        """`weight` has a row for each output."""
        self._packed = prepacked(weight)
        self._steps_O = weight.steps_T1.view(-1)
        self._zeros_O = torch.zeros(len(self._steps_O), dtype=torch.int32)

    def __call__(self, values_TI: Tensor) -> Tensor:
        """(T, O), float32, still to be multiplied by the rows' steps. Rows are padded to few sizes."""
        unsigned_TI = filled_up(values_TI.view(torch.uint8).bitwise_xor(ZERO_POINT))
        outputs_TO: Tensor = torch.ops.onednn.qlinear_pointwise(
            unsigned_TI, 1.0, ZERO_POINT, self._packed, self._steps_O, self._zeros_O,
            None, 1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
        return outputs_TO[: len(values_TI)]


class IntMmProduct:
    """The same by `torch._int_mm`, as GPUs have it."""

    def __init__(self, weight: Quantised) -> None:
        """`weight` has a row for each output."""
        self._num_outputs, num_inputs = weight.values_TI.shape
        self._padding = -num_inputs % _CUDA_STEP
        values_OI = F.pad(weight.values_TI, (0, self._padding, 0, -self._num_outputs % _CUDA_STEP))
        self._values_IO = values_OI.contiguous().t()
        self._steps_O = weight.steps_T1.view(-1)

    def __call__(self, values_TI: Tensor) -> Tensor:
        """(T, O), float32, still to be multiplied by the rows' steps."""
        num_rows = len(values_TI)
        padded_TI = F.pad(values_TI, (0, self._padding, 0, max(_MIN_CUDA_ROWS - num_rows, 0)))
        sums_TO = torch._int_mm(padded_TI, self._values_IO)  # noqa: SLF001
        return sums_TO[:num_rows, : self._num_outputs] * self._steps_O


class Int8Linear(nn.Module):
    """A linear layer in 8-bit integers, then its activation, then a residual added; stands in for a plain one, too.

    Outputs have the residual's dtype, else the inputs'; after an activation they stay float32, for whoever reads them
    quantises them again.
    """

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None, activation: Activation = NO_ACTIVATION) -> None:
        super().__init__()
        self.out_features, self.in_features = weight_OI.shape
        self.activation = activation
        weight = quantise_rows(weight_OI.detach())
        self._product = OneDnnProduct(weight) if weight_OI.device.type == "cpu" else IntMmProduct(weight)
        zeros_O = torch.zeros(self.out_features, device=weight_OI.device)
        self._bias_O = zeros_O if bias_O is None else bias_O.detach().float().clone()

    def forward(self, inputs: Tensor, residual: Tensor | None = None) -> Tensor:
        """(..., I) to (..., O)."""
        shape = (*inputs.shape[:-1], self.out_features)
        rows_TI = inputs.reshape(-1, self.in_features)
        dtype = inputs.dtype if residual is None else residual.dtype
        if self.activation is not NO_ACTIVATION and residual is None:
            dtype = torch.float32
        if len(rows_TI) == 0:
            return inputs.new_empty(shape, dtype=dtype)
        rows = quantise_rows(rows_TI)
        outputs_TO = self._product(rows.values_TI).mul_(rows.steps_T1).add_(self._bias_O)
        outputs_TO = self.activation(outputs_TO).view(shape)
        return (outputs_TO if residual is None else outputs_TO + residual).to(dtype)


def why_no_int8(device: torch.device) -> str:
    """Why `device` does not multiply 8-bit integers fast and right; empty if it does."""
    if device.type != "cpu":
        return ""
    if not (has_mkldnn() and hasattr(torch.ops.onednn, "qlinear_pointwise")):
        return "this build of PyTorch has no oneDNN"
    if not torch.cpu._is_vnni_supported():  # noqa: SLF001
        return "this processor has no VNNI"  # without it pairs of products overflow 16 bits
    return ""
