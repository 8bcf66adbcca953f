"""The stages of a job that need torch, in their order: prepare, train, evaluate, publish."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from shoal_models import manifest as manifests
from shoal_models.manifest import Manifest

from shoal_training import bases, trainer
from shoal_training import publish as publication
from shoal_training.checkpoint import Checkpoint, CheckpointStore, Digests, ResumeRefused
from shoal_training.data import Corpus
from shoal_training.events import EventLog
from shoal_training.failures import BadData, BaseMissing, InvalidSpec
from shoal_training.families import FAMILIES
from shoal_training.families.pretrained import load_tokenizer
from shoal_training.guard import Guard
from shoal_training.hub import fetch
from shoal_training.job import REPORT_NAME, Job, write_json
from shoal_training.methods import method_for
from shoal_training.methods.interface import Method
from shoal_training.objectives import OBJECTIVES
from shoal_training.places import PlaceError
from shoal_training.resolve import auto_learning_rate
from shoal_training.session import Session
from shoal_training.spec import Spec
from shoal_training.weights import check_finite


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A job ready to train."""

    job: Job
    spec: Spec  # as in the job, with what only a fetched base could tell
    corpus: Corpus
    base_folder: Path
    base_digest: str
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
    base_folder, base_digest = _open_base(job)
    spec = _complete(job.spec, base_folder)
    guard.check()
    objective = OBJECTIVES[spec.objective]
    tokenizer = load_tokenizer(base_folder)
    transformers.set_seed(spec.seed)
    built = FAMILIES[spec.family].build(base_folder, objective.auto_class, spec.dropout, corpus.labels)
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
    store = CheckpointStore(job.checkpoints, Digests(spec=job.spec.digest(), data=_digest(corpus), base=base_digest))
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
        base_folder=base_folder,
        base_digest=base_digest,
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
    """Write the version, unless an earlier attempt of this job already did."""
    job, session = prepared.job, prepared.session
    done = publication.find_published(job.places.repository, prepared.spec.name, job.job_id)
    if done is not None:
        return done
    check_finite(session.model)
    return publication.publish(
        publication.Trained(
            job_id=job.job_id,
            spec=prepared.spec,
            model=prepared.method.merge(session.model),
            tokenizer=load_tokenizer(prepared.base_folder),  # anew: tokenizing rows set truncation on the other
            base_digest=prepared.base_digest,
            licence=_licence(prepared),
            kind=session.objective.kind,
            labels=prepared.corpus.labels,
            metrics=metrics,
            data_digests=prepared.corpus.digests,
            golden_rows=[row.ids.tolist() for row in session.validation_rows],
        ),
        job.places.repository,
    )


def _open_base(job: Job) -> tuple[Path, str]:
    """The folder of the base and its digest, every file checked where a manifest lists them."""
    try:
        facts = bases.describe(job.spec.base, job.places)
        folder = facts.folder or fetch(job.spec.base.hub_id)
        if job.spec.base.model:
            manifests.verify_files(folder, manifests.read_manifest(folder))
        return folder, bases.digest_weights(folder)
    except PlaceError as error:
        raise BaseMissing(error.description) from None
    except manifests.ManifestError as error:
        raise BaseMissing(f"{job.spec.base} is refused: {error}") from None


def _licence(prepared: Prepared) -> str:
    """The base's, where it has a manifest."""
    return manifests.read_manifest(prepared.base_folder).licence if prepared.spec.base.model else ""


def _complete(spec: Spec, base_folder: Path) -> Spec:
    """The spec with what only a fetched base could tell: its family, limit and learning rate."""
    if not spec.base.hub_id:
        return spec
    try:
        facts = bases.describe_folder(spec.base, base_folder)
    except PlaceError as error:
        raise BaseMissing(error.description) from None
    if facts.family not in (None, spec.family):
        raise InvalidSpec(f"family: is {spec.family}, but the base is of family {facts.family}")
    if facts.max_tokens is not None and spec.max_len > facts.max_tokens:
        raise InvalidSpec(f"max_len: is {spec.max_len}; the base takes {facts.max_tokens}")
    if spec.learning_rate is not None:
        return spec
    rate = auto_learning_rate(spec.family, spec.method_name, facts.num_parameters or 0)
    return dataclasses.replace(spec, learning_rate=rate)


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
