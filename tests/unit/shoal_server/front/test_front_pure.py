"""Plain functions of the front: fitting, scores, detokenizing, stop strings, admission, spec trees."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest
from front_world import byte_ids, byte_tokenizer
from hypothesis import given, settings
from hypothesis import strategies as st
from shoal.v1 import train_pb2
from shoal_models.manifest import Manifest
from shoal_server.errors import InvalidRequest, QueueFull
from shoal_server.front.admission import Bounds, Load, Permit, Work, bounds_for
from shoal_server.front.convert_classify import IdsInput, check_ids
from shoal_server.front.detokenizer import Detokenizer
from shoal_server.front.fit import Overflow, fit_pair, fit_text, fit_token_ids, split_windows
from shoal_server.front.scores import Pooling, merge_windows, score
from shoal_server.front.spec_tree import to_spec, to_tree
from shoal_server.front.stop_strings import StopStrings
from shoal_server.front.version_text import Frame
from tokenizers import Tokenizer, decoders, models

FRAME = Frame(prefix=(101,), suffix=(102,))
PAIR = Frame(prefix=(101,), middle=(102,), suffix=(102,), typed=True)


@pytest.mark.parametrize(
    ("overflow", "kept"),
    [(Overflow.TRUNCATE_END, [101, 1, 2, 3, 102]), (Overflow.TRUNCATE_START, [101, 4, 5, 6, 102])],
)
def test_truncation_keeps_special_tokens_and_counts_what_it_drops(overflow: Overflow, kept: list[int]) -> None:
    fitted = fit_text([101, 1, 2, 3, 4, 5, 6, 102], FRAME, 5, overflow, "x")
    assert fitted.sequences == [kept]
    assert fitted.num_dropped == 3


def test_client_ids_without_special_tokens_are_cut_plainly() -> None:
    assert fit_token_ids([1, 2, 3, 4], FRAME, 2, Overflow.TRUNCATE_END, "x").sequences == [[1, 2]]
    assert fit_token_ids([101, 2, 3, 102], FRAME, 3, Overflow.TRUNCATE_START, "x").sequences == [[101, 3, 102]]


@pytest.mark.parametrize(
    ("num_first", "num_second", "shares"), [(10, 10, (5, 5)), (2, 20, (2, 8)), (20, 2, (8, 2)), (6, 7, (5, 5))]
)
def test_pairs_lose_tokens_from_the_longer_text_first(num_first: int, num_second: int, shares: tuple[int, int]) -> None:
    first, second = list(range(1, num_first + 1)), list(range(51, 51 + num_second))
    fitted = fit_pair(first, second, PAIR, 13, Overflow.TRUNCATE_END, "x")
    assert fitted.sequences == [[101, *first[: shares[0]], 102, *second[: shares[1]], 102]]
    assert fitted.type_start == shares[0] + 2
    assert fitted.num_dropped == num_first + num_second - 10
    from_start = fit_pair(first, second, PAIR, 13, Overflow.TRUNCATE_START, "x")
    assert from_start.sequences == [[101, *first[-shares[0] :], 102, *second[-shares[1] :], 102]]


def test_a_frame_that_fills_the_model_leaves_no_room() -> None:
    with pytest.raises(InvalidRequest, match="no room"):
        fit_text([101, 1, 102], FRAME, 2, Overflow.TRUNCATE_END, "x")


@given(num_content=st.integers(2, 500), room=st.integers(1, 60))
def test_windows_cover_everything_once(num_content: int, room: int) -> None:
    if num_content <= room:
        return
    windows = split_windows(num_content, room)
    covered: set[int] = set()
    for window in windows:
        now = set(range(window.start, window.start + room))
        assert len(now - covered) == window.num_added > 0
        covered |= now
    assert covered == set(range(num_content))


def test_softmax_is_stable_and_sorted() -> None:
    found = score(np.array([[1000.0, 1001.0, -1e9]]), head="single_label", as_logits=False, top_k=2)
    assert found.label_ids == [[1, 0]]
    assert found.values[0] == pytest.approx([1 / (1 + math.exp(-1)), 1 / (1 + math.e)])


def test_sigmoid_is_stable_and_independent() -> None:
    found = score(np.array([[-1e4, 0.0, 1e4]]), head="multi_label", as_logits=False, top_k=0)
    assert found.label_ids == [[2, 1, 0]]
    assert found.values == [[1.0, 0.5, 0.0]]


def test_regression_keeps_order_and_values() -> None:
    found = score(np.array([[-3.0, 7.0]]), head="regression", as_logits=False, top_k=0)
    assert (found.label_ids, found.values) == ([[0, 1]], [[-3.0, 7.0]])


def test_equal_scores_keep_label_order() -> None:
    assert score(np.zeros((1, 4)), head="single_label", as_logits=True, top_k=3).label_ids == [[0, 1, 2]]


def test_windows_are_weighed_by_what_they_add() -> None:
    logits = np.array([[1, 0], [3, 0], [5, 5]], dtype="<f4").tobytes()
    merged = merge_windows(logits, 2, [[3, 1], [1]], Pooling.MEAN)
    assert merged.tolist() == [[1.5, 0.0], [5.0, 5.0]]


def test_the_largest_logit_of_any_window_counts_for_each_label() -> None:
    logits = np.array([[1, 7], [3, -2], [5, 5]], dtype="<f4").tobytes()
    assert merge_windows(logits, 2, [[3, 1], [1]], Pooling.MAX).tolist() == [[3.0, 7.0], [5.0, 5.0]]


@settings(max_examples=60, deadline=None)
@given(text=st.text(alphabet=st.characters(codec="utf-8"), max_size=30), cuts=st.lists(st.integers(1, 5), max_size=60))
def test_pieces_of_bytes_join_to_the_text(text: str, cuts: list[int]) -> None:
    """However the tokens are cut, no piece holds a replacement character that the text does not."""
    ids = byte_ids(text)
    detokenizer = Detokenizer(byte_tokenizer())
    pieces, start = [], 0
    for cut in [*cuts, *[1] * len(ids)]:
        pieces.append(detokenizer.push(ids[start : start + cut]))
        start += cut
    pieces.append(detokenizer.finish())
    assert "".join(pieces) == text


def test_byte_fallback_tokens_wait_for_the_whole_character() -> None:
    """A decoder like Llama's: a run of bytes that is not whole decodes to one replacement character each."""
    vocabulary = {"▁a": 0, "▁b": 1, **{f"<0x{byte:02X}>": 2 + i for i, byte in enumerate("é€".encode())}, "<unk>": 9}
    tokenizer = Tokenizer(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.push([token_id]) for token_id in [0, 1, 2, 3, 4, 5, 6, 1]]
    assert pieces == ["a", " b", "", "é", "", "", "€", " b"]


def test_bytes_that_never_become_a_character_are_given_out_in_the_end() -> None:
    broken = byte_ids("é")[:1]
    detokenizer = Detokenizer(byte_tokenizer())
    shown = "".join(detokenizer.push(broken) for _ in range(40))
    assert len(shown) >= 16
    assert len(shown + detokenizer.finish()) == 40


def stopped(strings: list[str], pieces: list[str]) -> tuple[str, str]:
    stops, shown = StopStrings(strings), ""
    for piece in pieces:
        released = stops.push(piece)
        shown += released.text
        if released.stop_string:
            return shown, released.stop_string
    return shown + stops.finish(), ""


@given(
    text=st.text("ab", max_size=20),
    strings=st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3),
    cuts=st.lists(st.integers(0, 20), max_size=5),
)
def test_stop_strings_do_not_depend_on_how_text_is_cut(text: str, strings: list[str], cuts: list[int]) -> None:
    """The reference looks at every prefix in turn, as if each character came alone."""
    ends = [end for end in range(1, len(text) + 1) if any(text[:end].endswith(s) for s in strings)]
    wanted = (text, "")
    if ends:
        found = max((s for s in strings if text[: ends[0]].endswith(s)), key=len)
        wanted = (text[: ends[0] - len(found)], found)
    places = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    assert stopped(strings, [text[a:b] for a, b in itertools.pairwise(places)]) == wanted
    assert stopped(strings, list(text)) == wanted


def test_protected_text_is_shown_and_a_match_may_begin_in_it() -> None:
    stops = StopStrings(["xyz"])
    assert stops.push("xyz x", may_stop=False).text == "xyz "
    released = stops.push("yz")
    assert (released.text, released.stop_string) == ("", "xyz")


def test_the_door_divides_the_bound_among_fronts_and_takes_a_large_request_alone() -> None:
    bounds = bounds_for(max_waiting_tokens=100, max_sequences=4, num_fronts=2)
    assert bounds[Work.CLASSIFY] == Bounds(share=50, whole=100)
    load = Load()
    large = Permit(None, load, bounds[Work.CLASSIFY], Work.CLASSIFY, 80)
    with pytest.raises(QueueFull, match="limit 50"):
        Permit(None, load, bounds[Work.CLASSIFY], Work.CLASSIFY, 1)
    large.release()
    large.release()
    assert load.amounts[Work.CLASSIFY] == 0


def test_an_estimate_is_corrected_both_ways() -> None:
    load, bounds = Load(), Bounds(share=100, whole=100)
    first = Permit(None, load, bounds, Work.CLASSIFY, 60)
    second = Permit(None, load, bounds, Work.CLASSIFY, 40)
    second.resize(10)
    assert load.amounts[Work.CLASSIFY] == 70
    with pytest.raises(QueueFull):
        second.resize(41)
    with pytest.raises(QueueFull, match="in all"):
        first.resize(101)
    first.release()
    second.release()
    assert load.amounts[Work.CLASSIFY] == 0


def test_a_spec_becomes_a_plain_tree_and_comes_back() -> None:
    spec = train_pb2.TrainingSpec(
        name="bbc",
        base={"model": "minilm"},
        objective=train_pb2.OBJECTIVE_SEQUENCE_CLASSIFICATION,
        family=train_pb2.FAMILY_ENCODER,
        full={},
        data={"train": "dataset://abc", "validation_fraction": 0.2},
        epochs=2.5,
        early_stopping_patience=0,
        golden=train_pb2.GOLDEN_INPUTS_DATA,
    )
    spec.checkpoint_interval.FromMilliseconds(1500)
    tree = to_tree(spec)
    assert tree == {
        "name": "bbc",
        "base": {"model": "minilm"},
        "objective": "sequence_classification",
        "family": "encoder",
        "full": {},
        "data": {"train": "dataset://abc", "validation_fraction": 0.2},
        "epochs": 2.5,
        "early_stopping_patience": 0,
        "golden": "data",
        "checkpoint_interval_s": 1.5,
    }
    assert to_spec(tree) == spec


def test_a_lora_float_reads_as_it_was_written() -> None:
    assert to_tree(train_pb2.TrainingSpec(lora={"dropout": 0.05, "alpha": 32})) == {
        "lora": {"dropout": 0.05, "alpha": 32.0}
    }


def test_a_resolved_tree_with_none_and_unknown_keys_is_taken() -> None:
    spec = to_spec({"name": "x", "time_limit_s": None, "max_steps": 5.0, "added_later": 1, "lora": {"rank": 8}})
    assert spec.max_steps == 5
    assert not spec.HasField("time_limit")
    assert spec.lora.rank == 8


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (train_pb2.TrainingSpec(epochs=float("nan")), "spec.epochs"),
        (train_pb2.TrainingSpec(family=9), "spec.family"),
        (train_pb2.TrainingSpec(lora={"alpha": float("inf")}), "spec.lora.alpha"),
        (train_pb2.TrainingSpec(time_limit={"seconds": -1}), "spec.time_limit"),
    ],
)
def test_values_without_meaning_are_refused(spec: train_pb2.TrainingSpec, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        to_tree(spec)
    assert caught.value.violations[0].field == field


def test_token_ids_must_end_where_an_encoder_decoder_reads() -> None:
    manifest = Manifest(
        model="m",
        version=1,
        kind="classifier",
        family="encoder_decoder",
        architecture="x",
        max_tokens=8,
        vocabulary_size=9,
        weight_dtype="float32",
        eos_token_ids=(2,),
    )
    check_ids(IdsInput(field="inputs[0].token_ids", ids=[4, 2]), manifest)
    with pytest.raises(InvalidRequest) as caught:
        check_ids(IdsInput(field="inputs[0].token_ids", ids=[2, 4]), manifest)
    assert "ends with 4; the model reads at 2, the end" in caught.value.message
    check_ids(IdsInput(field="inputs[0].token_ids", ids=[2, 4]), dataclasses.replace(manifest, eos_token_ids=()))
