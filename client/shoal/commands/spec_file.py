"""Training specs in files: JSON by the standard library, YAML where PyYAML is installed, local data uploaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from shoal.commands.lines import read_all
from shoal.errors import ConfigurationError, FieldViolation, InvalidRequestError
from shoal.spec import Tree

DATASET_PREFIX = "dataset://"
DATA_FIELDS = ("train", "validation")


def read_spec_file(path: Path | None) -> Tree:
    """The tree in a file, or in standard input where `path` is None; JSON is tried first, since it is YAML too.

    Raises:
        InvalidRequestError: it is neither, or holds no mapping.
        ConfigurationError: it is YAML, and PyYAML is not installed.
        OSError: the file cannot be read.
    """
    text = read_all(path)
    try:
        tree = json.loads(text)
    except ValueError as error:
        tree = _read_yaml(text, path, json_error=error)
    if not isinstance(tree, dict):
        raise _bad_file(path, "holds no mapping of fields")
    return tree


def local_data(tree: Tree, folder: Path) -> dict[str, Path]:
    """Data fields that name files of this machine, relative to `folder`; other paths are left to the server."""
    data = tree.get("data")
    if not isinstance(data, dict):
        return {}
    found: dict[str, Path] = {}
    for field in DATA_FIELDS:
        value = data.get(field)
        if isinstance(value, str) and not value.startswith(DATASET_PREFIX):
            path = folder / Path(value).expanduser()
            if path.is_file():
                found[field] = path
    return found


def with_datasets(tree: Tree, names: dict[str, str]) -> Tree:
    """The tree with data fields replaced by names of datasets."""
    return {**tree, "data": {**tree["data"], **names}} if names else tree


def _read_yaml(text: str, path: Path | None, json_error: ValueError) -> Any:
    try:
        import yaml
    except ModuleNotFoundError:
        if path is not None and path.suffix == ".json":
            raise _bad_file(path, f"is not JSON: {json_error}") from None
        hint = "pip install 'shoal[training]' or pip install pyyaml; a spec in JSON needs neither"
        raise ConfigurationError(f"reading YAML needs PyYAML: {hint}") from None
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise _bad_file(path, f"is not YAML: {' '.join(str(error).split())}") from None


def _bad_file(path: Path | None, description: str) -> InvalidRequestError:
    return InvalidRequestError.of([FieldViolation(field=str(path or "standard input"), description=description)])
