"""Datasets are complete or absent."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from shoal_server.control.datasets import Datasets
from shoal_server.errors import DatasetInUse, DatasetNotFound, InvalidRequest, StorageFull
from shoal_server.ipc.calls import BeginUpload, CommitUpload, DeleteDataset, GetDataset

DATA = b"text,label\nhello,a\n"
DIGEST = hashlib.sha256(DATA).hexdigest()
NAME = f"dataset://{DIGEST}"


@pytest.fixture
def used() -> set[str]:
    return set()


@pytest.fixture
def datasets(tmp_path: Path, used: set[str]) -> Datasets:
    made = Datasets(tmp_path / "datasets", max_bytes=1000, in_use=lambda: used)
    made.open()
    return made


def begin(digest: str = DIGEST, size: int = len(DATA), form: str = "csv") -> BeginUpload:
    return BeginUpload(sha256=digest, size_bytes=size, format=form)


def upload(datasets: Datasets) -> None:
    slot = datasets.begin(begin())
    Path(slot.path).write_bytes(DATA)
    datasets.commit(CommitUpload(path=slot.path, sha256=DIGEST, size_bytes=len(DATA), format="csv"))


def test_uploaded_dataset_is_there_under_its_digest(datasets: Datasets, tmp_path: Path) -> None:
    upload(datasets)
    status = datasets.get(GetDataset(name=NAME))
    assert (status.name, status.format, status.size_bytes) == (NAME, "csv", len(DATA))
    assert (tmp_path / "datasets" / f"{DIGEST}.csv").read_bytes() == DATA
    again = datasets.begin(begin())
    assert (again.path, again.existing) == ("", status)


def test_same_bytes_in_another_format_are_refused(datasets: Datasets) -> None:
    upload(datasets)
    with pytest.raises(InvalidRequest, match="stored as csv"):
        datasets.begin(begin(form="jsonl"))


@pytest.mark.parametrize(
    ("call", "field"),
    [
        (begin(digest="../../etc/passwd"), "info.sha256"),
        (begin(digest=DIGEST.upper()), "info.sha256"),
        (begin(form="xlsx"), "info.format"),
        (begin(size=0), "info.size_bytes"),
        (begin(size=1001), "info.size_bytes"),
    ],
)
def test_bad_announcements(datasets: Datasets, call: BeginUpload, field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        datasets.begin(call)
    assert [violation.field for violation in caught.value.violations] == [field]


def test_short_upload_is_refused_and_removed(datasets: Datasets) -> None:
    slot = datasets.begin(begin())
    Path(slot.path).write_bytes(DATA[:5])
    with pytest.raises(InvalidRequest, match="5 received"):
        datasets.commit(CommitUpload(path=slot.path, sha256=DIGEST, size_bytes=len(DATA), format="csv"))
    assert not Path(slot.path).exists()


def test_only_upload_files_can_be_committed(datasets: Datasets, tmp_path: Path) -> None:
    other = tmp_path / "secret"
    other.write_bytes(DATA)
    with pytest.raises(InvalidRequest, match="unknown"):
        datasets.commit(CommitUpload(path=str(other), sha256=DIGEST, size_bytes=len(DATA), format="csv"))
    assert other.exists()


def test_leftovers_of_broken_uploads_are_removed_at_start(datasets: Datasets, used: set[str], tmp_path: Path) -> None:
    slot = datasets.begin(begin())
    Datasets(tmp_path / "datasets", max_bytes=1000, in_use=lambda: used).open()
    assert not Path(slot.path).exists()


def test_no_room_for_the_dataset(tmp_path: Path) -> None:
    datasets = Datasets(tmp_path, max_bytes=2**60, in_use=set)
    datasets.open()
    with pytest.raises(StorageFull, match="free"):
        datasets.begin(begin(size=2**59))


def test_dataset_of_an_unfinished_job_stays(datasets: Datasets, used: set[str]) -> None:
    upload(datasets)
    used.add(NAME)
    with pytest.raises(DatasetInUse):
        datasets.delete(DeleteDataset(name=NAME))
    used.clear()
    datasets.delete(DeleteDataset(name=NAME))
    with pytest.raises(DatasetNotFound):
        datasets.get(GetDataset(name=NAME))


@pytest.mark.parametrize("name", ["", DIGEST, "dataset://short", f"dataset://../{DIGEST}"])
def test_bad_names(datasets: Datasets, name: str) -> None:
    with pytest.raises(InvalidRequest):
        datasets.get(GetDataset(name=name))
