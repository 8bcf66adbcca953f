"""The way of inputs through tokenizer, engine and scores: shared by Classify and StreamClassify. Knows no gRPC."""

from __future__ import annotations

import time
from array import array
from collections.abc import Sequence
from dataclasses import dataclass

from shoal_models.manifest import Manifest
from tokenizers import Encoding

from shoal_server.errors import DeadlinePassed
from shoal_server.front.admission import Permit, Work
from shoal_server.front.convert_classify import (
    ClassifySettings,
    IdsInput,
    Input,
    PairInput,
    ReadCounts,
    TextInput,
    check_ids,
)
from shoal_server.front.engine_client import EngineClient
from shoal_server.front.fit import Fitted, fit_pair, fit_text, fit_token_ids
from shoal_server.front.heads import TOKEN_HEAD, check_request
from shoal_server.front.routing import ServedVersion
from shoal_server.front.scores import Scores, merge_windows, score
from shoal_server.front.spans import Spans, find_all_spans
from shoal_server.front.token_map import map_text, map_token_ids
from shoal_server.front.tokenizers import Text, TokenizerThreads, count_characters
from shoal_server.front.version_text import VersionText
from shoal_server.ipc.messages import ClassifyCall, ClassifyDone, Priority

_CHARACTERS_PER_TOKEN = 4  # a guess for the door, corrected once the tokens are counted


@dataclass(frozen=True, slots=True, kw_only=True)
class Classified:
    """What was found of all inputs, and where the time went."""

    found: Scores | list[Spans]  # spans: of token heads, for each input
    counts: list[ReadCounts]
    tokenize_s: float
    queue_s: float
    run_s: float


class Classifier:
    """Classifies inputs with one version."""

    def __init__(self, tokenizers: TokenizerThreads, engines: EngineClient) -> None:
        self._tokenizers = tokenizers
        self._engines = engines

    async def classify(
        self,
        served: ServedVersion,
        inputs: Sequence[Input],
        settings: ClassifySettings,
        *,
        priority: Priority,
        deadline_s: float | None,
    ) -> Classified:
        """Admit, tokenize, run, score.

        Raises:
            InvalidRequest: an option or an input does not fit the model.
            QueueFull, EngineLost, DeadlinePassed: as they say.
        """
        began_s = time.monotonic()
        check_request(inputs, settings, served.text.manifest.head)
        permit = self._engines.admit(Work.CLASSIFY, served.engine_ids, _estimate_tokens(inputs))
        try:
            fitted = await self.read(served.text, inputs, settings)
            sent_s = time.monotonic()
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

    async def read(self, text: VersionText, inputs: Sequence[Input], settings: ClassifySettings) -> list[Fitted]:
        """Tokenize and fit inputs.

        Raises:
            InvalidRequest: one does not fit the model.
        """
        texts: list[Text] = []
        for item in inputs:
            match item:
                case TextInput():
                    texts.append(item.text)
                case PairInput():
                    texts.append((item.first, item.second))
                case IdsInput():
                    check_ids(item, text.manifest.vocabulary_size)
        num_characters, with_offsets = count_characters(texts), text.manifest.head == TOKEN_HEAD
        encodings = iter(
            await self._tokenizers.encode(
                text.tokenizer, texts, num_characters=num_characters, with_offsets=with_offsets
            )
        )
        return [
            _fit_ids(item, text, settings)
            if isinstance(item, IdsInput)
            else _fit(item, next(encodings), text, settings)
            for item in inputs
        ]

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


def _fit_ids(item: IdsInput, text: VersionText, settings: ClassifySettings) -> Fitted:
    if text.manifest.head == TOKEN_HEAD:
        return map_token_ids(item.ids, text, settings.overflow, item.field)
    return fit_token_ids(item.ids, text.single, text.manifest.max_tokens, settings.overflow, item.field)


def _fit(item: TextInput | PairInput, encoding: Encoding, text: VersionText, settings: ClassifySettings) -> Fitted:
    max_tokens = text.manifest.max_tokens
    ids: list[int] = encoding.ids
    if isinstance(item, TextInput):
        if text.manifest.head == TOKEN_HEAD:
            return map_text(item.text, encoding, text, settings.overflow, item.field)
        return fit_text(ids, text.single, max_tokens, settings.overflow, item.field)
    owners = encoding.sequence_ids
    first = [token_id for token_id, owner in zip(ids, owners, strict=True) if owner == 0]
    second = [token_id for token_id, owner in zip(ids, owners, strict=True) if owner == 1]
    return fit_pair(first, second, text.pair, max_tokens, settings.overflow, item.field)


def _estimate_tokens(inputs: Sequence[Input]) -> int:
    total = 0
    for item in inputs:
        match item:
            case TextInput():
                total += 2 + len(item.text) // _CHARACTERS_PER_TOKEN
            case PairInput():
                total += 3 + (len(item.first) + len(item.second)) // _CHARACTERS_PER_TOKEN
            case IdsInput():
                total += len(item.ids)
    return total


def _observe(served: ServedVersion, classified: Classified) -> None:
    metrics = served.metrics
    metrics.tokenize_s.observe(classified.tokenize_s)
    metrics.queue_s.observe(classified.queue_s)
    metrics.input_tokens.inc(sum(count.num_input_tokens for count in classified.counts))
