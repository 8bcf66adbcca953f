"""Real texts of drawn lengths."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from benchmarks import news
from benchmarks.news import Workload
from benchmarks.workload import LognormalLengths


@pytest.fixture(scope="module")
def made() -> Workload:
    return news.make(news.articles()[:200], news.tokenizer(), 400, seed=3)


def test_lengths_have_their_median_and_stay_within_their_bound(made: Workload) -> None:
    assert 23 <= statistics.median(made.num_tokens) <= 31
    assert max(made.num_tokens) <= 256
    assert min(made.num_tokens) >= 3


def test_texts_are_whole_words_out_of_articles(made: Workload) -> None:
    whole = "\n".join(news.articles()[:200])
    assert all(text in whole for text in made.texts)


def test_same_seed_gives_the_same_texts(made: Workload) -> None:
    assert news.make(news.articles()[:200], news.tokenizer(), 400, seed=3).digest == made.digest
    assert news.make(news.articles()[:200], news.tokenizer(), 400, seed=4).digest != made.digest


def test_text_longer_than_every_article_is_drawn_from_those_that_are_long_enough() -> None:
    lengths = LognormalLengths(median=6.0, sigma=0.1, longest=6)
    found = news.make(["Hi.", "This one is long enough for all."], news.tokenizer(), 5, lengths=lengths)
    assert all(text in "This one is long enough for all." or text in "Hi." for text in found.texts)
    assert len(found.texts) == 5


def test_rounds_begin_at_other_texts_and_miss_none(made: Workload) -> None:
    assert sorted(made.in_round(1)) == sorted(made.texts)
    assert made.in_round(1)[0] == made.texts[len(made.texts) // 7]
    assert made.items(0)[0].texts == (made.texts[0],)


def test_file_is_written_once_and_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(news, "NUM_TEXTS", 10)
    first = news.ensure(tmp_path / "workload.json")
    (tmp_path / "workload.json").read_text()
    monkeypatch.setattr(news, "NUM_TEXTS", 20)
    assert news.ensure(tmp_path / "workload.json") == first
