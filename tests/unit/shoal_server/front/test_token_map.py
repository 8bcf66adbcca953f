"""Which tokens of an input are read, in which row of the answer, and where they stand."""

from __future__ import annotations

import pytest
from front_world import CLS, SEP, word_tokenizer
from hypothesis import given
from hypothesis import strategies as st
from shoal_models.manifest import Manifest
from shoal_server.errors import InvalidRequest
from shoal_server.front.fit import Fitted, Overflow
from shoal_server.front.token_map import map_text, map_token_ids
from shoal_server.front.version_text import Frame, VersionText
from shoal_server.front.words import WordRule, word_rule
from tokenizers import Tokenizer, models


def version(max_tokens: int) -> VersionText:
    manifest = Manifest(
        model="ner",
        version=1,
        kind="classifier",
        family="encoder",
        architecture="BertForTokenClassification",
        head="token",
        labels=("O", "B-X"),
        max_tokens=max_tokens,
        vocabulary_size=9,
        weight_dtype="float32",
    )
    frame = Frame(prefix=(CLS,), suffix=(SEP,))
    return VersionText(
        manifest=manifest, tokenizer=word_tokenizer(), single=frame, pair=Frame(), words=WordRule(), chat=None
    )


def mapped(num_words: int, max_tokens: int, overflow: Overflow) -> Fitted:
    """A text of `num_words` words of two characters, so that word i stands at 3 i."""
    text = " ".join(["xx"] * num_words)
    encoding = word_tokenizer().encode_batch([text])[0]
    return map_text(text, encoding, version(max_tokens), overflow, "text")


def words_read(fitted: Fitted) -> list[int]:
    assert fitted.tokens is not None
    return [start // 3 for start in fitted.tokens.starts_M.tolist()]


def words_by_row(fitted: Fitted, room: int, starts: list[int]) -> list[int]:
    """For each row of the answer the word it reads, -1 for special tokens, from where windows are known to start."""
    rows: list[int] = []
    for start in starts:
        rows += [-1, *range(start, start + room), -1]
    assert len(rows) == fitted.num_tokens
    return rows


@given(num_words=st.integers(1, 120), max_tokens=st.integers(3, 40))
def test_windows_give_each_word_the_row_farthest_from_a_cut(num_words: int, max_tokens: int) -> None:
    """The reference tries every window for every word; a window's end is a cut unless the text ends there."""
    fitted, room = mapped(num_words, max_tokens, Overflow.WINDOWS), max_tokens - 2
    assert words_read(fitted) == list(range(num_words))
    assert fitted.tokens is not None
    if num_words <= room:
        assert fitted.tokens.rows_M.tolist() == list(range(1, num_words + 1))
        return
    starts = [sum(fitted.weights[: i + 1]) - room for i in range(len(fitted.weights))]

    def depth(word: int, start: int) -> int:
        before = num_words if start == 0 else word - start
        after = num_words if start + room == num_words else start + room - 1 - word
        return min(before, after)

    rows = words_by_row(fitted, room, starts)
    for word, row in enumerate(fitted.tokens.rows_M.tolist()):
        holding = [start for start in starts if start <= word < start + room]
        chosen = starts[row // (room + 2)]
        assert rows[row] == word
        assert depth(word, chosen) == max(depth(word, start) for start in holding)


@pytest.mark.parametrize(
    ("overflow", "kept"), [(Overflow.TRUNCATE_END, range(5)), (Overflow.TRUNCATE_START, range(3, 8))]
)
def test_truncation_leaves_places_as_they_are(overflow: Overflow, kept: range) -> None:
    fitted = mapped(8, 7, overflow)
    assert words_read(fitted) == list(kept)
    assert fitted.tokens is not None
    assert fitted.tokens.rows_M.tolist() == [1, 2, 3, 4, 5]
    assert (fitted.num_dropped, fitted.tokens.num_rows) == (3, 7)


def test_a_text_too_long_is_refused_as_for_other_heads() -> None:
    with pytest.raises(InvalidRequest, match="text: has 10 tokens; limit 7"):
        mapped(8, 7, Overflow.REFUSE)


def test_a_text_without_tokens_of_its_own_has_nothing_to_map() -> None:
    fitted = map_text(" ", word_tokenizer().encode_batch([" "])[0], version(7), Overflow.REFUSE, "text")
    assert fitted.sequences == [[CLS, SEP]]
    assert words_read(fitted) == []


@pytest.mark.parametrize(
    ("ids", "places"), [([CLS, 5, 6, SEP], [1, 2]), ([5, 6], [0, 1]), ([CLS, 5], [1]), ([5, SEP], [0]), ([CLS], [])]
)
def test_special_tokens_of_a_client_are_known_by_where_they_stand(ids: list[int], places: list[int]) -> None:
    fitted = map_token_ids(ids, version(7), Overflow.REFUSE, "ids")
    assert fitted.sequences == [ids]
    assert fitted.tokens is not None
    assert fitted.tokens.starts_M.tolist() == fitted.tokens.rows_M.tolist() == places


def test_the_unknown_token_is_that_of_the_settings_else_of_the_tokenizer() -> None:
    vocabulary = {"a": 0, "[UNK]": 1, "<unk>": 2}
    piece = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    assert word_rule(piece, {}) == WordRule(marks_continuations=True, unknown_id=1)
    assert word_rule(piece, {"unk_token": {"content": "<unk>"}}).unknown_id == 2
    assert word_rule(piece, {"unk_token": "absent"}).unknown_id is None
    assert word_rule(Tokenizer(models.BPE({"a": 0}, [])), {}) == WordRule(marks_continuations=False, unknown_id=None)
