"""An NVIDIA GPU: its name, memory and utilisation, and which errors end it."""

from __future__ import annotations

import pynvml
import torch

from shoal_server.config import ConfigError, EngineConfig
from shoal_server.engine.devices.memory import Memory

_RESERVE_BYTES = 256 * 2**20  # for kernels' workspaces, beside what a version is reckoned to need


class CudaDevice:
    """One GPU; kernels are chosen in shoal_models."""

    commits_lazily = False
    num_lanes = 1
    num_step_threads = 1
    queues_forwards = True
    classify_token_budget = 8192  # what fills a large GPU; not measured yet

    def __init__(self, config: EngineConfig, name: str) -> None:
        device = _device(name)
        self.torch_device = device
        self.name = str(device)
        self.full_name = torch.cuda.get_device_name(device)
        self.dtype: torch.dtype = torch.bfloat16 if config.dtype == "auto" else getattr(torch, config.dtype)
        self._memory_limit_bytes = config.memory_limit_bytes
        pynvml.nvmlInit()
        # NVML counts all GPUs of the machine, CUDA only the visible ones: the uuid is what both agree on.
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"
        self._nvml = pynvml.nvmlDeviceGetHandleByUUID(uuid)

    def setup(self) -> None:
        """Make this GPU the calling thread's."""
        torch.cuda.set_device(self.torch_device)

    def memory(self) -> Memory:
        """The GPU's memory; what torch holds free in its own pool counts as free."""
        info = pynvml.nvmlDeviceGetMemoryInfo(self._nvml)
        pooled = torch.cuda.memory_reserved(self.torch_device) - torch.cuda.memory_allocated(self.torch_device)
        total, free = int(info.total), int(info.free) + pooled - _RESERVE_BYTES
        if self._memory_limit_bytes is not None:
            total = min(total, self._memory_limit_bytes)
            free = min(free, self._memory_limit_bytes - torch.cuda.memory_allocated(self.torch_device))
        return Memory(used_bytes=int(info.used), total_bytes=total, free_bytes=max(free, 0))

    def utilisation(self) -> float:
        """NVML's share of the last sampling period in which a kernel ran."""
        return float(pynvml.nvmlDeviceGetUtilizationRates(self._nvml).gpu) / 100

    def give_back(self) -> None:
        """Empty torch's pool, so that other processes and engines can have it."""
        torch.cuda.empty_cache()

    def is_lost(self, error: BaseException) -> bool:
        """After any error of CUDA but a lack of memory its context is of no more use."""
        return isinstance(error, torch.AcceleratorError) and not isinstance(error, torch.OutOfMemoryError)


def _device(name: str) -> torch.device:
    if not torch.cuda.is_available():
        raise ConfigError(f"engine.device is {name}, but torch finds no CUDA device")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"engine.device is {name!r}; allowed are cpu, cuda, cuda:<index> and auto") from None
    index = torch.cuda.current_device() if device.index is None else device.index
    if device.type != "cuda" or index >= torch.cuda.device_count():
        raise ConfigError(f"engine.device is {name}; there are {torch.cuda.device_count()} CUDA devices")
    return torch.device("cuda", index)
