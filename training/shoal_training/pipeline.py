"""The stages of a job that need torch, in their order: prepare, train, evaluate, publish."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from shoal_models.manifest import Manifest

from shoal_training import publish as publication
from shoal_training import trainer
from shoal_training.checkpoint import Checkpoint, CheckpointStore, Digests, ResumeRefused
from shoal_training.data import Corpus
from shoal_training.events import EventLog
from shoal_training.failures import BadData, BaseMissing, InvalidSpec
from shoal_training.families import FAMILIES
from shoal_training.families.pretrained import load_tokenizer
from shoal_training.guard import Guard
from shoal_training.job import REPORT_NAME, Job, write_json
from shoal_training.methods import method_for
from shoal_training.methods.interface import Method
from shoal_training.objectives import OBJECTIVES
from shoal_training.open_base import OpenBase, complete, open_base
from shoal_training.session import Session
from shoal_training.spec import Spec
from shoal_training.weights import check_finite


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A job ready to train."""

    job: Job
    spec: Spec  # as in the job, with what only a fetched base could tell
    corpus: Corpus
    base: OpenBase
    method: Method
    session: Session
    checkpoint: Checkpoint | None  # where to go on from


def prepare(job: Job, corpus: Corpus, events: EventLog, guard: Guard) -> Prepared:
    """Open the base, tokenize the rows, build the model, look for a checkpoint.

    Raises:
        BaseMissing, InvalidSpec, BadData: the job is over.
        StopRequested, TimeLimitPassed: it is time to end.
    """
    torch.set_num_threads(job.num_threads)
    base = open_base(job.spec.base, job.places)
    spec = complete(job.spec, base.folder)
    guard.check()
    objective = OBJECTIVES[spec.objective]
    tokenizer = load_tokenizer(base.folder)
    transformers.set_seed(spec.seed)
    built = FAMILIES[spec.family].build(base.folder, objective.auto_class, spec.dropout, corpus.labels)
    method = method_for(spec.method)
    rows = {}
    for file, examples in (("train", corpus.train), ("validation", corpus.validation)):
        tokenized = objective.tokenize(examples, tokenizer, spec.max_len, guard.check)
        rows[file] = tokenized.rows
        if tokenized.num_cut:
            told = f"{tokenized.num_cut:,} of {len(examples):,} rows are longer than {spec.max_len} tokens"
            events.warning(f"{file}: {told}; {objective.cut_means}")
    if not rows["train"]:
        raise BadData("train: no row has two tokens or more")
    store = CheckpointStore(job.checkpoints, Digests(spec=job.spec.digest(), data=_digest(corpus), base=base.digest))
    session = Session(
        spec=spec,
        events=events,
        guard=guard,
        store=store,
        objective=objective,
        model=method.apply(built, spec.objective),
        train_rows=rows["train"],
        validation_rows=rows["validation"],
        labels=corpus.labels,
        pad_id=_pad_id(tokenizer),
    )
    return Prepared(
        job=job,
        spec=spec,
        corpus=corpus,
        base=base,
        method=method,
        session=session,
        checkpoint=_find_checkpoint(store),
    )


def train(prepared: Prepared) -> int:
    """Train to the end, from the newest valid checkpoint where there is one; returns the last step."""
    if prepared.checkpoint is not None:
        prepared.session.guard.count_earlier(prepared.checkpoint.spent_s)
    return trainer.train(prepared.session, prepared.checkpoint)


def evaluate(prepared: Prepared, last_step: int) -> dict[str, float]:
    """Put the best weights back, evaluate them, write the report; returns the figures for the manifest."""
    session = prepared.session
    step = session.restore_best(last_step)
    rows = {"train_rows": float(len(prepared.corpus.train)), "validation_rows": float(len(prepared.corpus.validation))}
    metrics: dict[str, float] = {}
    report: dict[str, Any] = {}
    if session.validation_rows:
        evaluation = session.evaluate(step, final=True)
        metrics, report = evaluation.metrics, evaluation.report
    else:
        session.events.warning("there are no validation rows: the last weights are published, unevaluated")
    tree = {"objective": prepared.spec.objective, "step": step, "last_step": last_step, "metrics": metrics, **rows}
    write_json(prepared.job.folder / REPORT_NAME, {**tree, **report})
    return {**metrics, **rows}


def publish(prepared: Prepared, metrics: dict[str, float]) -> Manifest:
    """Merge and write the version.

    Raises:
        Diverged: the weights are not finite.
        OSError: the disk is full or not writable.
    """
    job, session = prepared.job, prepared.session
    check_finite(session.model)
    return publication.publish(
        publication.Trained(
            job_id=job.job_id,
            spec=prepared.spec,
            model=prepared.method.merge(session.model),
            tokenizer=load_tokenizer(prepared.base.folder),  # anew: tokenizing rows set truncation on the other
            base_digest=prepared.base.digest,
            licence=prepared.base.licence,
            kind=session.objective.kind,
            labels=prepared.corpus.labels,
            metrics=metrics,
            data_digests=prepared.corpus.digests,
            golden_rows=[row.ids.tolist() for row in session.validation_rows],
        ),
        job.places.repository,
    )


def _find_checkpoint(store: CheckpointStore) -> Checkpoint | None:
    try:
        return store.newest()
    except ResumeRefused as refusal:
        failure = {"spec": InvalidSpec, "data": BadData, "base": BaseMissing}[refusal.what]
        raise failure(str(refusal)) from None


def _pad_id(tokenizer: Any) -> int:
    """What rows are filled up with; masked out, so any id will do."""
    return next((value for value in (tokenizer.pad_token_id, tokenizer.eos_token_id) if value is not None), 0)


def _digest(corpus: Corpus) -> str:
    return hashlib.sha256(json.dumps(corpus.digests, sort_keys=True).encode()).hexdigest()
