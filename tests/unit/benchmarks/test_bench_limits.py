"""Work counted from shapes, against measured ceilings."""

from __future__ import annotations

import pytest
from transformers import BertConfig

from benchmarks.ceilings import encoder_work
from benchmarks.limits import Ceilings, DecoderWork, EncoderWork

CEILINGS = Ceilings(gflops={"float32": 100.0, "bfloat16": 400.0}, read_gb_per_s=10.0, num_threads=2)


def test_encoder_is_charged_for_its_linear_layers_and_for_attention_of_the_real_lengths() -> None:
    """Two layers of 1,000 weights, hidden size 10: 2 x (2 x 1000 x 3 + 4 x 10 x 9) for three tokens, and so on."""
    work = EncoderWork(layer_weights=1000, num_layers=2, hidden_size=10)
    assert work.flops([3]) == 2 * (6000 + 360)
    assert work.flops([3, 5]) == work.flops([3]) + 2 * (10_000 + 1000)


def test_layer_of_a_bert_has_four_square_products_and_two_of_its_inner_size() -> None:
    config = BertConfig(hidden_size=8, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2)
    assert encoder_work(config) == EncoderWork(layer_weights=4 * 64 + 2 * 256, num_layers=3, hidden_size=8)


def test_decoder_is_set_against_the_slower_of_memory_and_products() -> None:
    """A step reads 40 MB in 4 ms and multiplies for 3.2 ms with 16 sequences, 6.4 ms with 32."""
    work = DecoderWork(num_matmul_weights=10_000_000)
    assert work.tokens_per_s(CEILINGS, "float32", 16) == pytest.approx(4000)
    assert work.tokens_per_s(CEILINGS, "float32", 32) == pytest.approx(5000)


def test_rounded_weights_that_are_computed_in_float32_are_set_against_float32() -> None:
    assert CEILINGS.flops("float32 (bfloat16 weights)") == 100e9
    assert CEILINGS.flops("bfloat16") == 400e9
