"""What the engine asks of a device, and the choice of one."""

from __future__ import annotations

from typing import Protocol

import torch

from shoal_server.config import EngineConfig
from shoal_server.engine.devices.cpu import CpuDevice
from shoal_server.engine.devices.cuda import CudaDevice
from shoal_server.engine.devices.memory import Memory


class Device(Protocol):
    """One processor on which models run."""

    name: str  # "cpu" or "cuda:0"
    full_name: str  # for people
    torch_device: torch.device
    dtype: torch.dtype  # of served weights
    commits_lazily: bool  # memory that was never written to still counts as free
    num_lanes: int  # forwards that run side by side
    num_step_threads: int  # cores of a Generate step
    queues_forwards: bool  # takes a forward while its lanes are full, and begins with it when one ends
    classify_token_budget: int  # tokens of a packed forward beyond which more are no faster

    def setup(self) -> None:
        """Settle what holds for the whole process; called once, by the compute thread."""

    def memory(self) -> Memory:
        """How full the device's memory is, and how much a new version may take."""

    def utilisation(self) -> float:
        """Busy share since the last call, 0 to 1."""

    def give_back(self) -> None:
        """Return freed memory to whom it came from; may take a while."""

    def is_lost(self, error: BaseException) -> bool:
        """Whether after this error nothing will run here any more, so that the process must be replaced."""


def open_device(config: EngineConfig, engine_id: int) -> Device:
    """The device that the configuration names; "auto" takes a GPU where there is one, engines in turn.

    Raises:
        ConfigError: there is no such device.
    """
    name = config.device
    if name == "auto":
        name = f"cuda:{engine_id % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu"
    return CpuDevice(config) if name == "cpu" else CudaDevice(config, name)
