"""All lean layers of an encoder in one call: on a CPU no Python runs between them.

T packed tokens, S sequences, E hidden size, D head size.

Lanes are threads of one process, so Python between the layers of one forward waits for Python anywhere else in it. The
layers' tensor functions are therefore compiled by TorchScript, once in a process, and called with weights and places.
What that is worth: ARCHITECTURE.md, 2026-11-27.

Annotations are not postponed in this file: TorchScript reads those of named tuples as objects.
"""

import functools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from shoal_models.dense_attention import FirstGroup, Group, attend_first_own, attend_own
from shoal_models.first_tokens import FirstChunks, FirstTokenLayer
from shoal_models.int8_activated import ActivatedInt8Linear
from shoal_models.int8_fixed import FixedInt8Linear, Float32Norm
from shoal_models.int8_stack import int8_layer, run_int8_first, run_int8_layers
from shoal_models.linears import Activation, PrepackedLinear
from shoal_models.plan import AttentionPlan
from shoal_models.post_norm import PostNormLayer
from shoal_models.sizes import few_sizes

_NOWHERE = torch.empty(0, dtype=torch.int64)


class Packed(NamedTuple):
    """A linear layer."""

    weight: Tensor  # in oneDNN's layout
    bias: Tensor


class Norm(NamedTuple):
    """A LayerNorm."""

    weight: Tensor
    bias: Tensor
    eps: float


class LayerTensors(NamedTuple):
    """What a layer computes with."""

    inputs: Packed  # to queries, keys and values; of a layer of first tokens to keys and values
    output: Packed
    attention_norm: Norm
    up: Packed
    down: Packed
    norm: Norm


def run_layers(
    hidden_TE: Tensor,
    layers: list[LayerTensors],
    groups: list[Group],
    places_T: Tensor,
    lone_tokens: int,
    size: int,
    activation: str,
    algorithm: str,
) -> Tensor:
    """Layers over all tokens, which attend in chunks or, where `lone_tokens` is not 0, to that many first ones."""
    for layer in layers:
        qkv_T3E = product(hidden_TE, layer.inputs, "none", "")
        mixed_TE = attend_own(qkv_T3E, groups, places_T, lone_tokens, size)
        hidden_TE = run_behind_attention(hidden_TE, mixed_TE, layer, activation, algorithm)
    return hidden_TE


def run_first(
    hidden_TE: Tensor,
    query: Packed,
    layer: LayerTensors,
    firsts_S: Tensor,
    groups: list[FirstGroup],
    places_S: Tensor,
    lone_tokens: int,
    size: int,
    activation: str,
    algorithm: str,
) -> Tensor:
    """The layer of first tokens: (S, E)."""
    hidden_SE = hidden_TE.index_select(0, firsts_S)
    query_SE = product(hidden_SE, query, "none", "")
    kv_T2E = product(hidden_TE, layer.inputs, "none", "")
    mixed_SE = attend_first_own(query_SE, kv_T2E, groups, places_S, lone_tokens, size)
    return run_behind_attention(hidden_SE, mixed_SE, layer, activation, algorithm)


def run_behind_attention(
    hidden_TE: Tensor, mixed_TE: Tensor, layer: LayerTensors, activation: str, algorithm: str
) -> Tensor:
    """The rest of a layer for what its tokens took from others."""
    hidden_TE = normalised(product_added(mixed_TE, hidden_TE, layer.output), layer.attention_norm)
    inner_TI = product(hidden_TE, layer.up, activation, algorithm)
    return normalised(product_added(inner_TI, hidden_TE, layer.down), layer.norm)


def product(rows_TI: Tensor, linear: Packed, activation: str, algorithm: str) -> Tensor:
    """(T, O); the activation by oneDNN's names."""
    outputs_TO: Tensor = torch.ops.mkldnn._linear_pointwise(  # noqa: SLF001
        rows_TI, linear.weight, linear.bias, activation, [], algorithm
    )
    return outputs_TO


def product_added(rows_TI: Tensor, residual_TO: Tensor, linear: Packed) -> Tensor:
    """(T, O), with a residual added."""
    outputs_TO: Tensor = torch.ops.mkldnn._linear_pointwise(  # noqa: SLF001
        rows_TI, residual_TO, linear.weight, linear.bias, "add"
    )
    return outputs_TO


def normalised(rows_TE: Tensor, norm: Norm) -> Tensor:
    """(T, E)."""
    return torch.layer_norm(rows_TE, [rows_TE.size(1)], norm.weight, norm.bias, norm.eps)


class LayerStack:
    """The layers of one model, all prepacked or all in 8-bit integers with fixed steps."""

    def __init__(self, layers: Sequence[PostNormLayer], last: FirstTokenLayer | None, activation: Activation) -> None:
        """`last` follows `layers`; all of them have the same activation and number of heads."""
        first = last if last is not None else layers[0]
        in_int8 = isinstance(first.up, FixedInt8Linear)
        tensors: Callable[..., Any] = int8_layer if in_int8 else _tensors
        self._functions = (run_int8_layers, run_int8_first) if in_int8 else (run_layers, run_first)
        self._layers = [tensors(layer, layer.qkv) for layer in layers]
        self._last: tuple[Any, Any] | None = None
        if last is not None:
            query: Any = last.query
            self._last = (query.tensors() if in_int8 else _packed(query), tensors(last, last.kv))
        self._num_heads = first.num_heads
        self._activation = (activation.name, activation.algorithm)

    def __call__(self, hidden_TE: Tensor, plan: AttentionPlan) -> Tensor:
        """(T, E), of which only first tokens' rows mean anything where the last layer is for them alone.

        The plan has chunks or is lone.
        """
        plan.num_calls += len(self._layers) + (self._last is not None)
        size = hidden_TE.shape[1] // self._num_heads
        chunks = plan.chunks(self._num_heads, hidden_TE.dtype)
        groups, places_T = ([], _NOWHERE) if chunks is None else (chunks.groups, chunks.places_T)
        shared = (plan.lone_tokens, size, *self._activation)
        dtype = hidden_TE.dtype
        hidden_TE = _compiled(self._functions[0])(hidden_TE, self._layers, groups, places_T, *shared)
        return hidden_TE.to(dtype) if self._last is None else self._run_last(hidden_TE, plan, dtype)

    def _run_last(self, hidden_TE: Tensor, plan: AttentionPlan, dtype: torch.dtype) -> Tensor:
        assert self._last is not None, "only called where there is one"
        starts, chunking, groups, places_S = plan.row.starts[:-1], plan.chunking(), [], _NOWHERE
        padding = few_sizes(len(starts)) - len(starts)
        firsts_S = torch.tensor((*starts, *[0] * padding))
        if chunking is not None:
            chunks = FirstChunks(chunking, num_heads=self._num_heads, dtype=dtype)
            groups, places_S = chunks.groups, F.pad(chunks.places_S, (0, padding))
        shared = (plan.lone_tokens, hidden_TE.shape[1] // self._num_heads, *self._activation)
        outputs_SE = _compiled(self._functions[1])(hidden_TE, *self._last, firsts_S, groups, places_S, *shared)
        rows_TE = torch.zeros_like(hidden_TE, dtype=dtype)
        return rows_TE.index_copy_(0, firsts_S[: len(starts)], outputs_SE[: len(starts)].to(dtype))


def layer_stack(layers: Sequence[nn.Module]) -> LayerStack | None:
    """The layers as a stack; None where one of them is no lean layer in one of the forms that a stack has."""
    lean = [layer for layer in layers if isinstance(layer, PostNormLayer)]
    last = layers[-1] if isinstance(layers[-1], FirstTokenLayer) else None
    if len(lean) + (last is not None) < len(layers):
        return None
    parts = [part for layer in layers for part in layer.children() if not isinstance(part, nn.LayerNorm)]
    are_fixed = all(isinstance(part, FixedInt8Linear | ActivatedInt8Linear | Float32Norm) for part in parts)
    if not are_fixed and not all(_fits(part) for part in parts):
        return None
    activation = (lean[0] if last is None else last).up.activation
    return LayerStack(lean, last, activation)


def _fits(linear: nn.Module) -> bool:
    return isinstance(linear, PrepackedLinear) and len(linear.packed) == 1 and linear.biases[0] is not None


def _packed(linear: Any) -> Packed:
    return Packed(weight=linear.packed[0], bias=linear.biases[0])


def _norm(norm: nn.LayerNorm) -> Norm:
    return Norm(weight=norm.weight, bias=norm.bias, eps=norm.eps)


def _tensors(layer: PostNormLayer | FirstTokenLayer, inputs: nn.Module) -> LayerTensors:
    return LayerTensors(
        inputs=_packed(inputs),
        output=_packed(layer.output),
        attention_norm=_norm(layer.attention_norm),
        up=_packed(layer.up),
        down=_packed(layer.down),
        norm=_norm(layer.norm),
    )


@functools.cache
def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    with warnings.catch_warnings():
        # What PyTorch advises in TorchScript's stead needs a compiler at run time.
        warnings.simplefilter("ignore", DeprecationWarning)
        compiled: Callable[..., Tensor] = torch.jit.script(function)
    return compiled
