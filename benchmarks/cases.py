"""What is compared side by side: the same calls, as many in flight, in the same number type."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks import folders, workload
from benchmarks.loadgen import ClosedLoop, Window
from benchmarks.summary import Summary

CALL_TIMEOUT_S = 600.0  # a naive server lets the last in the queue wait for minutes; that is its result, not an error


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One comparison. `target` is the ratio of Shoal's rate to the naive server's that we want, if any."""

    name: str
    method: str  # "classify" or "generate"
    dtype: str  # "float32" or "bfloat16"
    in_flight: int
    window: Window
    target: float | None

    @property
    def model(self) -> str:
        """Name of the model that is called."""
        return folders.CLASSIFIER if self.method == "classify" else folders.GENERATOR

    @property
    def unit(self) -> str:
        """What the rate counts."""
        return "texts/s" if self.method == "classify" else "tokens/s"

    @property
    def loop(self) -> ClosedLoop:
        """How calls are sent."""
        return ClosedLoop(in_flight=self.in_flight)

    def items(self, seed: int) -> list[workload.Item]:
        """The calls; the same for both servers."""
        if self.method == "classify":
            return list(workload.classify_items(2000, seed=seed))
        return list(workload.generate_items(400, seed=seed))

    def rate(self, summary: Summary) -> float:
        """The figure that is compared."""
        return summary.inputs_per_s if self.method == "classify" else summary.output_tokens_per_s


CLASSIFY_WINDOW = Window(warmup_s=2.0, duration_s=8.0)
GENERATE_WINDOW = Window(warmup_s=5.0, duration_s=15.0)

CASES = (
    Case(
        name="Classify, float32", method="classify", dtype="float32", in_flight=64, window=CLASSIFY_WINDOW, target=1.5
    ),
    Case(
        name="Classify, bfloat16", method="classify", dtype="bfloat16", in_flight=64, window=CLASSIFY_WINDOW, target=2.5
    ),
    Case(
        name="Generate, float32", method="generate", dtype="float32", in_flight=16, window=GENERATE_WINDOW, target=None
    ),
    Case(
        name="Generate, bfloat16", method="generate", dtype="bfloat16", in_flight=16, window=GENERATE_WINDOW, target=6.0
    ),
)
