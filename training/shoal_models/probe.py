"""Finds out, at load, whether packed rows compute what a generator's plain forward computes.

V vocabulary. Made-up sequences of unlike lengths go through transformers' own forward one by one and through packed
rows, in chunks that interleave, over shuffled cache blocks; the answers have to agree and every layer has to have
called packed attention. What fails is never served. Classifiers have a probe of their own, see classifier_probe.py.
"""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import Tensor, nn

from shoal_models.generator import LoadedGenerator
from shoal_models.packed import CacheShape, PackedRow, PagedCache

_DECODER_LENGTHS = (5, 11, 14)
_BLOCK_TOKENS = 4
_CHUNKS = (  # for each step: how many tokens of which sequence
    ((0, 3), (1, 6)),
    ((0, 1), (2, 7), (1, 3)),
    ((0, 1), (1, 1), (2, 5)),
    ((1, 1), (2, 1)),
    ((2, 1),),
)
_RELATIVE_TOLERANCE = 1e-4


class ProbeFailure(Exception):
    """Sequences cannot run together in this way; the message says how that showed."""


def made_up_sequences(lengths: tuple[int, ...], vocabulary_size: int, avoid: frozenset[int]) -> list[list[int]]:
    """Deterministic token ids of the given lengths, without the ids in `avoid`."""
    chooser = random.Random(20240229)  # noqa: S311
    usable = vocabulary_size - 1
    found: list[list[int]] = []
    for length in lengths:
        sequence: list[int] = []
        while len(sequence) < length:
            token = chooser.randint(0, usable)
            if token not in avoid or len(avoid) > usable // 2:
                sequence.append(token)
        found.append(sequence)
    return found


def plain_logits(model: Any, sequences: list[list[int]]) -> list[Tensor]:
    """What transformers' own forward answers to each.

    A classifier gives (labels,), one with a token head (tokens, labels), a generator (tokens, V).
    """
    device = next(model.parameters()).device
    with torch.inference_mode():
        return [model(input_ids=torch.tensor([ids], device=device)).logits[0].float() for ids in sequences]


def cache_shape(model: Any, sequences: list[list[int]]) -> CacheShape:
    """Layers, heads and head size of a decoder's cache, from one plain forward.

    Raises:
        ProbeFailure: it keeps something other than alike keys and values in every layer.
    """
    ids = torch.tensor(sequences[:1], device=next(model.parameters()).device)
    with torch.inference_mode():
        cache = getattr(model(input_ids=ids, use_cache=True), "past_key_values", None)
    layers = getattr(cache, "layers", None)
    if not layers:
        raise ProbeFailure("its forward returns no key/value cache")
    shapes = {
        tuple(getattr(getattr(layer, name, None), "shape", ())) for layer in layers for name in ("keys", "values")
    }
    shape = shapes.pop()
    if shapes or len(shape) != 4 or shape[2] != ids.shape[1]:
        raise ProbeFailure("its layers keep unlike states")
    return CacheShape(num_layers=len(layers), num_heads=shape[1], head_size=shape[3])


def probe_generator(loaded: LoadedGenerator, sequences: list[list[int]], expected: list[Tensor]) -> None:
    """Raises ProbeFailure unless chunks over the paged cache give the plain answers."""
    device = expected[0].device
    num_blocks = sum(-(-len(ids) // _BLOCK_TOKENS) for ids in sequences)
    cache = loaded.new_cache(num_blocks, _BLOCK_TOKENS)
    free = list(range(num_blocks))
    random.Random(7).shuffle(free)  # noqa: S311
    tables = [tuple(free.pop() for _ in range(-(-len(ids) // _BLOCK_TOKENS))) for ids in sequences]
    done = [0] * len(sequences)
    for chunks in _CHUNKS:
        row = _chunk_row(cache, tables, sequences, done, chunks)
        try:
            found = loaded.logits(row, torch.arange(row.starts[-1], device=device))
        except Exception as error:
            raise ProbeFailure(first_line(error)) from error
        compare(found, torch.cat([expected[i][done[i] : done[i] + new] for i, new in chunks]))
        for i, new in chunks:
            done[i] += new
    assert done == [len(ids) for ids in sequences], "the chunks cover the sequences"


def probe_sequences(model: nn.Module) -> list[list[int]]:
    """The made-up sequences for a generator."""
    config: Any = model.config
    return made_up_sequences(_DECODER_LENGTHS, int(config.vocab_size), frozenset(special_ids(config)))


def special_ids(config: Any) -> list[int]:
    """The ids to which a configuration gives a meaning, such as padding or the end of a sequence; sorted."""
    values = [value for name, value in vars(config).items() if name.endswith("_token_id")]
    size = int(config.vocab_size)
    return sorted({value for value in values if type(value) is int and 0 <= value < size})


def plain_id_of(config: Any) -> int:
    """A token to which the configuration gives no meaning."""
    specials = special_ids(config)
    return next((token for token in range(int(config.vocab_size)) if token not in specials), 0)


def _chunk_row(
    cache: PagedCache,
    tables: list[tuple[int, ...]],
    sequences: list[list[int]],
    done: list[int],
    chunks: tuple[tuple[int, int], ...],
) -> PackedRow:
    device = cache.blocks.device
    starts = [0]
    for _, new in chunks:
        starts.append(starts[-1] + new)
    ids = [token for i, new in chunks for token in sequences[i][done[i] : done[i] + new]]
    positions = [at for i, new in chunks for at in range(done[i], done[i] + new)]
    return PackedRow(
        ids_T=torch.tensor(ids, device=device),
        positions_T=torch.tensor(positions, device=device),
        starts=tuple(starts),
        cache=cache,
        block_tables=tuple(tables[i] for i, _ in chunks),
        context_lens=tuple(done[i] for i, _ in chunks),
    )


def compare(found: Tensor, expected: Tensor) -> None:
    """Raises ProbeFailure unless both answers are the same but for rounding."""
    if found.shape != expected.shape:
        raise ProbeFailure(f"its answers have the shape {tuple(found.shape)}; {tuple(expected.shape)} one by one")
    largest = float(expected.abs().max())
    difference = float((found - expected).abs().max())
    if not difference <= _RELATIVE_TOLERANCE * (1 + largest):  # NaN fails too
        raise ProbeFailure(f"its answers differ by {difference:.2g} from those one by one")


def first_line(error: Exception) -> str:
    """What went wrong, in one line."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[0][:200] if text else ''}"
