"""A version's tokenizer.json tokenizes as the original does, or is not published."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from shoal_models.tokenizer import TEST_TEXTS, TokenizerError, check_tokenizer, write_tokenizer
from tokenizers import Tokenizer


def test_cutting_and_padding_are_left_to_requests(tmp_path: Path, tokenizer: Any) -> None:
    tokenizer(["a", "longer one"], truncation=True, max_length=4, padding=True)  # leaves both set in the backend
    write_tokenizer(tokenizer, tmp_path)
    tree = json.loads((tmp_path / "tokenizer.json").read_text())
    assert tree["truncation"] is None
    assert tree["padding"] is None
    plain = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    for text in TEST_TEXTS:
        assert plain.encode(text).ids == tokenizer(text)["input_ids"]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda tree: tree.update(normalizer={"type": "Lowercase"}),
        lambda tree: tree.update(post_processor=None),
        lambda tree: tree["pre_tokenizer"].update(add_prefix_space=True),
    ],
    ids=["normalizer", "special tokens", "prefix space"],
)
def test_a_tokenizer_with_other_ids_is_refused(tmp_path: Path, tokenizer: Any, spoil: Any) -> None:
    write_tokenizer(tokenizer, tmp_path)
    file = tmp_path / "tokenizer.json"
    tree = json.loads(file.read_text())
    spoil(tree)
    file.write_text(json.dumps(tree))
    with pytest.raises(TokenizerError, match="differ"):
        check_tokenizer(file, tokenizer)


def test_a_tokenizer_without_fast_form_is_refused(tmp_path: Path) -> None:
    class Slow:
        is_fast = False

    with pytest.raises(TokenizerError, match=r"Slow has no fast form, and so no tokenizer\.json"):
        write_tokenizer(Slow(), tmp_path)
