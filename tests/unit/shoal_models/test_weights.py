"""Weights are read and rounded piece by piece, whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from shoal_models.load import LoadError, open_model
from shoal_models.weights import read_weights, rounded


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a few numbers take several."""
    monkeypatch.setattr("shoal_models.weights._PIECE", 7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_all_shards_are_read_into_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    first, second = torch.randn(5, 9).to(dtype), torch.randn(3).to(dtype)
    numbers, scalar, empty = torch.arange(20), torch.tensor(2.5), torch.empty(0, 4)
    save_file({"first": first, "numbers": numbers}, tmp_path / "model-1.safetensors")
    save_file({"second": second, "scalar": scalar, "empty": empty}, tmp_path / "model-2.safetensors")
    found = read_weights(tmp_path)
    assert set(found) == {"first", "second", "numbers", "scalar", "empty"}
    assert torch.equal(found["first"], first.float())
    assert torch.equal(found["second"], second.float())
    assert found["numbers"].dtype == torch.int64
    assert torch.equal(found["numbers"], numbers)
    assert found["scalar"].item() == 2.5
    assert found["empty"].shape == (0, 4)


def test_what_was_read_outlives_the_file(tmp_path: Path) -> None:
    weight = torch.randn(4, 9)
    save_file({"weight": weight}, tmp_path / "model.safetensors")
    found = read_weights(tmp_path)["weight"]
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert torch.equal(found, weight)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_is_that_of_torch(dtype: torch.dtype) -> None:
    weight = torch.randn(6, 5)
    expected = weight.to(torch.bfloat16).to(dtype)
    assert torch.equal(rounded(weight.clone(), torch.bfloat16, dtype), expected)
    assert torch.equal(rounded(weight.t().clone().t(), torch.bfloat16, dtype), expected)


def test_rounding_takes_no_memory_where_the_dtype_stays() -> None:
    weight = torch.randn(6, 5)
    assert rounded(weight, torch.bfloat16, torch.float32).data_ptr() == weight.data_ptr()
    assert rounded(weight, torch.float32, torch.float32) is weight


def test_a_folder_without_a_configuration_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"has no config\.json"):
        open_model(tmp_path, "BertForSequenceClassification")


def test_shared_weights_lie_in_the_files_pages_and_others_in_memory_of_their_own(tmp_path: Path) -> None:
    plain, halved = torch.randn(50, 90), torch.randn(50, 90).to(torch.bfloat16)
    file = tmp_path / "model.safetensors"
    save_file({"plain": plain, "halved": halved}, file)
    found = read_weights(tmp_path, share=True)
    assert torch.equal(found["plain"], plain)
    assert torch.equal(found["halved"], halved.float())
    assert _is_mapped(found["plain"], file)
    assert not _is_mapped(found["halved"], file)
    assert not _is_mapped(read_weights(tmp_path)["plain"], file)


def test_writing_to_shared_weights_leaves_the_file_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    save_file({"weight": torch.zeros(9)}, file)
    before = file.read_bytes()
    read_weights(tmp_path, share=True)["weight"].fill_(1.0)
    assert file.read_bytes() == before


def _is_mapped(tensor: torch.Tensor, file: Path) -> bool:
    """Whether the tensor's memory is a mapping of the file, as the kernel tells."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        start, end = (int(part, 16) for part in line.split()[0].split("-"))
        if start <= tensor.data_ptr() < end:
            return line.endswith(str(file))
    return False
