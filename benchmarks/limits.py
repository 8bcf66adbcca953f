"""What a model could be served at if nothing but its matrix products and its weights took time. Pure arithmetic."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """Of all cores together."""

    float32_gflops: float  # large matrix products
    bfloat16_gflops: float
    read_gb_per_s: float  # summing an array far larger than the caches
    num_threads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What a model must do, from its shapes."""

    num_matmul_weights: int  # weights that every token is multiplied with
    weight_bytes: int  # those weights as they lie in memory when computed with

    def compute_bound_tokens_per_s(self, gflops: float) -> float:
        """Tokens a second if nothing but these products were done at `gflops`."""
        return gflops * 1e9 / (2 * self.num_matmul_weights)

    def decode_bound_tokens_per_s(self, ceilings: Ceilings, gflops: float, num_sequences: int) -> float:
        """Tokens a second of decoding `num_sequences` together: each step reads all weights once and multiplies."""
        read_s = self.weight_bytes / (ceilings.read_gb_per_s * 1e9)
        multiply_s = 2 * self.num_matmul_weights * num_sequences / (gflops * 1e9)
        return num_sequences / max(read_s, multiply_s)
