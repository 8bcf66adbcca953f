"""Fetches a base from a model hub: safetensors, configuration and tokenizer, nothing that can hold code."""

from __future__ import annotations

from pathlib import Path

from shoal_training.failures import BaseMissing

_PATTERNS = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.txt", "*.model", "*.jinja"]


def fetch(hub_id: str) -> Path:
    """The local folder of a hub model, downloaded where needed; `HF_ENDPOINT` and `HF_HOME` are honoured.

    Raises:
        BaseMissing: it cannot be had, or has no safetensors weights.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(hub_id, allow_patterns=_PATTERNS))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise BaseMissing(f"{hub_id} cannot be fetched from the hub: {type(error).__name__}") from error
    if not any(folder.glob("*.safetensors")):
        raise BaseMissing(f"{hub_id} has no safetensors weights; pickled weights are refused")
    return folder
