"""What the engine has done, counted by version. Owns the counters; knows neither sockets nor prometheus."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field

from shoal_server.engine.request import VersionKey
from shoal_server.ipc.messages import SECOND_BUCKETS, SEQUENCE_BUCKETS, TOKEN_BUCKETS, ModelStatistics


@dataclass(frozen=True, slots=True, kw_only=True)
class Gauges:
    """How a version stands at this moment."""

    num_running: int = 0
    num_waiting: int = 0
    num_preempted: int = 0
    kv_blocks_used: int = 0
    kv_blocks_total: int = 0
    max_wait_s: float = 0.0
    forward_fixed_s: float = 0.0
    forward_token_s: float = 0.0


def _histogram(bounds: tuple[float, ...]) -> list[int]:
    return [0] * (len(bounds) + 1)


@dataclass(slots=True)
class _Counters:
    num_steps: int = 0
    busy_s: float = 0.0
    num_sequences: int = 0
    num_tokens: int = 0
    budget_tokens: int = 0
    num_expired: int = 0
    sequences: list[int] = field(default_factory=lambda: _histogram(SEQUENCE_BUCKETS))
    tokens: list[int] = field(default_factory=lambda: _histogram(TOKEN_BUCKETS))
    seconds: list[int] = field(default_factory=lambda: _histogram(SECOND_BUCKETS))


class Statistics:
    """Counters of the versions that are loaded; they grow from the load on."""

    def __init__(self) -> None:
        self.busy_s = 0.0  # inside forwards, versions that are gone included
        self._counters: dict[VersionKey, _Counters] = {}

    def record(
        self,
        version: VersionKey,
        *,
        num_sequences: int,
        num_tokens: int,
        budget_tokens: int,
        seconds: float,
        device_s: float,
    ) -> None:
        """Count one forward, which had `device_s` seconds' worth of the whole device."""
        counters = self._counters.setdefault(version, _Counters())
        counters.num_steps += 1
        counters.busy_s += seconds
        counters.num_sequences += num_sequences
        counters.num_tokens += num_tokens
        counters.budget_tokens += budget_tokens
        counters.sequences[bisect_left(SEQUENCE_BUCKETS, num_sequences)] += 1
        counters.tokens[bisect_left(TOKEN_BUCKETS, num_tokens)] += 1
        counters.seconds[bisect_left(SECOND_BUCKETS, seconds)] += 1
        self.busy_s += device_s

    def record_expired(self, version: VersionKey) -> None:
        """Count a call whose deadline passed before it had run."""
        self._counters.setdefault(version, _Counters()).num_expired += 1

    def forget(self, version: VersionKey) -> None:
        """A version is gone."""
        self._counters.pop(version, None)

    def snapshot(self, version: VersionKey, gauges: Gauges) -> ModelStatistics:
        """Everything of one version, as a message."""
        counters = self._counters.get(version) or _Counters()
        return ModelStatistics(
            model=version.model,
            version=version.version,
            num_steps=counters.num_steps,
            busy_s=counters.busy_s,
            num_sequences=counters.num_sequences,
            num_tokens=counters.num_tokens,
            budget_tokens=counters.budget_tokens,
            batch_sequences_buckets=list(counters.sequences),
            batch_tokens_buckets=list(counters.tokens),
            inference_s_buckets=list(counters.seconds),
            num_running=gauges.num_running,
            num_waiting=gauges.num_waiting,
            num_preempted=gauges.num_preempted,
            num_expired=counters.num_expired,
            kv_blocks_used=gauges.kv_blocks_used,
            kv_blocks_total=gauges.kv_blocks_total,
            max_wait_s=gauges.max_wait_s,
            forward_fixed_s=gauges.forward_fixed_s,
            forward_token_s=gauges.forward_token_s,
        )
