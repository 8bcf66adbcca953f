"""The encoders that are measured on a GPU: sizes of well-known ones, with random weights, which take as long.

Published once below benchmarks/out/gpu-models by the project's own importer; nothing is downloaded.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shoal_models.manifest import list_versions

from benchmarks.ceilings import Shape, encoder_work
from benchmarks.folders import NUM_LABELS, OUT, encoder_folder
from benchmarks.limits import EncoderWork

VOCABULARY = 30_522


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Of a BERT."""

    name: str
    hidden: int
    num_layers: int
    num_heads: int
    inner: int

    def scaled(self, divisor: int) -> Size:
        """One with about so many times fewer heads and layers, for a try on a processor."""
        heads = max(self.num_heads // divisor, 1)
        hidden = self.hidden // self.num_heads * heads
        return dataclasses.replace(
            self,
            hidden=hidden,
            num_heads=heads,
            inner=self.inner // self.hidden * hidden,
            num_layers=max(self.num_layers // divisor, 1),
        )

    def config(self) -> Any:
        """For transformers."""
        from transformers import BertConfig

        config = BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=self.hidden,
            num_hidden_layers=self.num_layers,
            num_attention_heads=self.num_heads,
            intermediate_size=self.inner,
        )
        config.num_labels = NUM_LABELS
        return config

    def work(self) -> EncoderWork:
        """What it must compute for each text."""
        return encoder_work(self.config())

    def shapes(self, rows: int) -> tuple[Shape, ...]:
        """Its products for so many tokens: queries, keys and values together, attention's output, up and down."""
        pairs = (
            (self.hidden, 3 * self.hidden),
            (self.hidden, self.hidden),
            (self.hidden, self.inner),
            (self.inner, self.hidden),
        )
        return tuple(Shape(rows=rows, inner=inner, columns=columns) for inner, columns in pairs)


MINILM = Size(name="minilm-l6", hidden=384, num_layers=6, num_heads=12, inner=1536)
BASE = Size(name="bert-base", hidden=768, num_layers=12, num_heads=12, inner=3072)
LARGE = Size(name="bert-large", hidden=1024, num_layers=24, num_heads=16, inner=4096)


def ensure(size: Size) -> Path:
    """A repository with version 1 of a classifier of that size; published when it is not there yet."""
    from shoal_models.importer import import_model

    shape = f"{size.num_layers}x{size.hidden}x{size.inner}"
    repository = OUT / "gpu-models" / f"{size.name}-{shape}"
    if not list_versions(repository, size.name):
        import_model(size.name, str(_write(size, repository.with_name(f"{repository.name}-source"))), repository)
    return repository


def _write(size: Size, folder: Path) -> Path:
    import torch
    from shoal_models.load import silence_progress_bars
    from transformers import AutoTokenizer, BertForSequenceClassification

    silence_progress_bars()
    torch.manual_seed(0)
    model: Any = BertForSequenceClassification(size.config())
    model.eval().save_pretrained(folder)
    AutoTokenizer.from_pretrained(encoder_folder()).save_pretrained(folder)
    return folder
