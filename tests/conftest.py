"""Fixtures for tests against real servers: model folders made once a session, servers shared by a module."""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from collections.abc import Iterator
from pathlib import Path

import pytest
from harness import models, tiny
from harness.server import ServerProcess


@pytest.fixture(scope="session")
def tiny_folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Transformers folders of tiny models by kind."""
    root = tmp_path_factory.mktemp("tiny")
    return {kind: tiny.make(kind, root / kind) for kind in (*tiny.ENCODERS, *tiny.DECODERS)}


@pytest.fixture(scope="session")
def minilm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The real MiniLM-L6 with a random five-label head, as a transformers folder."""
    return models.minilm_classifier(tmp_path_factory.mktemp("minilm") / "minilm")


@pytest.fixture(scope="session")
def smollm2_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository that holds the real SmolLM2-135M as smollm2@1."""
    repository = tmp_path_factory.mktemp("smollm2")
    models.import_version(repository, "smollm2", models.smollm2_file())
    return repository


@pytest.fixture(scope="module")
def tiny_repository(tmp_path_factory: pytest.TempPathFactory, tiny_folders: dict[str, Path]) -> Path:
    """A repository with a version of `bert` and of `llama`, for one module to change as it likes."""
    repository = tmp_path_factory.mktemp("repository")
    for kind in ("bert", "llama"):
        models.import_version(repository, kind, tiny_folders[kind])
    return repository


@pytest.fixture(scope="module")
def tiny_server(tmp_path_factory: pytest.TempPathFactory, tiny_repository: Path) -> Iterator[ServerProcess]:
    """A server of `tiny_repository`, both models live."""
    with ServerProcess(tmp_path_factory.mktemp("server"), tiny_repository) as server:
        server.wait_live("bert", 1)
        server.wait_live("llama", 1)
        yield server
