"""What a processor tells of itself."""

from __future__ import annotations

import pytest
import torch
from shoal_server.config import ConfigError, EngineConfig
from shoal_server.engine.devices import cpu, memory
from shoal_server.engine.devices.cpu import CpuDevice, default_num_lanes, default_num_step_threads
from shoal_server.engine.devices.device import open_device
from shoal_server.engine.loader import is_out_of_memory


def test_all_cores_but_one_are_divided_by_engines_and_bounded_by_omp_num_threads(monkeypatch):
    monkeypatch.setattr(cpu.os, "sched_getaffinity", lambda _: set(range(9)))
    monkeypatch.setattr(cpu, "_quota_cores", lambda: float("inf"))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [default_num_step_threads(n) for n in (1, 2, 3, 16)] == [8, 4, 2, 1]
    assert [default_num_lanes(n) for n in (1, 2, 3, 16)] == [9, 4, 3, 1]
    monkeypatch.setattr(cpu, "_quota_cores", lambda: 3.5)
    assert (default_num_step_threads(1), default_num_lanes(1)) == (2, 3)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    assert (default_num_step_threads(1), default_num_lanes(1)) == (1, 1)


def test_bfloat16_is_chosen_where_it_is_native_and_float32_elsewhere(monkeypatch):
    monkeypatch.setattr(cpu, "has_native_bfloat16", lambda: False)
    assert CpuDevice(EngineConfig()).dtype == torch.float32
    monkeypatch.setattr(cpu, "has_native_bfloat16", lambda: True)
    assert CpuDevice(EngineConfig()).dtype == torch.bfloat16
    assert CpuDevice(EngineConfig(dtype="float32")).dtype == torch.float32


def test_what_a_processor_does_not_offer_is_refused_at_the_start(monkeypatch):
    with pytest.raises(ConfigError, match=r"engine.dtype is float16: .* is not served on a CPU"):
        CpuDevice(EngineConfig(dtype="float16"))
    monkeypatch.setattr(torch.cpu, "_is_vnni_supported", lambda: False)
    with pytest.raises(ConfigError, match=r"engine.dtype is int8: int8 is not served here: this"):
        CpuDevice(EngineConfig(dtype="int8"))


def test_a_configured_limit_bounds_what_a_version_may_take():
    unlimited, limited = memory.host_memory(None), memory.host_memory(unlimited_plus := 10 * 2**20)
    assert 0 < unlimited.used_bytes < unlimited.total_bytes
    assert limited.total_bytes == unlimited_plus
    assert limited.free_bytes == 0, "this process is larger than 10 MiB already"


def test_a_limit_of_the_container_is_the_total(monkeypatch, tmp_path):
    (tmp_path / "memory.max").write_text("1000000\n")
    monkeypatch.setattr(memory, "_CGROUP_LIMITS", (tmp_path / "memory.max", tmp_path / "absent"))
    assert memory.host_memory(None).total_bytes == 1_000_000
    (tmp_path / "memory.max").write_text("max\n")
    assert memory.host_memory(None).total_bytes > 1_000_000


def test_utilisation_is_the_share_of_its_threads_that_was_busy():
    device = CpuDevice(EngineConfig(num_threads=1))
    device.utilisation()
    sum(i * i for i in range(300_000))
    assert 0.0 < device.utilisation() <= 1.0


def test_a_device_that_is_not_there_is_named():
    with pytest.raises(ConfigError, match=r"engine\.device is cuda:7"):
        open_device(EngineConfig(device="cuda:7"), 0)


def test_lack_of_memory_is_told_from_other_faults():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60)
    assert is_out_of_memory(caught.value)
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
