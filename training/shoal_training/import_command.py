"""`shoal import`: a transformers folder, a GGUF file or a hub id becomes a version of a model."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from shoal_models.manifest import Manifest

_EXIT_REFUSED = 1
_EXIT_USAGE = 2


def import_model(argv: list[str]) -> int:
    """Run the command; 0 when a version was published, 1 when the source was refused or the disk, 2 for bad usage."""
    arguments = _parse(argv)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TQDM_DISABLE", "1")
    if arguments.labels is not None:
        arguments.labels = [label.strip() for label in arguments.labels.split(",")]
        if not all(arguments.labels):
            return _fail("--labels holds an empty name", _EXIT_USAGE)
    try:
        from shoal_models.importer import ImportRefused
        from shoal_models.importer import import_model as publish
    except ImportError as error:
        return _fail(f"{error.name} is missing; install shoal[training] or shoal[server]", _EXIT_USAGE)
    try:
        manifest = publish(
            arguments.name,
            arguments.source,
            arguments.repository,
            kind=arguments.kind,
            weight_dtype=arguments.dtype,
            labels=arguments.labels,
            head=arguments.head,
            revision=arguments.revision,
        )
    except ImportRefused as error:
        return _fail(str(error), _EXIT_REFUSED)
    except OSError as error:
        return _fail(f"{arguments.repository}: {error.strerror or error}", _EXIT_REFUSED)
    _tell(manifest, arguments.repository, as_json=arguments.json)
    return 0


def _parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="shoal import", description=__doc__)
    parser.add_argument("name", metavar="NAME", help="name of the model in the repository")
    parser.add_argument("source", metavar="SOURCE", help="transformers folder, .gguf file, or hub id such as org/name")
    parser.add_argument("--repository", type=Path, default=Path("models"), help="model repository (default: ./models)")
    parser.add_argument(
        "--kind", choices=("classifier", "generator", "base"), help="default: told by the model's architecture"
    )
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="of the stored weights (default: the source's; GGUF: bfloat16)"
    )
    parser.add_argument("--labels", help="classifiers: label names by id, separated by commas")
    parser.add_argument(
        "--head", choices=("single_label", "multi_label", "regression"), help="classifiers: what the logits mean"
    )
    parser.add_argument("--revision", help="hub ids: branch, tag or commit (default: main)")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser.parse_args(argv)


def _tell(manifest: Manifest, repository: Path, *, as_json: bool) -> None:
    folder = repository / manifest.model / str(manifest.version)
    if as_json:
        facts = {
            "model": manifest.model,
            "version": manifest.version,
            "kind": manifest.kind,
            "architecture": manifest.architecture,
            "max_tokens": manifest.max_tokens,
            "weight_dtype": manifest.weight_dtype,
            "weight_bytes": manifest.weight_bytes,
            "labels": list(manifest.labels),
            "chat": manifest.chat,
            "path": str(folder),
        }
        sys.stdout.write(json.dumps(facts) + "\n")
        return
    size = f"{manifest.weight_bytes / 1e6:,.0f} MB in {manifest.weight_dtype}"
    sys.stdout.write(
        f"{manifest.model}@{manifest.version}  {manifest.kind}, {manifest.architecture}, {size}\n{folder}\n"
    )


def _fail(message: str, code: int) -> int:
    sys.stderr.write(f"shoal import: {' '.join(message.split())}\n")
    return code
