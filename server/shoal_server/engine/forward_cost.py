"""What a forward of one version costs: a fixed part and a part for each token, learned from forwards that have run.

The last few forwards of each size class (an octave of tokens) are kept and stand there by their medians: a stray slow
forward counts for nothing, and a busy hour, with full batches only, does not make forget what small ones cost. A line
through the medians, fitted to relative errors, is the cost. Knows no clock: seconds are passed in.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from statistics import median

_KEPT = 9  # forwards of a size class


@dataclass(slots=True)
class _SizeClass:
    """The last forwards of about one size, and their medians."""

    tokens: deque[int] = field(default_factory=lambda: deque(maxlen=_KEPT))
    seconds: deque[float] = field(default_factory=lambda: deque(maxlen=_KEPT))
    median_tokens: float = 0.0
    median_s: float = 0.0

    def add(self, num_tokens: int, seconds: float) -> None:
        self.tokens.append(num_tokens)
        self.seconds.append(seconds)
        self.median_tokens, self.median_s = median(self.tokens), median(self.seconds)


class ForwardCost:
    """The cost of one version's forwards. As long as all were of one size nothing is known of a fixed part: it is 0."""

    def __init__(self) -> None:
        self._classes: dict[int, _SizeClass] = {}
        self.fixed_s = 0.0
        self.token_s = 0.0

    def record(self, num_tokens: int, seconds: float) -> None:
        """Learn from a forward. O(size classes), of which there are hardly a dozen."""
        self._classes.setdefault(num_tokens.bit_length(), _SizeClass()).add(num_tokens, max(seconds, 1e-9))
        self._fit()

    def seconds(self, num_tokens: int) -> float:
        """Expected time of a forward; 0 as long as none has run."""
        return self.fixed_s + self.token_s * num_tokens

    def tokens_within(self, seconds: float) -> float:
        """How many tokens a forward of so many seconds may have; infinite where nothing is known of their cost."""
        return max(seconds - self.fixed_s, 0.0) / self.token_s if self.token_s > 0 else float("inf")

    def _fit(self) -> None:
        """Least squares of relative errors, neither part below 0: each point (x, y) weighs 1 / y^2."""
        weight = weight_x = weight_xx = weight_y = weight_xy = 0.0
        for point in self._classes.values():
            x, y = point.median_tokens, point.median_s
            w = 1.0 / (y * y)
            weight, weight_x, weight_xx = weight + w, weight_x + w * x, weight_xx + w * x * x
            weight_y, weight_xy = weight_y + w * y, weight_xy + w * x * y
        spread = weight * weight_xx - weight_x * weight_x
        self.fixed_s, self.token_s = 0.0, weight_xy / weight_xx
        if len(self._classes) < 2:
            return
        token_s = (weight * weight_xy - weight_x * weight_y) / spread
        fixed_s = (weight_y - token_s * weight_x) / weight
        if token_s < 0:
            self.fixed_s, self.token_s = weight_y / weight, 0.0
        elif fixed_s > 0:
            self.fixed_s, self.token_s = fixed_s, token_s
