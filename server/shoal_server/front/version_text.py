"""What a front holds of a version: its manifest, its tokenizer with fixed settings, its chat template.

Each file is compared with the manifest's checksum before it is interpreted. Loading blocks, so it happens in a thread.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from shoal_models.manifest import TOKENIZER_NAME, Manifest, ManifestError, read_manifest
from tokenizers import Tokenizer

from shoal_server.front.chat import ChatTemplate, TemplateRefused
from shoal_server.front.words import WordRule, word_rule

_CONFIG_NAME: Final = "tokenizer_config.json"
_TEMPLATE_NAME: Final = "chat_template.jinja"


class TextRefused(Exception):
    """A version's tokenizer or chat template cannot be used; the message says why."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """The special tokens that the model wants around its input: prefix, first text, middle, second text, suffix."""

    prefix: tuple[int, ...] = ()
    middle: tuple[int, ...] = ()  # pairs only
    suffix: tuple[int, ...] = ()
    typed: bool = False  # pairs only: tokens of the second text have type 1

    @property
    def size(self) -> int:
        """How many there are."""
        return len(self.prefix) + len(self.middle) + len(self.suffix)


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionText:
    """Everything a front needs to turn requests for a version into token ids and back."""

    manifest: Manifest
    tokenizer: Tokenizer  # neither truncates nor pads; never changed after loading, so threads may share it
    single: Frame
    pair: Frame
    words: WordRule
    chat: ChatTemplate | None


def load_version_text(path: Path) -> VersionText:
    """Read the text side of the version folder `path`; blocks.

    Raises:
        TextRefused: a file is missing, damaged or not usable.
    """
    try:
        manifest = read_manifest(path)
        tokenizer = _load_tokenizer(_read_listed(path, manifest, TOKENIZER_NAME))
        settings = _load_settings(path, manifest)
        return VersionText(
            manifest=manifest,
            tokenizer=tokenizer,
            single=_probe_single(tokenizer),
            pair=_probe_pair(tokenizer),
            words=word_rule(tokenizer, settings),
            chat=_load_chat(path, manifest, settings),
        )
    except (ManifestError, TemplateRefused) as error:
        raise TextRefused(str(error)) from None
    except OSError as error:
        raise TextRefused(f"a file of the version is unreadable: {type(error).__name__}") from None


def _read_listed(path: Path, manifest: Manifest, name: str) -> bytes:
    entry = next((entry for entry in manifest.files if entry.path == name), None)
    if entry is None:
        raise TextRefused(f"{name} is not listed in the manifest")
    content = (path / name).read_bytes()
    if len(content) != entry.size_bytes or hashlib.sha256(content).hexdigest() != entry.sha256:
        raise TextRefused(f"{name} differs from its checksum")
    return content


def _load_tokenizer(content: bytes) -> Tokenizer:
    try:
        tokenizer: Tokenizer = Tokenizer.from_buffer(content)
    except Exception as error:
        raise TextRefused(f"{TOKENIZER_NAME} is no tokenizer: {str(error)[:200]}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _probe_single(tokenizer: Tokenizer) -> Frame:
    """Learn the special tokens around one text from how a short one is encoded."""
    encoding = tokenizer.encode("a")
    ids, owners = encoding.ids, encoding.sequence_ids
    inside = [i for i, owner in enumerate(owners) if owner is not None]
    if not inside:  # the probe vanished: everything there is special
        return Frame(prefix=tuple(ids))
    return Frame(prefix=tuple(ids[: inside[0]]), suffix=tuple(ids[inside[-1] + 1 :]))


def _probe_pair(tokenizer: Tokenizer) -> Frame:
    """The same for two texts."""
    encoding = tokenizer.encode("a", "a")
    ids, owners = encoding.ids, encoding.sequence_ids
    first = [i for i, owner in enumerate(owners) if owner == 0]
    second = [i for i, owner in enumerate(owners) if owner == 1]
    if not first or not second:
        return Frame(prefix=tuple(ids))
    return Frame(
        prefix=tuple(ids[: first[0]]),
        middle=tuple(ids[first[-1] + 1 : second[0]]),
        suffix=tuple(ids[second[-1] + 1 :]),
        typed=encoding.type_ids[second[0]] == 1,
    )


def _load_settings(path: Path, manifest: Manifest) -> dict[str, Any]:
    """What tokenizer_config.json says; nothing where there is none."""
    if all(entry.path != _CONFIG_NAME for entry in manifest.files):
        return {}
    try:
        settings = json.loads(_read_listed(path, manifest, _CONFIG_NAME))
    except ValueError:
        raise TextRefused(f"{_CONFIG_NAME} is not JSON") from None
    if not isinstance(settings, dict):
        raise TextRefused(f"{_CONFIG_NAME} is not a JSON object")
    return settings


def _load_chat(path: Path, manifest: Manifest, settings: dict[str, Any]) -> ChatTemplate | None:
    listed = {entry.path for entry in manifest.files}
    source = _template_source(settings.get("chat_template"))
    if _TEMPLATE_NAME in listed:
        source = _read_listed(path, manifest, _TEMPLATE_NAME).decode("utf-8", errors="replace")
    return ChatTemplate(source, _special_tokens(settings)) if source else None


def _template_source(value: object) -> str:
    """A template, or the one named "default" out of several."""
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        named = {entry.get("name"): entry.get("template") for entry in value if isinstance(entry, dict)}
        return str(named.get("default") or "")
    return ""


def _special_tokens(settings: dict[str, Any]) -> dict[str, str]:
    """Variables such as `bos_token` that templates use; a value is a string or an object with `content`."""
    found: dict[str, str] = {}
    for name, value in settings.items():
        content = value.get("content") if isinstance(value, dict) else value
        if name.endswith("_token") and isinstance(content, str):
            found[name] = content
    return found
