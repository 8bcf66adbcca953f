"""What engines have done, over all their lives: neither a restart nor a reload makes a counter smaller."""

from __future__ import annotations

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

import msgspec

from shoal_server.control.series import SeriesTable
from shoal_server.control.versions import VersionKey
from shoal_server.ipc.messages import (
    SECOND_BUCKETS,
    SEQUENCE_BUCKETS,
    TOKEN_BUCKETS,
    EngineStatistics,
    ModelStatistics,
    Sample,
)

_COUNTERS = ("num_steps", "busy_s", "num_sequences", "num_tokens", "budget_tokens", "num_preempted", "num_expired")
_BUCKETS = ("batch_sequences_buckets", "batch_tokens_buckets", "inference_s_buckets")
_GAUGES = (
    "num_running", "num_waiting", "kv_blocks_used", "kv_blocks_total",
    "max_wait_s", "forward_fixed_s", "forward_token_s",
)  # fmt: skip


@dataclass(slots=True, kw_only=True)
class _ModelLedger:
    """One version on one engine."""

    kept: ModelStatistics | None = None  # counters of lives that ended
    last: ModelStatistics | None = None  # of the present life; its gauges are zero once it ended
    fill: float | None = None  # share of the token budget, over the last interval with steps


@dataclass(slots=True, kw_only=True)
class _EngineLedger:
    last: EngineStatistics | None = None  # of the present life
    kept_busy_s: float = 0.0
    busy_ratio: float = 0.0  # over the last interval
    models: dict[VersionKey, _ModelLedger] = field(default_factory=dict)


class EngineLedger:
    """Statistics of all engines."""

    def __init__(self) -> None:
        self._engines: dict[int, _EngineLedger] = {}

    def statistics(self, message: EngineStatistics) -> None:
        """What an engine says of itself."""
        engine = self._engines.setdefault(message.engine_id, _EngineLedger())
        if engine.last is not None and message.uptime_s > engine.last.uptime_s:
            elapsed_s = message.uptime_s - engine.last.uptime_s
            engine.busy_ratio = min(1.0, max(0.0, (message.busy_s - engine.last.busy_s) / elapsed_s))
        engine.last = message
        seen = {VersionKey(model.model, model.version): model for model in message.models}
        for key, model in seen.items():
            _update(engine.models.setdefault(key, _ModelLedger()), model)
        for key in engine.models.keys() - seen.keys():
            _retire(engine.models[key])

    def engine_lost(self, engine_id: int) -> None:
        """An engine is gone: its counters stay, its gauges vanish."""
        engine = self._engines.get(engine_id)
        if engine is None:
            return
        if engine.last is not None:
            engine.kept_busy_s += engine.last.busy_s
        engine.last, engine.busy_ratio = None, 0.0
        for model in engine.models.values():
            _retire(model)

    def drop_versions(self, keys: AbstractSet[VersionKey]) -> None:
        """Forget what ended lives had counted of these versions."""
        for engine in self._engines.values():
            for key in keys & engine.models.keys():
                if engine.models[key].last is None:
                    del engine.models[key]

    def add_to(self, table: SeriesTable) -> None:
        """Add every series of engines to `table`."""
        for engine_id, engine in sorted(self._engines.items()):
            _add_engine(table, str(engine_id), engine)
            for key, model in engine.models.items():
                _add_model(table, key, model)
                if model.last is not None:
                    _add_batching(table, str(engine_id), key, model.last)


def _update(ledger: _ModelLedger, now: ModelStatistics) -> None:
    last = ledger.last
    if last is not None and now.num_steps < last.num_steps:  # loaded again: the engine began to count from zero
        _retire(ledger)
        last = None
    budget = now.budget_tokens - (last.budget_tokens if last else 0)
    if budget > 0:
        ledger.fill = (now.num_tokens - (last.num_tokens if last else 0)) / budget
    ledger.last = now


def _retire(ledger: _ModelLedger) -> None:
    if ledger.last is not None:
        ledger.kept = _sum(ledger.kept, ledger.last)
    ledger.last, ledger.fill = None, None


def _sum(kept: ModelStatistics | None, last: ModelStatistics) -> ModelStatistics:
    """Counters added up, gauges zero."""
    changes: dict[str, object] = dict.fromkeys(_GAUGES, 0)
    if kept is not None:
        changes |= {name: getattr(kept, name) + getattr(last, name) for name in _COUNTERS}
        changes |= {name: _add_lists(getattr(kept, name), getattr(last, name)) for name in _BUCKETS}
    return msgspec.structs.replace(last, **changes)


def _add_lists(left: Sequence[int], right: Sequence[int]) -> list[int]:
    return [a + b for a, b in zip(left, right, strict=True)]


def _add_engine(table: SeriesTable, name: str, engine: _EngineLedger) -> None:
    labels = {"engine": name}
    busy_s = engine.kept_busy_s + (engine.last.busy_s if engine.last else 0.0)
    table.counter("shoal_engine_busy_seconds", "Time that forward passes had of the whole device.", labels, busy_s)
    if engine.last is None:
        return
    table.gauge(
        "shoal_engine_busy_ratio", "Share of the last second spent inside forward passes.", labels, engine.busy_ratio
    )
    table.gauge(
        "shoal_device_utilisation_ratio",
        "The GPU's utilisation, or on a CPU the engine's share of its threads.",
        labels,
        engine.last.device_utilisation,
    )
    memory = "Memory of the engine's device; on a CPU resident set and limit of the engine."
    used, total = engine.last.device_memory_used_bytes, engine.last.device_memory_total_bytes
    table.gauge("shoal_device_memory_bytes", memory, {**labels, "kind": "used"}, used)
    table.gauge("shoal_device_memory_bytes", memory, {**labels, "kind": "total"}, total)


def _add_model(table: SeriesTable, key: VersionKey, ledger: _ModelLedger) -> None:
    labels = {"model": key.model, "version": str(key.version)}
    for part in filter(None, (ledger.kept, ledger.last)):
        _add_counters(table, labels, part)
    if ledger.last is None:
        return
    last = ledger.last
    table.gauge("shoal_requests_running", "Requests in the engine that have begun.", labels, last.num_running)
    table.gauge("shoal_requests_waiting", "Requests in the engine that have not begun.", labels, last.num_waiting)
    if last.kv_blocks_total:
        table.gauge("shoal_kv_blocks_used", "KV cache blocks that hold tokens.", labels, last.kv_blocks_used)
        table.gauge("shoal_kv_blocks_total", "KV cache blocks there are.", labels, last.kv_blocks_total)
    if ledger.fill is not None:
        table.gauge(
            "shoal_batch_fill_ratio", "Share of the token budget used by the last second's steps.", labels, ledger.fill
        )


def _add_batching(table: SeriesTable, engine: str, key: VersionKey, last: ModelStatistics) -> None:
    """What an engine has learned of a classifier; nothing as long as no forward has run."""
    if last.forward_fixed_s + last.forward_token_s <= 0:
        return
    labels = {"engine": engine, "model": key.model, "version": str(key.version)}
    for name, text, value in (
        (
            "shoal_batch_max_wait_seconds",
            "How long a lone Classify call may be kept waiting for company; adapts.",
            last.max_wait_s,
        ),
        (
            "shoal_forward_fixed_seconds",
            "What a Classify forward costs, however few its tokens; learned.",
            last.forward_fixed_s,
        ),
        ("shoal_forward_token_seconds", "What each token of a Classify forward adds; learned.", last.forward_token_s),
    ):
        table.gauge(name, text, labels, value)


def _add_counters(table: SeriesTable, labels: dict[str, str], part: ModelStatistics) -> None:
    table.counter("shoal_batch_budget_tokens", "Token budget, summed over steps.", labels, part.budget_tokens)
    table.counter("shoal_preemptions", "Sequences preempted for want of KV blocks.", labels, part.num_preempted)
    table.counter("shoal_expired", "Requests never run because their deadline had passed.", labels, part.num_expired)
    for name, text, bounds, buckets, total in (
        (
            "shoal_batch_sequences",
            "Sequences in a step.",
            SEQUENCE_BUCKETS,
            part.batch_sequences_buckets,
            part.num_sequences,
        ),
        ("shoal_batch_tokens", "Tokens in a step.", TOKEN_BUCKETS, part.batch_tokens_buckets, part.num_tokens),
        ("shoal_inference_seconds", "Time of a forward pass.", SECOND_BUCKETS, part.inference_s_buckets, part.busy_s),
    ):
        table.histogram(name, text, labels, bounds, Sample(labels=[], buckets=buckets, total=total))
