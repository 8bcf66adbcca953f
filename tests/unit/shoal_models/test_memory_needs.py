"""Whether a version fits is known before its weights are read."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from shoal_models import memory
from shoal_models.manifest import FileEntry, Manifest
from shoal_models.memory import NotEnoughMemory, available_memory, check_memory, memory_need
from tiny_models import CPU, draft

MIB = 2**20


def _manifest(weight_bytes: int, weight_dtype: str) -> Manifest:
    files = (FileEntry(path="model.safetensors", size_bytes=weight_bytes, sha256=""),)
    return dataclasses.replace(draft("m", "generator", weight_dtype), files=files)


def test_a_bfloat16_file_needs_twice_its_size_to_be_checked_in_float32() -> None:
    need = memory_need(_manifest(100 * MIB, "bfloat16"), dtype=torch.float32, device=CPU, cache_bytes=50 * MIB)
    assert need.loading_bytes == pytest.approx(200 * MIB * 1.1)
    assert need.serving_bytes == pytest.approx(200 * MIB * 1.1)
    assert need.peak_bytes == pytest.approx(need.serving_bytes + 50 * MIB + 128 * MIB)


def test_what_does_not_fit_is_refused_with_both_figures() -> None:
    manifest = _manifest(1000 * MIB, "float32")
    need = memory_need(manifest, dtype=torch.float32, device=CPU)
    check_memory(manifest, dtype=torch.float32, device=CPU, available_bytes=need.peak_bytes)
    with pytest.raises(NotEnoughMemory) as caught:
        check_memory(manifest, dtype=torch.float32, device=CPU, available_bytes=need.peak_bytes - 1)
    assert caught.value.needed_bytes == need.peak_bytes
    assert f"needs {need.peak_bytes:,} bytes" in str(caught.value)
    assert f"{need.peak_bytes - 1:,} are available" in str(caught.value)


def test_this_machine_has_memory() -> None:
    available = available_memory(CPU)
    assert available is None or available > 64 * MIB


def _system(tmp_path: Path, lines: str, files: dict[str, str]) -> None:
    for name, text in {
        "proc/meminfo": "MemTotal: 9 kB\nMemAvailable:  1048576 kB\n",
        "proc/self/cgroup": lines,
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    for name, text in files.items():
        (tmp_path / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "cgroup" / name).write_text(text)


@pytest.mark.parametrize(
    ("lines", "files", "expected"),
    [
        ("", {}, 1024 * MIB),
        (
            "0::/a/b\n",
            {
                "a/b/memory.max": "max",
                "a/b/memory.current": str(10 * MIB),
                "a/memory.max": str(300 * MIB),
                "a/memory.current": str(200 * MIB),
                "a/memory.stat": f"anon 5\ninactive_file {50 * MIB}\n",
            },
            150 * MIB,
        ),
        (
            "4:memory:/x\n2:cpu:/\n",
            {"memory/x/memory.limit_in_bytes": str(100 * MIB), "memory/x/memory.usage_in_bytes": str(90 * MIB)},
            10 * MIB,
        ),
        (
            "4:memory:/x\n",
            {"memory/x/memory.limit_in_bytes": str(2**63 - 4096), "memory/x/memory.usage_in_bytes": "5"},
            1024 * MIB,
        ),
        ("0::/a\n", {"a/memory.max": str(5 * MIB), "a/memory.current": str(9 * MIB)}, 0),
    ],
    ids=["no cgroup", "v2, limited above", "v1", "v1 without limit", "over its limit"],
)
def test_the_tightest_limit_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: str, files: dict[str, str], expected: int
) -> None:
    _system(tmp_path, lines, files)
    monkeypatch.setattr(memory, "_PROC", tmp_path / "proc")
    monkeypatch.setattr(memory, "_CGROUP", tmp_path / "cgroup")
    assert available_memory(CPU) == expected


def test_an_unknown_system_refuses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_PROC", tmp_path)
    assert available_memory(CPU) is None
    check_memory(_manifest(2**50, "float32"), dtype=torch.float32, device=CPU)
