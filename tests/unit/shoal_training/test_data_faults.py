"""Bad rows are told with their line numbers, never with their content; good ones become examples."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from shoal_training.data import Corpus, Example, load_corpus, split
from shoal_training.failures import BadData
from shoal_training.places import Places
from shoal_training.spec import DataSpec


def load(path: Path, validation: Path | None = None, **fields: Any) -> Corpus:
    values = {
        "train": str(path),
        "validation": str(validation or ""),
        "validation_fraction": 0.0,
        "text_column": "text",
        "text_pair_column": "",
        "label_column": "label",
    }
    places = Places(repository=path.parent, data_roots=(path.parent,), dataset_dir=None)
    return load_corpus(DataSpec(**(values | fields)), places, seed=1)


def refusal(path: Path, **fields: Any) -> str:
    with pytest.raises(BadData) as error:
        load(path, **fields)
    return str(error.value)


def csv_file(tmp_path: Path, data: bytes) -> Path:
    path = tmp_path / "rows.csv"
    path.write_bytes(data)
    return path


def jsonl_file(tmp_path: Path, lines: list[str | bytes]) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join(line.encode() if isinstance(line, str) else line for line in lines))
    return path


def parquet_file(tmp_path: Path, **columns: list[Any]) -> Path:
    import pyarrow as pa
    from pyarrow import parquet

    path = tmp_path / "rows.parquet"
    parquet.write_table(pa.table(columns), path)
    return path


GOOD = b"text,label\nsecret one,b\nsecret two,a\n"


def test_csv_rows_become_examples_with_sorted_labels(tmp_path: Path) -> None:
    corpus = load(csv_file(tmp_path, b'\xef\xbb\xbfid,text,label\n1,"two\nlines, quoted ""x""",b\n\n2,plain,a\n'))
    assert corpus.labels == ("a", "b")
    assert corpus.train == [
        Example(text='two\nlines, quoted "x"', label=1),
        Example(text="plain", label=0),
    ]
    assert len(corpus.digests["train"]) == 64


def test_whole_number_labels_become_text(tmp_path: Path) -> None:
    lines = [json.dumps({"text": "x", "label": label}) for label in (10, 2, "2", 10)]
    corpus = load(jsonl_file(tmp_path, lines))
    assert corpus.labels == ("10", "2")
    assert [example.label for example in corpus.train] == [0, 1, 1, 0]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (GOOD + b"secret \xff three,a\n", "train: 1 bad rows: line 4: is not UTF-8"),
        (GOOD + b"  ,a\n", "line 4: text is empty"),
        (GOOD + b",a\n", "line 4: text is missing"),
        (GOOD + b"secret three,\n", "line 4: label is missing"),
        (GOOD + b"secret three,NaN\n", "line 4: label is missing"),
        (GOOD + b"secret three\n", "line 4: has 1 fields; the header has 2"),
        (GOOD + b"secret three,a,b\n", "line 4: has 3 fields; the header has 2"),
        (GOOD + b'"secret\nthree",\n', "line 4: label is missing"),
        (GOOD + b'"secret\n\xff",a\nsecret,\n', "line 5: is not UTF-8; line 6: label is missing"),
        (GOOD + b'"secret three,a\nmore,b\n', "line 4: is not valid csv"),
        (GOOD + b"secret three," + b"s" * 300 + b"\n", "line 4: label has 300 characters; limit 256"),
        (b"", "train: the file is empty"),
        (b"text,label\n", "train: has no rows"),
        (b"secret,label\nx,a\n", "line 1: the header has 2 columns, none of them named 'text'"),
        (b"text,text,label\nx,y,a\n", "line 1: the header has 3 columns, 2 of them named 'text'"),
        (b"text,label\nx,secret\ny,secret\n", "train: has 1 different labels; at least 2 are needed"),
    ],
)
def test_csv_faults_name_the_line_and_hide_the_row(tmp_path: Path, data: bytes, said: str) -> None:
    message = refusal(csv_file(tmp_path, data))
    assert said in message
    assert "secret" not in message
    assert "sss" not in message


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('{"text": "secret", "label"', "line 3: is not JSON"),
        ('["secret"]', "line 3: is not a JSON object"),
        ("[" * 100_000, "line 3: is not JSON"),
        ('{"text": "secret"}', "line 3: has no field 'label'"),
        ('{"text": 5, "label": "a"}', "line 3: text is not text"),
        ('{"text": null, "label": "a"}', "line 3: text is missing"),
        ('{"text": "\\ud800 secret", "label": "a"}', "line 3: text holds half of a surrogate pair"),
        ('{"text": "secret", "label": 1.5}', "line 3: label is neither text nor a whole number"),
        ('{"text": "secret", "label": true}', "line 3: label is neither text nor a whole number"),
        ('{"text": "secret", "label": NaN}', "line 3: label is missing"),
        ('{"text": "secret", "label": ["a"]}', "line 3: label is neither text nor a whole number"),
        (b'{"text": "\xff secret", "label": "a"}', "line 3: is not UTF-8"),
    ],
)
def test_jsonl_faults_name_the_line_and_hide_the_row(tmp_path: Path, line: str | bytes, said: str) -> None:
    good = ['{"text": "secret", "label": "a"}', ""]  # the empty line counts, and is no fault
    message = refusal(jsonl_file(tmp_path, [*good, line, '{"text": "x", "label": "b"}']))
    assert message == f"train: 1 bad rows: {said}"


def test_parquet_is_read_and_its_faults_told_by_row(tmp_path: Path) -> None:
    corpus = load(parquet_file(tmp_path, label=[1, 0], extra=[None, None], text=["x", "y"]))
    assert corpus.labels == ("0", "1")
    faulty = parquet_file(tmp_path, text=["x", None, " ", "w"], label=[1.0, 2.0, 3.0, float("nan")])
    assert refusal(faulty) == (
        "train: 4 bad rows: line 1: label is neither text nor a whole number; line 2: text is missing; "
        "line 3: text is empty; line 4: label is missing"
    )
    assert "none of its columns named 'other'" in refusal(faulty, text_column="other")


def test_a_file_that_is_no_parquet_is_told(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    path.write_bytes(b"secret" * 100)
    assert "is not a readable parquet file" in refusal(path)
    assert "secret" not in refusal(path)


def test_of_many_faults_twenty_are_shown_and_all_are_counted(tmp_path: Path) -> None:
    message = refusal(csv_file(tmp_path, GOOD + b",a\n" * 1500))
    assert message.startswith("train: 1,500 bad rows: line 4: text is missing; line 5: ")
    assert message.endswith("line 23: text is missing; and 1,480 more")


def test_validation_labels_must_occur_in_train(tmp_path: Path) -> None:
    train = csv_file(tmp_path, GOOD)
    validation = tmp_path / "validation.csv"
    validation.write_bytes(b"text,label\nx,a\ny,secret\n")
    with pytest.raises(BadData) as error:
        load(train, validation)
    assert str(error.value) == "validation: 1 bad rows: line 3: label does not occur in train"


def test_text_alone_needs_no_labels(tmp_path: Path) -> None:
    corpus = load(csv_file(tmp_path, b"text\none\ntwo\n"), label_column="")
    assert corpus.labels == ()
    assert corpus.train == [Example(text="one"), Example(text="two")]


def test_pairs_are_read(tmp_path: Path) -> None:
    corpus = load(csv_file(tmp_path, b"text,other,label\none,uno,a\ntwo,dos,b\n"), text_pair_column="other")
    assert corpus.train[0] == Example(text="one", pair="uno", label=0)


def test_split_keeps_shares_order_and_lonely_labels() -> None:
    """Of 40 and 20 and 1 rows a quarter is 10 and 5 and 0."""
    examples = [
        Example(text=f"{label}{index}", label=label) for label, n in ((0, 40), (1, 20), (2, 1)) for index in range(n)
    ]
    train, validation = split(examples, 0.25, seed=7)
    assert Counter(example.label for example in validation) == {0: 10, 1: 5}
    assert sorted(train + validation, key=examples.index) == examples
    assert train == sorted(train, key=examples.index)
    assert split(examples, 0.25, seed=7) == (train, validation)
    assert split(examples, 0.25, seed=8) != (train, validation)
    assert split(examples, 0.0, seed=7) == (examples, [])
