"""Everything one training run holds, and its evaluations: which weights are best, and when enough is enough."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from shoal_training.batches import TokenRow
from shoal_training.checkpoint import CheckpointStore, Selection
from shoal_training.evaluate import Evaluation
from shoal_training.events import EventLog
from shoal_training.failures import Diverged
from shoal_training.guard import Guard
from shoal_training.objectives.interface import Objective
from shoal_training.spec import Spec
from shoal_training.weights import load_trained, save_trained


@dataclass(slots=True, kw_only=True)
class Session:
    """One run from its first or resumed step to its last. Only `selection` changes."""

    spec: Spec
    events: EventLog
    guard: Guard
    store: CheckpointStore
    objective: Objective
    model: Any
    train_rows: list[TokenRow]
    validation_rows: list[TokenRow]
    labels: tuple[str, ...]
    pad_id: int
    selection: Selection = dataclasses.field(default_factory=Selection)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in one pass over the training rows."""
        return -(-len(self.train_rows) // self.spec.batch_size)

    @property
    def total_steps(self) -> int:
        """Optimizer steps in all."""
        return self.spec.max_steps or max(1, math.ceil(self.spec.epochs * self.steps_per_epoch))

    def is_evaluated_at(self, step: int) -> bool:
        """Whether validation rows are evaluated after `step`: at the end of epochs and at the very end."""
        return bool(self.validation_rows) and (step % self.steps_per_epoch == 0 or step == self.total_steps)

    def is_finished(self, step: int) -> bool:
        """Whether there is nothing left to train after `step`."""
        return step >= self.total_steps or self.selection.ended

    def complete_checkpoint(self, step: int) -> None:
        """Declare the checkpoint that was written for `step` whole."""
        self.store.complete(step, self.selection, self.guard.spent_s)
        self.events.checkpoint(step)

    def evaluate(self, step: int, *, final: bool = False) -> Evaluation:
        """Evaluate the weights as they are and tell it as an event.

        Raises:
            Diverged: the loss is not finite.
            StopRequested, TimeLimitPassed: it is time to end; nothing has changed.
        """
        evaluation = self.objective.evaluate(
            self.model, self.validation_rows, self.labels, self.pad_id, self.guard.check
        )
        if not math.isfinite(evaluation.metrics["loss"]):
            raise Diverged(
                f"the validation loss is no longer a finite number at step {step}; try a lower learning_rate"
            )
        self.events.evaluation(step, evaluation.metrics, final=final)
        return evaluation

    def select(self, step: int) -> None:
        """Evaluate after `step`, keep the weights if they are the best yet, and decide whether to go on.

        Raises: as `evaluate`.
        """
        evaluation = self.evaluate(step)
        chosen = self.selection
        if not chosen.best_step or evaluation.score > chosen.best_score:
            save_trained(self.model, self.store.best_path(step))
            self.store.complete_best(step)
            self.selection = Selection(evaluated_step=step, best_step=step, best_score=evaluation.score)
            return
        num_worse = chosen.num_worse + 1
        patience = self.spec.early_stopping_patience
        self.selection = dataclasses.replace(
            chosen, evaluated_step=step, num_worse=num_worse, ended=bool(patience) and num_worse >= patience
        )

    def restore_best(self, step: int) -> int:
        """Put the best weights into the model, if others than those of `step`; returns the step they are of."""
        best_step = self.selection.best_step or step
        if best_step != step:
            load_trained(self.model, self.store.best_path(best_step))
        return best_step
