"""Linear layers in 8-bit integers whose inputs have fixed steps, one for each channel, found when a version is loaded.

T rows, I inputs and O outputs.

With steps that do not come of the rows, oneDNN finishes outputs within its product; scales, bias, activation and
residual are passes of their own otherwise. What a channel's step saves its weights lose, and so both are balanced, as
in SmoothQuant (Xiao et al. 2023). Inputs beyond what the steps reach are cut off there.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shoal_models.int8_linear import LARGEST, prepacked, quantise_rows
from shoal_models.int8_stack import Fixed, FloatNorm, int8_product, int8_product_added
from shoal_models.linears import NO_ACTIVATION, Activation
from shoal_models.sizes import filled_up

_REACH = 2.0  # times the largest input that was seen
_INPUTS_SHARE = 0.7  # of a channel's range that its inputs take; its weights take the rest
_FLOOR = 1e-3  # of the largest channel: what is smaller is taken to be as large


class FixedInt8Linear(nn.Module):
    """A linear layer on a CPU in 8-bit integers, then either its activation or a residual added."""

    def __init__(
        self,
        weight_OI: Tensor,
        bias_O: Tensor,
        largest_I: Tensor,
        *,
        activation: Activation = NO_ACTIVATION,
        dtype: torch.dtype,
    ) -> None:
        """`largest_I` are the largest absolute inputs that were seen; outputs have `dtype`.

        They are float32 behind an activation, for whoever reads them quantises them again, and with a residual.
        """
        super().__init__()
        self.out_features, self.in_features = weight_OI.shape
        self.activation = activation
        weight_OI = weight_OI.detach().float()
        scales_I = _balanced(weight_OI, largest_I)
        weight = quantise_rows(weight_OI * scales_I)
        step = float((largest_I / scales_I).max()) * _REACH / LARGEST or 1.0
        self._tensors = Fixed(
            inverse_I=1 / (step * scales_I),
            step=step,
            packed=prepacked(weight),
            steps_O=weight.steps_T1.view(-1),
            zeros_O=torch.zeros(self.out_features, dtype=torch.int32),
            bias_O=bias_O.detach().float().clone(),
            like=torch.empty(0, dtype=dtype if activation is NO_ACTIVATION else torch.float32),
        )

    def forward(self, inputs_TI: Tensor, residual_TO: Tensor | None = None) -> Tensor:
        """(T, I) to (T, O). Rows are padded to few sizes."""
        num_rows = len(inputs_TI)
        inputs_TI = filled_up(inputs_TI)
        if residual_TO is None:
            names = (self.activation.name, self.activation.algorithm)
            return int8_product(inputs_TI, self._tensors, *names)[:num_rows]
        assert self.activation is NO_ACTIVATION, "no lean layer adds a residual behind an activation"
        return int8_product_added(inputs_TI, filled_up(residual_TO.float()), self._tensors)[:num_rows]

    def tensors(self) -> Fixed:
        """For all layers in one call."""
        return self._tensors


class Float32Norm(nn.Module):
    """A LayerNorm in float32 whatever the dtype of its inputs and of the model around it."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        super().__init__()
        self.eps = norm.eps
        self._shape = norm.normalized_shape
        self._weight_E = norm.weight.detach().float().clone()
        self._bias_E = norm.bias.detach().float().clone()

    def forward(self, rows_TE: Tensor) -> Tensor:
        """(T, E), float32."""
        return F.layer_norm(rows_TE.float(), self._shape, self._weight_E, self._bias_E, self.eps)

    def tensors(self) -> FloatNorm:
        """For all layers in one call."""
        return FloatNorm(self._weight_E, self._bias_E, self.eps)


def _balanced(weight_OI: Tensor, largest_I: Tensor) -> Tensor:
    """By what each channel's inputs are divided and its weights multiplied."""
    heaviest_I = weight_OI.abs().amax(0)
    inputs_I, weights_I = (
        values_I.clamp_min(max(_FLOOR * float(values_I.max()), torch.finfo(torch.float32).tiny))
        for values_I in (largest_I, heaviest_I)
    )
    return inputs_I**_INPUTS_SHARE / weights_I ** (1 - _INPUTS_SHARE)
