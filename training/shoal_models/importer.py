"""Turns a transformers folder, a GGUF file or a hub repository into a version."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

from shoal_models.body import takes_types
from shoal_models.describe import has_next_sentence_head, has_token_head, kind_of, labels_of
from shoal_models.load import LoadError, silence_progress_bars
from shoal_models.manifest import Manifest, ManifestError, check_name
from shoal_models.save import PublishError, publish_model
from shoal_models.sources import Source, SourceError, find_source
from shoal_models.tokenizer import TokenizerError

__all__ = ["ImportRefused", "import_model"]

_PROBLEMS = {
    "single_label": "single_label_classification",
    "multi_label": "multi_label_classification",
    "regression": "regression",
}
_CLASS_TYPE = 2


class ImportRefused(Exception):
    """The source cannot become a version; the message says why."""


def import_model(
    name: str,
    source: str,
    repository: Path,
    *,
    kind: str | None = None,
    weight_dtype: str | None = None,
    labels: Sequence[str] | None = None,
    head: str | None = None,
    revision: str | None = None,
) -> Manifest:
    """Publish `source` as the next version of `name`.

    `kind` None is told by the architecture; `weight_dtype` None keeps bfloat16 as it is, makes
    bfloat16 of a GGUF file, and float32 of all else. `labels` and `head` replace what a classifier's config says.

    Raises:
        ImportRefused: the source is not there, not readable without running its code, or not of that kind.
        OSError: the disk is full or not writable.
    """
    _quiet()
    try:
        check_name(name)
        found = find_source(source, revision)
        config = _config(found)
        architecture = _architecture(config, found)
        kind = _checked_kind(kind, architecture)
        dtype = weight_dtype or _default_dtype(found, config)
        model = _open(found, config, architecture, kind, dtype)
        _set_head(model, kind, labels, head)
        tokenizer = _tokenizer(found)
        draft = Manifest(
            model=name,
            version=0,
            kind=kind,
            family="",
            architecture="",
            max_tokens=0,
            vocabulary_size=0,
            weight_dtype=dtype,
            class_token_id=_class_token_id(model, tokenizer) if kind == "classifier" else -1,
            source=found.name,
            licence=found.licence,
        )
        return publish_model(model, tokenizer, repository, draft)
    except (SourceError, TokenizerError, PublishError, LoadError, ManifestError) as error:
        raise ImportRefused(str(error)) from error


def _config(source: Source) -> Any:
    try:
        if source.gguf_file:
            return AutoConfig.from_pretrained(source.folder, gguf_file=source.gguf_file)
        return AutoConfig.from_pretrained(source.folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise ImportRefused(f"{source.name}: its configuration cannot be read: {_first_line(error)}") from error


def _default_dtype(source: Source, config: Any) -> str:
    """What loses nothing that the source holds; the blocks of a GGUF file hold less than bfloat16 does."""
    stored = str(getattr(config, "dtype", None)).removeprefix("torch.")
    return "bfloat16" if source.gguf_file or stored == "bfloat16" else "float32"


def _architecture(config: Any, source: Source) -> str:
    """Name of the transformers class; GGUF files and old folders do not tell it, and are decoders or plain bodies."""
    named = getattr(config, "architectures", None)
    if named:
        return str(named[0])
    auto: Any = AutoModelForCausalLM if source.gguf_file else AutoModel
    mapping = auto._model_mapping  # noqa: SLF001
    try:
        found = mapping[type(config)]
    except KeyError:
        raise ImportRefused(f"{source.name}: transformers has no model for {config.model_type!r}") from None
    first: Any = found[0] if isinstance(found, tuple) else found
    return str(first.__name__)


def _checked_kind(kind: str | None, architecture: str) -> str:
    told = kind_of(architecture)
    if kind is None or kind == told:
        return told
    if kind == "base":
        return kind
    raise ImportRefused(f"{architecture} cannot be imported as a {kind}; it is a {told}")


def _open(source: Source, config: Any, architecture: str, kind: str, dtype: str) -> Any:
    """The model in `dtype`, quantization undone."""
    cls: Any = getattr(transformers, architecture, None)
    if cls is None:
        raise ImportRefused(f"{source.name}: transformers {transformers.__version__} has no {architecture[:100]!r}")
    options: dict[str, Any] = {"gguf_file": source.gguf_file} if source.gguf_file else {"use_safetensors": True}
    try:
        model, info = cls.from_pretrained(
            source.folder,
            config=config,  # reading it again from a GGUF file takes seconds
            dtype=getattr(torch, dtype),
            output_loading_info=True,
            local_files_only=True,
            **options,
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, ImportError, SafetensorError) as error:
        raise ImportRefused(f"{source.name}: its weights cannot be read: {_first_line(error)}") from error
    missing = sorted(map(str, info.get("missing_keys") or []))
    if missing and kind != "base":
        raise ImportRefused(f"{source.name}: weights are missing for a {architecture}: {', '.join(missing[:3])}")
    model.hf_quantizer = None
    model.is_quantized = False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    return model.eval()


def _set_head(model: Any, kind: str, labels: Sequence[str] | None, head: str | None) -> None:
    if kind != "classifier":
        if labels or head:
            raise ImportRefused(f"labels and head belong to classifiers; this is a {kind}")
        return
    if head is not None:
        architecture = type(model).__name__
        if has_token_head(architecture) or has_next_sentence_head(architecture):
            raise ImportRefused(f"the head of a {architecture} cannot be another; {head!r} given")
        if head not in _PROBLEMS:
            raise ImportRefused(f"a head is {', '.join(_PROBLEMS)}, not {head!r}")
        model.config.problem_type = _PROBLEMS[head]
    if labels:
        num_labels = len(labels_of(model))
        if len(labels) != num_labels or len(set(labels)) != len(labels):
            raise ImportRefused(f"{len(set(labels))} different labels given; the model has {num_labels}")
        model.config.id2label = dict(enumerate(labels))
        model.config.label2id = {label: index for index, label in enumerate(labels)}


def _tokenizer(source: Source) -> Any:
    options: dict[str, Any] = {"gguf_file": source.gguf_file} if source.gguf_file else {}
    try:
        return AutoTokenizer.from_pretrained(
            source.folder, local_files_only=True, trust_remote_code=False, use_fast=True, **options
        )
    except (OSError, ValueError, KeyError, TypeError, ImportError, AttributeError) as error:
        raise ImportRefused(f"{source.name}: its tokenizer cannot be read: {_first_line(error)}") from error


def _class_token_id(model: Any, tokenizer: Any) -> int:
    """The token to which the tokenizer gives a type of its own, besides those of first and second text.

    -1: there is none, or the model takes no types.

    Raises:
        ImportRefused: there are several, or their type is none that is known.
    """
    encoding = tokenizer("a", return_token_type_ids=True)
    pairs = zip(encoding["input_ids"], encoding["token_type_ids"], strict=True)
    own = {(token, kind) for token, kind in pairs if kind != 0}
    if not own or not takes_types(model, min(own)[0]):
        return -1
    if len(own) > 1 or next(iter(own))[1] != _CLASS_TYPE:
        raise ImportRefused(f"its tokenizer gives tokens of one text types that are not served: {sorted(own)}")
    return int(next(iter(own))[0])


def _quiet() -> None:
    silence_progress_bars()
    transformers.utils.logging.set_verbosity_error()  # type: ignore[no-untyped-call]


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
