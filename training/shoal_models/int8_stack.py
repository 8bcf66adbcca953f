"""What all lean layers compute in one call where they multiply 8-bit integers in fixed steps; see layer_stack.py.

T packed tokens, S sequences, E hidden size, D head size, I inputs and O outputs of a product. The layers one by one
call the same products, so that answers are the same to the last bit.

Annotations are not postponed in this file: TorchScript reads those of named tuples as objects.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from shoal_models.dense_attention import FirstGroup, Group, attend_first_own, attend_own


class Fixed(NamedTuple):
    """A `FixedInt8Linear`."""

    inverse_I: Tensor
    step: float
    packed: Tensor
    steps_O: Tensor
    zeros_O: Tensor
    bias_O: Tensor
    like: Tensor  # of the dtype that outputs have


class Activated(NamedTuple):
    """An `ActivatedInt8Linear`."""

    lowest: float
    packed: Tensor
    steps_O: Tensor
    zeros_O: Tensor
    bias_O: Tensor


class FloatNorm(NamedTuple):
    """A `Float32Norm`."""

    weight_E: Tensor
    bias_E: Tensor
    eps: float


class Int8Layer(NamedTuple):
    """What a layer computes with."""

    inputs: Fixed  # to queries, keys and values; of a layer of first tokens to keys and values
    output: Fixed
    attention_norm: FloatNorm
    up: Fixed
    down: Activated
    norm: FloatNorm


def run_int8_layers(
    hidden_TE: Tensor,
    layers: list[Int8Layer],
    groups: list[Group],
    places_T: Tensor,
    lone_tokens: int,
    size: int,
    activation: str,
    algorithm: str,
) -> Tensor:
    """As `run_layers`; returns float32."""
    hidden_TE = hidden_TE.float()
    for layer in layers:
        qkv_T3E = int8_product(hidden_TE, layer.inputs, "none", "")
        mixed_TE = attend_own(qkv_T3E, groups, places_T, lone_tokens, size)
        hidden_TE = int8_behind_attention(hidden_TE, mixed_TE, layer, activation, algorithm)
    return hidden_TE


def run_int8_first(
    hidden_TE: Tensor,
    query: Fixed,
    layer: Int8Layer,
    firsts_S: Tensor,
    groups: list[FirstGroup],
    places_S: Tensor,
    lone_tokens: int,
    size: int,
    activation: str,
    algorithm: str,
) -> Tensor:
    """As `run_first`; returns float32."""
    hidden_SE = hidden_TE.index_select(0, firsts_S).float()
    query_SE = int8_product(hidden_SE, query, "none", "")
    kv_T2E = int8_product(hidden_TE, layer.inputs, "none", "")
    mixed_SE = attend_first_own(query_SE, kv_T2E, groups, places_S, lone_tokens, size)
    return int8_behind_attention(hidden_SE, mixed_SE, layer, activation, algorithm)


def int8_behind_attention(
    hidden_TE: Tensor, mixed_TE: Tensor, layer: Int8Layer, activation: str, algorithm: str
) -> Tensor:
    """The rest of a layer for what its tokens took from others."""
    hidden_TE = float_norm(int8_product_added(mixed_TE, hidden_TE, layer.output), layer.attention_norm)
    inner_TI = int8_product(hidden_TE, layer.up, activation, algorithm)
    return float_norm(activated_product_added(inner_TI, hidden_TE, layer.down), layer.norm)


def quantised(rows_TI: Tensor, inverse_I: Tensor) -> Tensor:
    """Unsigned, as oneDNN wants them."""
    values_TI = (rows_TI * inverse_I).clamp_(-127.0, 127.0).round_().to(torch.int8)
    return values_TI.to(torch.uint8).bitwise_xor_(128)


def int8_product(rows_TI: Tensor, linear: Fixed, activation: str, algorithm: str) -> Tensor:
    """(T, O); the activation by oneDNN's names."""
    outputs_TO: Tensor = torch.ops.onednn.qlinear_pointwise(
        quantised(rows_TI, linear.inverse_I), linear.step, 128, linear.packed, linear.steps_O, linear.zeros_O,
        linear.bias_O, 1.0, 0, linear.like.dtype, activation, [], algorithm,
    )  # fmt: skip
    return outputs_TO


def int8_product_added(rows_TI: Tensor, residual_TO: Tensor, linear: Fixed) -> Tensor:
    """(T, O), float32, with a residual added."""
    outputs_TO: Tensor = torch.ops.onednn.qlinear_pointwise(
        quantised(rows_TI, linear.inverse_I), linear.step, 128, linear.packed, linear.steps_O, linear.zeros_O,
        residual_TO, linear.bias_O, 1.0, 0, torch.float32, 1.0, 0, "add", 1.0, "none", [], "",
    )  # fmt: skip
    return outputs_TO


def activated_product_added(rows_TI: Tensor, residual_TO: Tensor, linear: Activated) -> Tensor:
    """(T, O), float32, by a step of each row's own."""
    range_T1 = (rows_TI.amax(-1, True) - linear.lowest).clamp_min_(1.1754943508222875e-38)
    inverse_T1 = 255.0 / range_T1
    values_TI = (rows_TI * inverse_T1).add_(inverse_T1 * -linear.lowest - 128.0).round_().to(torch.int8)
    sums_TO: Tensor = torch.ops.onednn.qlinear_pointwise(
        values_TI.to(torch.uint8).bitwise_xor_(128), 1.0, 0, linear.packed, linear.steps_O, linear.zeros_O,
        None, 1.0, 0, torch.float32, "none", [], "",
    )  # fmt: skip
    return sums_TO.mul_(range_T1 / 255.0).add_(linear.bias_O).add_(residual_TO)


def float_norm(rows_TE: Tensor, norm: FloatNorm) -> Tensor:
    """(T, E)."""
    return torch.layer_norm(rows_TE, [rows_TE.size(1)], norm.weight_E, norm.bias_E, norm.eps)


def int8_layer(layer: Any, inputs: Any) -> Int8Layer:
    """The tensors of a lean layer in fixed steps, `inputs` being the first of its products."""
    return Int8Layer(
        inputs=inputs.tensors(),
        output=layer.output.tensors(),
        attention_norm=layer.attention_norm.tensors(),
        up=layer.up.tensors(),
        down=layer.down.tensors(),
        norm=layer.norm.tensors(),
    )
