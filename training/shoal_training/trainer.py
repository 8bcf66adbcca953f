"""Runs transformers' Trainer under our own rules: order of rows, checkpoints, evaluations, stopping, divergence.

Trainer does what it does well: the loop, gradients, optimizer, schedule, and saving and loading of their states.
Everything that decides which row comes next, what counts as a checkpoint and what is best lies outside it, so that a
run that was killed and resumed goes through the very same steps as an undisturbed one. Evaluation happens inside a
step's end, before that step's checkpoint, and draws no random numbers.
"""

from __future__ import annotations

import contextlib
import math
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_callback import PrinterCallback

from shoal_training.batches import LengthGroupedBatches, TokenRow, TokenRows
from shoal_training.checkpoint import Checkpoint
from shoal_training.failures import Diverged, StopRequested
from shoal_training.progress import ProgressReporter
from shoal_training.session import Session
from shoal_training.weights import load_trained, save_trained


def train(session: Session, checkpoint: Checkpoint | None) -> int:
    """Train from the beginning or from a checkpoint; returns the last step. The model holds its weights then.

    Raises:
        StopRequested: a checkpoint is complete and the job can go on later.
        TimeLimitPassed, Diverged: the job is over.
    """
    first_step = checkpoint.step if checkpoint else 0
    use_cache = getattr(session.model.config, "use_cache", None)  # Trainer turns it off in what will be published
    trainer = JobTrainer(session, ProgressReporter(session.events, session.total_steps, first_step))
    if checkpoint is not None:
        session.selection = checkpoint.selection
        load_trained(session.model, checkpoint.folder)
        if _is_pending(session, first_step):
            session.select(first_step)  # when this too is interrupted, the checkpoint is there already
        if session.is_finished(first_step):
            return first_step
    trainer.train(resume_from_checkpoint=str(checkpoint.folder) if checkpoint else None)
    if use_cache is not None:
        session.model.config.use_cache = use_cache
    last_step = int(trainer.state.global_step)
    if not session.is_finished(last_step):
        raise StopRequested
    # Only weights: what is left to do needs neither optimizer nor random states.
    save_trained(session.model, session.store.path(last_step))
    session.complete_checkpoint(last_step)
    return last_step


def _is_pending(session: Session, step: int) -> bool:
    """Whether the checkpoint was made when its own evaluation had been interrupted."""
    return session.is_evaluated_at(step) and session.selection.evaluated_step < step


class JobTrainer(Trainer):
    """Trainer with the session's order of rows and its weights files, and a check of every loss."""

    def __init__(self, session: Session, reporter: ProgressReporter) -> None:
        self.batches = LengthGroupedBatches(
            [len(row.ids) for row in session.train_rows], session.spec.batch_size, session.spec.seed
        )
        self._session = session
        self._reporter = reporter
        super().__init__(
            model=session.model,
            args=_arguments(session),
            train_dataset=TokenRows(session.train_rows),
            callbacks=[JobCallback(session, self.batches, reporter)],
        )
        self.remove_callback(PrinterCallback)

    def get_train_dataloader(self) -> DataLoader[TokenRow]:
        """Batches in our order. Its generator keeps the loader off the random state that dropout draws from."""
        return DataLoader(
            TokenRows(self._session.train_rows),
            batch_sampler=self.batches,
            collate_fn=self._collate,
            generator=torch.Generator(),
        )

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """One forward and backward pass.

        Raises:
            Diverged: the loss is not a finite number.
        """
        loss: Tensor = super().training_step(*args, **kwargs)
        value = float(loss)
        if not math.isfinite(value):
            step = self.state.global_step + 1
            raise Diverged(f"the loss is no longer a finite number at step {step}; try a lower learning_rate")
        self._reporter.add_loss(value)
        return loss

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the trained weights of a checkpoint."""
        assert output_dir is not None
        save_trained(self._session.model, Path(output_dir))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:  # noqa: ARG002
        load_trained(self._session.model, Path(resume_from_checkpoint))

    def _collate(self, rows: list[TokenRow]) -> dict[str, Tensor]:
        return self._session.objective.collate(rows, self._session.pad_id)


class JobCallback(TrainerCallback):
    """What happens between steps."""

    def __init__(self, session: Session, batches: LengthGroupedBatches, reporter: ProgressReporter) -> None:
        self._session = session
        self._batches = batches
        self._reporter = reporter
        self._saved_s = self._step_ended_s = time.monotonic()
        self._learning_rate = 0.0

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Put the rows into this epoch's order."""
        self._batches.epoch = state.global_step // self._session.steps_per_epoch

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:  # noqa: ARG002
        """Note the learning rate of this step; at its end the schedule has moved on."""
        self._learning_rate = float(kwargs["lr_scheduler"].get_last_lr()[0])

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Report, evaluate, save, stop: in this order."""
        session = self._session
        step = state.global_step
        self._reporter.step(step, state.epoch, self._learning_rate)
        session.guard.check_time()
        began_s = time.monotonic()
        if session.is_evaluated_at(step):
            with contextlib.suppress(StopRequested):  # the selection saved below says that this evaluation is pending
                session.select(step)
        if session.is_finished(step):
            control.should_training_stop = True
        elif session.guard.stop_requested:
            control.should_save = control.should_training_stop = True
        elif began_s - self._saved_s >= session.spec.checkpoint_interval_s:
            control.should_save = True
        self._step_ended_s = time.monotonic()
        self._reporter.add_pause(self._step_ended_s - began_s)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Trainer has written its files: declare the checkpoint whole."""
        self._session.complete_checkpoint(state.global_step)
        self._saved_s = time.monotonic()
        self._reporter.add_pause(self._saved_s - self._step_ended_s)


def _arguments(session: Session) -> TrainingArguments:
    spec = session.spec
    assert spec.learning_rate is not None, "known once the base is there"
    on_gpu = torch.cuda.is_available()
    return TrainingArguments(
        output_dir=str(session.store.folder),
        per_device_train_batch_size=spec.batch_size,
        max_steps=session.total_steps,
        learning_rate=spec.learning_rate,
        weight_decay=spec.weight_decay,
        warmup_steps=math.ceil(spec.warmup_fraction * session.total_steps),
        lr_scheduler_type="linear",
        label_smoothing_factor=spec.label_smoothing,
        seed=spec.seed,
        bf16=on_gpu and torch.cuda.is_bf16_supported(),
        use_cpu=not on_gpu,
        dataloader_pin_memory=False,
        remove_unused_columns=False,
        save_strategy="no",
        eval_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
