"""A linear layer in 8-bit integers behind an activation, below whose lowest value no input lies.

T rows, I inputs and O outputs.

Each row has a step of its own, as in int8_linear.py, but the 256 integers cover what is there: with one half for
positive and one for negative inputs a GELU would leave nearly half of them unused.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from shoal_models.int8_linear import prepacked, quantise_rows
from shoal_models.int8_stack import Activated, activated_product_added
from shoal_models.linears import Activation
from shoal_models.sizes import filled_up

_LOWEST = {"gelu": -0.1701, "relu": 0.0}  # -0.16997 by erf and -0.17005 by tanh


class ActivatedInt8Linear(nn.Module):
    """On a CPU; then a residual is added."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor, behind: Activation) -> None:
        """`behind` is the activation that the inputs come of."""
        super().__init__()
        self.out_features, self.in_features = weight_OI.shape
        weight, lowest = quantise_rows(weight_OI.detach()), _LOWEST[behind.name]
        steps_O = weight.steps_T1.view(-1)
        self._tensors = Activated(
            lowest=lowest,
            packed=prepacked(weight),
            steps_O=steps_O,
            zeros_O=torch.zeros(self.out_features, dtype=torch.int32),
            bias_O=bias_O.detach().float() + lowest * weight.values_TI.sum(1, dtype=torch.float32) * steps_O,
        )

    def forward(self, inputs_TI: Tensor, residual_TO: Tensor) -> Tensor:
        """(T, I) to (T, O), float32. Rows are padded to few sizes."""
        inputs_TI, filled_TO = filled_up(inputs_TI.float()), filled_up(residual_TO.float())
        return activated_product_added(inputs_TI, filled_TO, self._tensors)[: len(residual_TO)]

    def tensors(self) -> Activated:
        """For all layers in one call."""
        return self._tensors
