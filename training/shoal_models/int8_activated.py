"""A linear layer in 8-bit integers behind an activation, below whose lowest value no input lies.

T rows, I inputs and O outputs.

Each row has a step of its own, as in int8_linear.py, but the 256 integers cover what is there: with one half for
positive and one for negative inputs a GELU would leave nearly half of them unused.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from shoal_models.int8_linear import OneDnnProduct, quantise_rows
from shoal_models.int8_stack import Activated
from shoal_models.linears import Activation

_LOWEST = {"gelu": -0.1701, "relu": 0.0}  # -0.16997 by erf and -0.17005 by tanh
_SMALLEST = -128  # integer, which stands for the lowest value
_STEPS = 255.0


class ActivatedInt8Linear(nn.Module):
    """On a CPU; then a residual is added."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor, behind: Activation) -> None:
        """`behind` is the activation that the inputs come of."""
        super().__init__()
        self.out_features, self.in_features = weight_OI.shape
        self._lowest = _LOWEST[behind.name]
        weight = quantise_rows(weight_OI.detach())
        self._product = OneDnnProduct(weight)
        sums_O = weight.values_TI.sum(1, dtype=torch.float32) * weight.steps_T1.view(-1)
        self._bias_O = bias_O.detach().float() + self._lowest * sums_O

    def forward(self, inputs_TI: Tensor, residual_TO: Tensor) -> Tensor:
        """(T, I) to (T, O), float32."""
        inputs_TI = inputs_TI.float()
        range_T1 = (inputs_TI.amax(-1, keepdim=True) - self._lowest).clamp_min_(torch.finfo(torch.float32).tiny)
        inverse_T1 = _STEPS / range_T1
        values_TI = (inputs_TI * inverse_T1).add_(inverse_T1 * -self._lowest + _SMALLEST).round_().to(torch.int8)
        outputs_TO = self._product(values_TI, _SMALLEST).mul_(range_T1 / _STEPS)
        return outputs_TO.add_(self._bias_O).add_(residual_TO)

    def tensors(self) -> Activated:
        """For all layers in one call."""
        product = self._product
        return Activated(self._lowest, product.packed, product.steps_O, product.zeros_O, self._bias_O)
