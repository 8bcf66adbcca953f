"""Who has had how much of the device: charges turns, counts statistics, and notices when the device is gone."""

from __future__ import annotations

from shoal_server.engine.devices.device import Device
from shoal_server.engine.request import VersionKey
from shoal_server.engine.statistics import Statistics
from shoal_server.engine.turns import Turns


class Usage:
    """The device's time."""

    def __init__(self, device: Device) -> None:
        self.turns = Turns()
        self.statistics = Statistics()
        self.is_device_lost = False
        self._device = device

    def ran(
        self,
        version: VersionKey,
        *,
        num_sequences: int,
        num_tokens: int,
        budget_tokens: int,
        seconds: float,
        device_s: float,
    ) -> None:
        """A forward is done. It took `seconds`, and so much of the device as `device_s` seconds of all of it are."""
        self.turns.charge(version, device_s)
        self.statistics.record(
            version,
            num_sequences=num_sequences,
            num_tokens=num_tokens,
            budget_tokens=budget_tokens,
            seconds=seconds,
            device_s=device_s,
        )

    def failed(self, version: VersionKey, error: Exception, seconds: float) -> None:
        """A forward took its time, and that is all."""
        self.turns.charge(version, seconds)
        self.is_device_lost |= self._device.is_lost(error)

    def forget(self, version: VersionKey) -> None:
        """A version is gone."""
        self.turns.forget(version)
        self.statistics.forget(version)
