"""Calls of ClassifyService: building requests, reading answers."""

from __future__ import annotations

from collections.abc import AsyncIterable, Iterable, Sequence
from typing import Unpack

from shoal import types
from shoal._classify_stream import ClassifyStreamRun
from shoal._connection import Connection
from shoal._methods import CLASSIFY, STREAM_CLASSIFY
from shoal._refs import model_ref, priority_number, read_served_by, read_timings
from shoal._stream import AsyncStream
from shoal._words import Words
from shoal.errors import FieldViolation, InvalidRequestError
from shoal.v1 import classify_pb2, common_pb2

SCORES = Words(classify_pb2.ScoreKind)
OVERFLOWS = Words(classify_pb2.Overflow)
POOLINGS = Words(classify_pb2.WindowPooling)
AGGREGATIONS = Words(classify_pb2.Aggregation)
HEADS = Words(classify_pb2.HeadKind)


class ClassifyCalls:
    """What `AsyncClient` offers of ClassifyService."""

    _connection: Connection

    async def classify(
        self,
        model: str,
        inputs: types.ClassifyInput | Iterable[types.ClassifyInput],
        **options: Unpack[types.ClassifyOptions],
    ) -> types.ClassifyResult:
        """Score texts, pairs or token ids, or find spans in them, all by one version, all or nothing.

        A `str` is a text, a tuple of two texts is a pair, a sequence of numbers is token ids; any other iterable holds
        many of these. The result is a sequence with one entry for each input. Default deadline: 30 s.

        Raises:
            RpcError: see `shoal.errors`; the violations of an InvalidRequestError name the input, as `inputs[3].text`.
        """
        ticket = self._connection.ticket(CLASSIFY, options)
        request = classify_pb2.ClassifyRequest(
            model=model_ref(model, options),
            inputs=[build_input(f"inputs[{i}]", item) for i, item in enumerate(_as_many(inputs))],
            options=build_options(options),
            priority=priority_number(options),
        )
        response = await self._connection.unary(CLASSIFY, request, ticket)
        labels = tuple(response.labels)
        return types.ClassifyResult(
            results=tuple(read_classification(result, labels) for result in response.results),
            labels=labels,
            head=HEADS.word(response.head),
            served_by=read_served_by(response.served_by),
            timings=read_timings(response.timings),
            request_id=ticket.request_id,
        )

    def classify_stream(
        self,
        model: str,
        inputs: AsyncIterable[types.ClassifyInput] | Iterable[types.ClassifyInput],
        *,
        ordered: bool = True,
        max_unanswered: int = 128,
        item_timeout: float | None = 60.0,
        **options: Unpack[types.ClassifyOptions],
    ) -> AsyncStream[types.StreamedClassification]:
        """Score inputs as they come, however many: at most `max_unanswered` of them are held at any time.

        A bad item is answered with its error as a value and the stream goes on. `ordered` keeps the order of the
        inputs, else answers come as they finish. There is no reconnecting: when the connection is lost the stream ends
        with UnavailableError, and what was not answered may be sent again on a new one. A stream has no deadline by
        default (`timeout` sets one for all of it), but no item may wait longer than `item_timeout` seconds for its
        answer.

        Raises:
            RpcError: while iterating, for what ends the stream, such as an unknown model.
        """
        if not 1 <= max_unanswered <= 65_536:
            description = f"is {max_unanswered}; allowed are 1 to 65536"
            raise InvalidRequestError.of([FieldViolation(field="max_unanswered", description=description)])
        start = classify_pb2.StreamClassifyStart(
            model=model_ref(model, options), options=build_options(options), priority=priority_number(options)
        )
        run = ClassifyStreamRun(
            connection=self._connection,
            ticket=self._connection.ticket(STREAM_CLASSIFY, options),
            start=start,
            build=lambda index, item: build_input(f"inputs[{index}]", item),
            read=read_classification,
            max_unanswered=max_unanswered,
            item_timeout_s=item_timeout,
        )
        return AsyncStream(run.in_order(inputs) if ordered else run.as_finished(inputs))


def build_options(options: types.ClassifyOptions) -> classify_pb2.ClassifyOptions:
    """The options as they are sent.

    Raises:
        InvalidRequestError: a word or number cannot be sent.
    """
    built = classify_pb2.ClassifyOptions()
    top_k = options.get("top_k", 0)
    if not 0 <= top_k < 2**32:
        raise InvalidRequestError.of(
            [FieldViolation(field="options.top_k", description=f"is {top_k}; must be 0 or more")]
        )
    built.top_k = top_k
    if "scores" in options:
        built.scores = SCORES.number("options.scores", options["scores"])  # type: ignore[assignment]
    if "overflow" in options:
        built.overflow = OVERFLOWS.number("options.overflow", options["overflow"])  # type: ignore[assignment]
    if "pooling" in options:
        built.pooling = POOLINGS.number("options.pooling", options["pooling"])  # type: ignore[assignment]
    if "aggregation" in options:
        number = AGGREGATIONS.number("options.aggregation", options["aggregation"])
        built.aggregation = number  # type: ignore[assignment]
    if "ignore_labels" in options:
        built.ignore_labels.CopyFrom(_label_names(options["ignore_labels"]))
    return built


def _label_names(names: Sequence[str]) -> classify_pb2.LabelNames:
    if isinstance(names, str):
        description = f"is the text {names!r}; must be a list of names"
        raise InvalidRequestError.of([FieldViolation(field="options.ignore_labels", description=description)])
    return classify_pb2.LabelNames(names=names)


def build_input(field: str, item: types.ClassifyInput) -> classify_pb2.ClassifyInput:
    """One input as it is sent; what it holds is for the server to judge.

    Raises:
        InvalidRequestError: it is neither text, pair nor token ids.
    """
    if isinstance(item, str):
        return classify_pb2.ClassifyInput(text=item)
    if isinstance(item, tuple) and len(item) == 2 and all(isinstance(part, str) for part in item):
        first, second = item
        return classify_pb2.ClassifyInput(pair=classify_pb2.TextPair(first=str(first), second=str(second)))
    try:
        return classify_pb2.ClassifyInput(token_ids=common_pb2.TokenIds(ids=item))  # type: ignore[arg-type]
    except (TypeError, ValueError):
        description = "must be a text, a tuple of two texts, or token ids of 0 to 2**32 - 1"
        raise InvalidRequestError.of([FieldViolation(field=field, description=description)]) from None


def _as_many(inputs: types.ClassifyInput | Iterable[types.ClassifyInput]) -> Iterable[types.ClassifyInput]:
    if isinstance(inputs, str):
        return [inputs]
    if isinstance(inputs, tuple) and len(inputs) == 2 and all(isinstance(part, str) for part in inputs):
        return [inputs]  # type: ignore[list-item]  # a pair
    if isinstance(inputs, Sequence) and inputs and isinstance(inputs[0], int):
        return [inputs]  # token ids
    return inputs  # type: ignore[return-value]


def read_classification(result: classify_pb2.Classification, labels: Sequence[str]) -> types.Classification:
    """One outcome; `labels` are those of the version that answered."""
    return types.Classification(
        labels=tuple(labels[label_id] for label_id in result.label_ids),
        label_ids=tuple(result.label_ids),
        scores=tuple(result.scores),
        num_input_tokens=result.num_input_tokens,
        num_dropped_tokens=result.num_dropped_tokens,
        num_windows=result.num_windows,
        spans=tuple(
            types.TokenSpan(label=span.label, score=span.score, start=span.start, end=span.end)
            for span in result.token_spans
        ),
    )
