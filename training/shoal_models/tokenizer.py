"""Writes the tokenizer of a version, and makes sure that fronts will tokenize as the original does.

Fronts read `tokenizer.json` with the tokenizers library alone. Cutting and padding belong to requests, so the file
carries neither.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from shoal_models.manifest import TOKENIZER_NAME

TEST_TEXTS = (
    "The quick brown fox jumps over the lazy dog.",
    "  leading, trailing and   inner   spaces\tand tabs\n\nand empty lines  ",
    "Prices rose 3.5% to $1,234,567.89 in 2024; call +49 (0)30 123-456 or write to a.b@example.org!",
    "北京欢迎你。今天天气很好,我们去长城吧!",
    "これはテストです。カタカナとひらがなと漢字。",
    "안녕하세요, 세계! 한국어 문장입니다.",
    "Привет, мир! Съешь ещё этих мягких французских булок.",
    "مرحبا بالعالم، كيف حالك اليوم؟",
    "Ça coûte déjà très cher, naïve façade; Straße, größer, señor, İstanbul.",
    "नमस्ते दुनिया, यह एक परीक्षण है।",
    "def f(x: int) -> int:\n    return x ** 2  # comment\n",
    "Emoji 😀👩‍👩‍👧‍👦 and symbols ∑∞≠ and e\u0301 composed differently from é.",
    "don't can't I'M WE'LL MixedCASE snake_case https://example.org/a?b=c&d=%20",
    "word " * 40,
    "x",
    "",
)


class TokenizerError(Exception):
    """A tokenizer cannot be carried by a version; the message says why."""


def write_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write the files of a transformers tokenizer into `folder` and check `tokenizer.json` against it.

    Raises:
        TokenizerError: there is no fast form of it, or its ids differ from the original's.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise TokenizerError(f"{type(tokenizer).__name__} has no fast form, and so no {TOKENIZER_NAME}")
    tokenizer.save_pretrained(folder)
    file = folder / TOKENIZER_NAME
    if not file.is_file():
        raise TokenizerError(f"{type(tokenizer).__name__} wrote no {TOKENIZER_NAME}")
    plain = Tokenizer.from_file(str(file))
    plain.no_truncation()
    plain.no_padding()
    plain.save(str(file))
    check_tokenizer(file, tokenizer)


def check_tokenizer(file: Path, tokenizer: Any) -> None:
    """Compare `tokenizer.json` with the transformers tokenizer that it stands for, on texts of many kinds.

    Raises:
        TokenizerError: the ids of some text differ.
    """
    plain = Tokenizer.from_file(str(file))
    for index, text in enumerate(TEST_TEXTS):
        for special in (True, False):
            found = plain.encode(text, add_special_tokens=special).ids
            expected = tokenizer(text, add_special_tokens=special, truncation=False, padding=False)["input_ids"]
            if found != list(expected):
                raise TokenizerError(
                    f"ids of test text {index} differ: {found[:8]}...; the original gives {expected[:8]}..."
                )
    pair = (TEST_TEXTS[0], TEST_TEXTS[2])
    if plain.encode(*pair).ids != list(tokenizer(*pair)["input_ids"]):
        raise TokenizerError("ids of a pair of texts differ from the original's")
