"""Where an import comes from: a transformers folder, a GGUF file, or a repository on a hub.

Only safetensors and text are ever fetched or read; pickled weights can run code and are refused.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WANTED = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
PICKLED = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack"})
_HUB_ID = re.compile(r"[\w-][\w.-]{0,95}(/[\w-][\w.-]{0,95})?")


class SourceError(Exception):
    """The source cannot be imported; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A folder on this disk that transformers can read."""

    folder: Path
    gguf_file: str | None = None  # a file of it, instead of safetensors
    name: str  # for the manifest: no path of this machine
    licence: str = ""


def find_source(text: str, revision: str | None) -> Source:
    """The source that `text` names; a hub id is downloaded (`HF_ENDPOINT` is heeded).

    Raises:
        SourceError: there is no such thing, or it holds no weights that may be read.
    """
    path = Path(text).expanduser()
    if path.is_dir():
        _refuse_pickles(text, [found.name for found in path.iterdir()])
        return Source(folder=path, name=f"folder:{path.resolve().name}")
    if path.is_file():
        if path.suffix.lower() != ".gguf":
            raise SourceError(f"{text} is neither a folder nor a .gguf file")
        return Source(folder=path.parent, gguf_file=path.name, name=f"gguf:{path.name}")
    if text.startswith((".", "/", "~")) or path.suffix.lower() == ".gguf" or not _HUB_ID.fullmatch(text):
        raise SourceError(f"{text}: no such file or folder")
    return _download(text, revision)


def _download(hub_id: str, revision: str | None) -> Source:
    from huggingface_hub import HfApi, errors, snapshot_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    endpoint = os.environ.get("HF_ENDPOINT") or None
    disable_progress_bars()
    failures: Any = (*errors.HfHubHTTPError.__bases__, errors.HFValidationError)  # the HTTP library's, OSError
    try:
        info = HfApi(endpoint=endpoint).model_info(hub_id, revision=revision)
        _refuse_pickles(hub_id, [file.rfilename for file in info.siblings or []])
        folder = snapshot_download(
            hub_id,
            revision=info.sha or revision,
            allow_patterns=list(WANTED),
            ignore_patterns=["*/*"],
            endpoint=endpoint,
        )
    except failures as error:
        raise SourceError(f"{hub_id} cannot be fetched from {endpoint or 'the hub'}: {_first_line(error)}") from error
    card: Any = info.card_data
    licence = str(card.get("license") or "") if card is not None else ""
    return Source(folder=Path(folder), name=f"hub:{hub_id}@{info.sha or revision}", licence=licence)


def _refuse_pickles(source: str, names: list[str]) -> None:
    """Raises SourceError unless there are safetensors at the top of the source."""
    top = [name for name in names if "/" not in name]
    if any(name.endswith(".safetensors") for name in top):
        return
    pickled = sorted(name for name in top if Path(name).suffix in PICKLED)
    if pickled:
        raise SourceError(
            f"{source} has only pickled weights ({pickled[0]}), which can run code; convert them to safetensors first"
        )
    ggufs = sorted(name for name in top if name.lower().endswith(".gguf"))
    if ggufs:
        raise SourceError(f"{source} has no safetensors weights; name one of its GGUF files, such as {ggufs[0]}")
    raise SourceError(f"{source} has no safetensors weights")


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
