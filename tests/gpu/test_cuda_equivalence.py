"""On a GPU the same answers: packed equals transformers, paged decoding equals `generate`, golden outputs are met."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from gpu_device import DEVICE, MARKS
from harness import models, tiny, tiny_encoders
from harness.reference import ReferenceClassifier, ReferenceGenerator, differs_at_near_tie
from shoal_models.load import LoadedClassifier, LoadedGenerator, load_version
from shoal_models.manifest import read_manifest
from shoal_models.packed import PackedRow, pack

pytestmark = MARKS
BLOCK_TOKENS = 16
PADDED = ("mpnet", "deberta-v2")


def load(repository: Path, name: str, folder: Path, dtype: torch.dtype) -> LoadedClassifier | LoadedGenerator:
    version = models.import_version(repository, name, folder)
    path = repository / name / str(version)
    return load_version(path, read_manifest(path), dtype=dtype, device=DEVICE)


@pytest.mark.parametrize("head", ["sequence", "token"])
@pytest.mark.parametrize("kind", sorted(tiny_encoders.ARCHITECTURES))
def test_classifiers_equal_transformers(tmp_path: Path, kind: str, head: str) -> None:
    from transformers import AutoTokenizer

    folder = tiny.make(kind, tmp_path / "source", head=head)
    loaded = load(tmp_path / "models", kind, folder, torch.float32)
    assert isinstance(loaded, LoadedClassifier)
    assert loaded.execution.split(":")[0] == ("padded" if kind in PADDED else "packed")
    texts = tiny.texts(9, 24, longest=30)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    found = loaded.logits(pack([tokenizer(text).input_ids for text in texts], device=loaded.device)).cpu()
    reference = ReferenceClassifier(folder)
    expected = torch.cat([torch.tensor(reference.logits(text)).view(-1, found.shape[1]) for text in texts])
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("kind", tiny.DECODERS)
def test_paged_decoding_equals_generate(tmp_path: Path, tiny_folders: dict[str, Path], kind: str) -> None:
    loaded = load(tmp_path, kind, tiny_folders[kind], torch.float32)
    assert isinstance(loaded, LoadedGenerator)
    reference = ReferenceGenerator(tiny_folders[kind])
    for prompt in (reference.tokenizer(text).input_ids for text in tiny.texts(3, 6, longest=12)):
        expected = reference.greedy(prompt, 24)
        found = decode(loaded, prompt, len(expected.token_ids))
        assert found == expected.token_ids or differs_at_near_tie(expected, found)


@torch.inference_mode()
def decode(loaded: LoadedGenerator, prompt: list[int], num_tokens: int) -> list[int]:
    """Greedy tokens of one sequence through the paged cache."""
    num_blocks = -(-(len(prompt) + num_tokens) // BLOCK_TOKENS)
    cache = loaded.new_cache(num_blocks, BLOCK_TOKENS)
    found: list[int] = []
    context, new = 0, prompt
    while len(found) < num_tokens:
        row = PackedRow(
            ids_T=torch.tensor(new, device=DEVICE),
            positions_T=torch.arange(context, context + len(new), device=DEVICE),
            starts=(0, len(new)),
            cache=cache,
            block_tables=(tuple(range(num_blocks)),),
            context_lens=(context,),
        )
        logits_WV = loaded.logits(row, torch.tensor([len(new) - 1], device=DEVICE))
        context, new = context + len(new), [int(logits_WV[0].argmax())]
        found += new
    return found


def test_bfloat16_meets_its_golden_outputs(tmp_path: Path, minilm_folder: Path) -> None:
    """`load_version` itself compares in float32 and after the cast, and raises when they differ."""
    assert load(tmp_path, "minilm", minilm_folder, torch.bfloat16).execution == "packed"
