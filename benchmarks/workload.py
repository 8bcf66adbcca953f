"""What is asked of a server: texts and prompts of drawn lengths, the same for every run with the same seed.

Texts are made of common words that are one token each in the vocabularies of BERT and SmolLM2, so that a length in
words is a length in tokens (special tokens come on top). Knows no gRPC.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

_COMMON = (
    "the of and to in for on that with as was by at from this they are not but which when there been has more "
    "also their one two three first second new old good long high low open close early late year day week month "
    "time hour work home house street city town country world people man woman child family friend school game "
    "team play win loss goal point market price bank money company business trade office job plan law court "
    "police party vote leader power state war peace food water air fire light sound music film book story news "
    "paper letter word name line page part side end"
)
WORDS = _COMMON.split()


@dataclass(frozen=True, slots=True, kw_only=True)
class LognormalLengths:
    """Lengths drawn from a lognormal distribution, redrawn above `longest`."""

    median: float = 27.0  # tokens
    sigma: float = 0.8  # standard deviation of the logarithm
    longest: int = 256  # tokens

    def draw(self, rng: random.Random) -> int:
        """One length in tokens, from 1 to `longest`."""
        while True:
            length = round(rng.lognormvariate(math.log(self.median), self.sigma))
            if 1 <= length <= self.longest:
                return length


@dataclass(frozen=True, slots=True, kw_only=True)
class UniformLengths:
    """Lengths drawn evenly, both ends included."""

    shortest: int  # tokens
    longest: int  # tokens

    def draw(self, rng: random.Random) -> int:
        """One length in tokens."""
        return rng.randint(self.shortest, self.longest)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassifyItem:
    """One Classify call with `texts` as its inputs."""

    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateItem:
    """One StreamGenerate call: greedy, and exactly `num_new_tokens` long whatever the model says."""

    prompt: str
    num_new_tokens: int


Item = ClassifyItem | GenerateItem

CLASSIFY_LENGTHS = LognormalLengths()
PROMPT_LENGTHS = UniformLengths(shortest=16, longest=128)
OUTPUT_LENGTHS = UniformLengths(shortest=8, longest=128)
NUM_SPECIAL_TOKENS = 2  # [CLS] and [SEP]


def text(rng: random.Random, num_words: int) -> str:
    """Made-up text of so many words."""
    return " ".join(rng.choices(WORDS, k=num_words))


def classify_items(
    count: int, *, seed: int = 0, texts_per_call: int = 1, lengths: LognormalLengths = CLASSIFY_LENGTHS
) -> list[ClassifyItem]:
    """`count` calls; lengths include the two special tokens, so the shortest text has one word."""
    rng = random.Random(seed)
    return [
        ClassifyItem(
            texts=tuple(text(rng, max(1, lengths.draw(rng) - NUM_SPECIAL_TOKENS)) for _ in range(texts_per_call))
        )
        for _ in range(count)
    ]


def generate_items(
    count: int, *, seed: int = 0, prompts: UniformLengths = PROMPT_LENGTHS, outputs: UniformLengths = OUTPUT_LENGTHS
) -> list[GenerateItem]:
    """`count` calls with prompts and outputs of drawn lengths."""
    rng = random.Random(seed)
    return [GenerateItem(prompt=text(rng, prompts.draw(rng)), num_new_tokens=outputs.draw(rng)) for _ in range(count)]
