"""What a model could be served at if nothing but its matrix products and its weights took time. Pure arithmetic."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec


class Ceilings(msgspec.Struct, frozen=True, kw_only=True):
    """Of all cores together."""

    gflops: dict[str, float]  # matrix products, by number type: the best of large squares and of the model's own shapes
    read_gb_per_s: float  # summing an array far larger than the caches
    num_threads: int

    def flops(self, compute_dtype: str) -> float:
        """Operations a second of a number type as Shoal names it, such as "float32 (bfloat16 weights)"."""
        return self.gflops[compute_dtype.split()[0]] * 1e9


class EncoderWork(msgspec.Struct, frozen=True, kw_only=True):
    """What an encoder must do for each text, from its shapes. Heads, embeddings and norms are left out."""

    layer_weights: int  # of the linear layers of one layer: every token is multiplied with them
    num_layers: int
    hidden_size: int

    def flops(self, lengths: Iterable[int]) -> float:
        """Operations for texts of so many tokens: linear layers, and scores and sums of attention without padding."""
        per_token = 2 * self.layer_weights
        return float(
            self.num_layers * sum(per_token * length + 4 * self.hidden_size * length * length for length in lengths)
        )

    def texts_per_s(self, ceilings: Ceilings, compute_dtype: str, lengths: Sequence[int]) -> float:
        """Of texts of such lengths at most, if nothing else took time."""
        return ceilings.flops(compute_dtype) * len(lengths) / self.flops(lengths)


class DecoderWork(msgspec.Struct, frozen=True, kw_only=True):
    """What a decoder must do, from its shapes."""

    num_matmul_weights: int  # weights that every token is multiplied with

    def tokens_per_s(self, ceilings: Ceilings, compute_dtype: str, num_sequences: int) -> float:
        """Of decoding `num_sequences` together at most: each step reads all weights once and multiplies."""
        size = 2 if compute_dtype == "bfloat16" else 4  # bytes of a weight as it is computed with
        read_s = size * self.num_matmul_weights / (ceilings.read_gb_per_s * 1e9)
        multiply_s = 2 * self.num_matmul_weights * num_sequences / ceilings.flops(compute_dtype)
        return num_sequences / max(read_s, multiply_s)
