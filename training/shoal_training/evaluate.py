"""What an evaluation says, and the figures of classifications, in numpy.

N rows, L labels.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

NUM_RESAMPLES = 2000
_BOOTSTRAP_SEED = 20_240_229
_SCORE_DIGITS = 6  # finer differences of F1 are ties, decided by the log loss

Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Figures over validation rows."""

    metrics: dict[str, float]
    score: tuple[float, ...]  # decides which weights are best: compared lexicographically, higher is better
    report: dict[str, Any] = field(default_factory=dict)  # more than figures: per class, intervals


def classification_evaluation(logits_NL: Floats, labels_N: Ints, names: tuple[str, ...]) -> Evaluation:
    """Accuracy with its interval, macro F1, log loss, per class precision and recall, confusion counts."""
    predicted_N = logits_NL.argmax(1)
    confusion_LL = np.zeros((len(names), len(names)), dtype=np.int64)  # true label, predicted label
    np.add.at(confusion_LL, (labels_N, predicted_N), 1)
    per_class = [_class_report(confusion_LL, index, name) for index, name in enumerate(names)]
    present = [row for row in per_class if row["support"] or row["predicted"]]
    low, high = accuracy_interval(predicted_N == labels_N)
    metrics = {
        "accuracy": float((predicted_N == labels_N).mean()),
        "accuracy_low": low,
        "accuracy_high": high,
        "f1_macro": float(np.mean([row["f1"] for row in present])),
        "loss": log_loss(logits_NL, labels_N),
    }
    report = {"per_class": per_class, "confusion": confusion_LL.tolist(), "interval": "bootstrap, 95 %"}
    return Evaluation(
        metrics=metrics, score=(round(metrics["f1_macro"], _SCORE_DIGITS), -metrics["loss"]), report=report
    )


def log_loss(logits_NL: Floats, labels_N: Ints) -> float:
    """Mean negative log probability of the true label, in nats."""
    shifted_NL = logits_NL.astype(np.float64) - logits_NL.max(1, keepdims=True)
    log_sums_N = np.log(np.exp(shifted_NL).sum(1))
    return float((log_sums_N - shifted_NL[np.arange(len(labels_N)), labels_N]).mean())


def accuracy_interval(correct_N: npt.NDArray[np.bool_]) -> tuple[float, float]:
    """The 95 % bootstrap percentile interval of the mean.

    Resampling N rows with replacement draws a binomial number of correct ones, so that is drawn directly.
    """
    chooser = np.random.default_rng(_BOOTSTRAP_SEED)
    means = chooser.binomial(len(correct_N), correct_N.mean(), size=NUM_RESAMPLES) / len(correct_N)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def _class_report(confusion_LL: Ints, index: int, name: str) -> dict[str, Any]:
    hits = int(confusion_LL[index, index])
    support, predicted = int(confusion_LL[index].sum()), int(confusion_LL[:, index].sum())
    return {
        "label": name,
        "precision": hits / predicted if predicted else 0.0,
        "recall": hits / support if support else 0.0,
        "f1": 2 * hits / (support + predicted) if support + predicted else 0.0,
        "support": support,
        "predicted": predicted,
    }
