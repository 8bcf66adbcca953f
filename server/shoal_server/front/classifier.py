"""The way of inputs through reader, engine and scores: shared by Classify and StreamClassify. Knows no gRPC."""

from __future__ import annotations

import time
from array import array
from collections.abc import Sequence

import msgspec
from shoal_models.manifest import Manifest

from shoal_server.errors import DeadlinePassed
from shoal_server.front.admission import Permit, Work
from shoal_server.front.convert_classify import ClassifySettings, Input, ReadCounts
from shoal_server.front.engine_client import EngineClient
from shoal_server.front.fit import Fitted
from shoal_server.front.heads import TOKEN_HEAD, check_options
from shoal_server.front.reading import Reader, Refuse, estimate_tokens, refuse_all
from shoal_server.front.routing import ServedVersion
from shoal_server.front.scores import Scores, merge_windows, score
from shoal_server.front.spans import Spans, find_all_spans
from shoal_server.front.tokenizers import TokenizerThreads
from shoal_server.ipc.messages import ClassifyCall, ClassifyDone, Priority


class Classified(msgspec.Struct, frozen=True, kw_only=True):
    """What was found of the inputs that could be read, in order, and where the time went."""

    found: Scores | list[Spans]  # spans: of token heads, for each input
    counts: list[ReadCounts]
    tokenize_s: float
    queue_s: float
    run_s: float


class Classifier:
    """Classifies inputs with one version."""

    def __init__(self, tokenizers: TokenizerThreads, engines: EngineClient) -> None:
        self._reader = Reader(tokenizers)
        self._engines = engines

    async def classify(
        self,
        served: ServedVersion,
        inputs: Sequence[Input],
        settings: ClassifySettings,
        *,
        priority: Priority,
        deadline_s: float | None,
        refuse: Refuse = refuse_all,
    ) -> Classified:
        """Admit, tokenize, run, score.

        `refuse` hears of inputs that cannot be read, by their index; the others go on unless it raises, as by default.

        Raises:
            InvalidRequest: an option does not fit the model; by default also: an input does not.
            QueueFull, EngineLost, DeadlinePassed: as they say.
        """
        began_s = time.monotonic()
        check_options(settings, served.text.manifest.head)
        permit = self._engines.admit(Work.CLASSIFY, served.engine_ids, estimate_tokens(inputs))
        try:
            fitted = await self._reader.read(served.text, inputs, settings, refuse)
            sent_s = time.monotonic()
            if not fitted:
                return Classified(found=[], counts=[], tokenize_s=sent_s - began_s, queue_s=0.0, run_s=0.0)
            if deadline_s is not None and sent_s >= deadline_s:
                raise DeadlinePassed("the deadline passed while the inputs were tokenized")
            permit.resize(sum(one.num_tokens for one in fitted))
            done = await self._run(served, fitted, permit, priority, deadline_s)
        finally:
            permit.release()
        classified = Classified(
            found=_find(served.text.manifest, done.logits, fitted, settings),
            counts=[
                ReadCounts(num_input_tokens=one.num_tokens, num_dropped=one.num_dropped, num_windows=len(one.sequences))
                for one in fitted
            ],
            tokenize_s=sent_s - began_s,
            queue_s=done.times.started_s - sent_s,
            run_s=done.times.ended_s - done.times.started_s,
        )
        _observe(served, classified)
        return classified

    async def _run(
        self,
        served: ServedVersion,
        fitted: Sequence[Fitted],
        permit: Permit,
        priority: Priority,
        deadline_s: float | None,
    ) -> ClassifyDone:
        sequences = [array("i", sequence).tobytes() for one in fitted for sequence in one.sequences]
        type_starts = [one.type_start for one in fitted for _ in one.sequences]

        def call(request_id: int) -> ClassifyCall:
            return ClassifyCall(
                request_id=request_id,
                model=served.key.model,
                version=served.key.version,
                sequences=sequences,
                type_starts=type_starts,
                priority=priority,
                deadline_s=deadline_s,
            )

        return await self._engines.classify(permit, call)


def _find(
    manifest: Manifest, logits: bytes, fitted: Sequence[Fitted], settings: ClassifySettings
) -> Scores | list[Spans]:
    if manifest.head == TOKEN_HEAD:
        maps = [one.tokens for one in fitted if one.tokens is not None]
        return find_all_spans(logits, maps, manifest.labels, settings.aggregation, settings.ignore_labels)
    logits_NL = merge_windows(logits, len(manifest.labels), [one.weights for one in fitted], settings.pooling)
    return score(logits_NL, head=manifest.head, as_logits=settings.as_logits, top_k=settings.top_k)


def _observe(served: ServedVersion, classified: Classified) -> None:
    metrics = served.metrics
    metrics.tokenize_s.observe(classified.tokenize_s)
    metrics.queue_s.observe(classified.queue_s)
    metrics.input_tokens.inc(sum(count.num_input_tokens for count in classified.counts))
