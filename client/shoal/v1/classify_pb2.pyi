from google.rpc import status_pb2 as _status_pb2
from shoal.v1 import common_pb2 as _common_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ScoreKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SCORE_KIND_UNSPECIFIED: _ClassVar[ScoreKind]
    SCORE_KIND_PROBABILITIES: _ClassVar[ScoreKind]
    SCORE_KIND_LOGITS: _ClassVar[ScoreKind]

class Overflow(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OVERFLOW_UNSPECIFIED: _ClassVar[Overflow]
    OVERFLOW_REFUSE: _ClassVar[Overflow]
    OVERFLOW_TRUNCATE_END: _ClassVar[Overflow]
    OVERFLOW_TRUNCATE_START: _ClassVar[Overflow]
    OVERFLOW_WINDOWS: _ClassVar[Overflow]

class WindowPooling(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    WINDOW_POOLING_UNSPECIFIED: _ClassVar[WindowPooling]
    WINDOW_POOLING_MEAN: _ClassVar[WindowPooling]
    WINDOW_POOLING_MAX: _ClassVar[WindowPooling]

class Aggregation(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    AGGREGATION_UNSPECIFIED: _ClassVar[Aggregation]
    AGGREGATION_NONE: _ClassVar[Aggregation]
    AGGREGATION_SIMPLE: _ClassVar[Aggregation]
    AGGREGATION_FIRST: _ClassVar[Aggregation]
    AGGREGATION_AVERAGE: _ClassVar[Aggregation]
    AGGREGATION_MAX: _ClassVar[Aggregation]

class HeadKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    HEAD_KIND_UNSPECIFIED: _ClassVar[HeadKind]
    HEAD_KIND_SINGLE_LABEL: _ClassVar[HeadKind]
    HEAD_KIND_MULTI_LABEL: _ClassVar[HeadKind]
    HEAD_KIND_REGRESSION: _ClassVar[HeadKind]
    HEAD_KIND_TOKEN: _ClassVar[HeadKind]
    HEAD_KIND_SPAN: _ClassVar[HeadKind]
SCORE_KIND_UNSPECIFIED: ScoreKind
SCORE_KIND_PROBABILITIES: ScoreKind
SCORE_KIND_LOGITS: ScoreKind
OVERFLOW_UNSPECIFIED: Overflow
OVERFLOW_REFUSE: Overflow
OVERFLOW_TRUNCATE_END: Overflow
OVERFLOW_TRUNCATE_START: Overflow
OVERFLOW_WINDOWS: Overflow
WINDOW_POOLING_UNSPECIFIED: WindowPooling
WINDOW_POOLING_MEAN: WindowPooling
WINDOW_POOLING_MAX: WindowPooling
AGGREGATION_UNSPECIFIED: Aggregation
AGGREGATION_NONE: Aggregation
AGGREGATION_SIMPLE: Aggregation
AGGREGATION_FIRST: Aggregation
AGGREGATION_AVERAGE: Aggregation
AGGREGATION_MAX: Aggregation
HEAD_KIND_UNSPECIFIED: HeadKind
HEAD_KIND_SINGLE_LABEL: HeadKind
HEAD_KIND_MULTI_LABEL: HeadKind
HEAD_KIND_REGRESSION: HeadKind
HEAD_KIND_TOKEN: HeadKind
HEAD_KIND_SPAN: HeadKind

class ClassifyInput(_message.Message):
    __slots__ = ("text", "pair", "token_ids")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    PAIR_FIELD_NUMBER: _ClassVar[int]
    TOKEN_IDS_FIELD_NUMBER: _ClassVar[int]
    text: str
    pair: TextPair
    token_ids: _common_pb2.TokenIds
    def __init__(self, text: _Optional[str] = ..., pair: _Optional[_Union[TextPair, _Mapping]] = ..., token_ids: _Optional[_Union[_common_pb2.TokenIds, _Mapping]] = ...) -> None: ...

class TextPair(_message.Message):
    __slots__ = ("first", "second")
    FIRST_FIELD_NUMBER: _ClassVar[int]
    SECOND_FIELD_NUMBER: _ClassVar[int]
    first: str
    second: str
    def __init__(self, first: _Optional[str] = ..., second: _Optional[str] = ...) -> None: ...

class LabelNames(_message.Message):
    __slots__ = ("names",)
    NAMES_FIELD_NUMBER: _ClassVar[int]
    names: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, names: _Optional[_Iterable[str]] = ...) -> None: ...

class ClassifyOptions(_message.Message):
    __slots__ = ("top_k", "scores", "overflow", "pooling", "aggregation", "ignore_labels")
    TOP_K_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    OVERFLOW_FIELD_NUMBER: _ClassVar[int]
    POOLING_FIELD_NUMBER: _ClassVar[int]
    AGGREGATION_FIELD_NUMBER: _ClassVar[int]
    IGNORE_LABELS_FIELD_NUMBER: _ClassVar[int]
    top_k: int
    scores: ScoreKind
    overflow: Overflow
    pooling: WindowPooling
    aggregation: Aggregation
    ignore_labels: LabelNames
    def __init__(self, top_k: _Optional[int] = ..., scores: _Optional[_Union[ScoreKind, str]] = ..., overflow: _Optional[_Union[Overflow, str]] = ..., pooling: _Optional[_Union[WindowPooling, str]] = ..., aggregation: _Optional[_Union[Aggregation, str]] = ..., ignore_labels: _Optional[_Union[LabelNames, _Mapping]] = ...) -> None: ...

class ClassifyRequest(_message.Message):
    __slots__ = ("model", "inputs", "options", "priority")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    model: _common_pb2.ModelRef
    inputs: _containers.RepeatedCompositeFieldContainer[ClassifyInput]
    options: ClassifyOptions
    priority: _common_pb2.Priority
    def __init__(self, model: _Optional[_Union[_common_pb2.ModelRef, _Mapping]] = ..., inputs: _Optional[_Iterable[_Union[ClassifyInput, _Mapping]]] = ..., options: _Optional[_Union[ClassifyOptions, _Mapping]] = ..., priority: _Optional[_Union[_common_pb2.Priority, str]] = ...) -> None: ...

class Classification(_message.Message):
    __slots__ = ("label_ids", "scores", "num_input_tokens", "num_dropped_tokens", "num_windows", "token_spans", "extracted_spans", "ranking_score")
    LABEL_IDS_FIELD_NUMBER: _ClassVar[int]
    SCORES_FIELD_NUMBER: _ClassVar[int]
    NUM_INPUT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_DROPPED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    NUM_WINDOWS_FIELD_NUMBER: _ClassVar[int]
    TOKEN_SPANS_FIELD_NUMBER: _ClassVar[int]
    EXTRACTED_SPANS_FIELD_NUMBER: _ClassVar[int]
    RANKING_SCORE_FIELD_NUMBER: _ClassVar[int]
    label_ids: _containers.RepeatedScalarFieldContainer[int]
    scores: _containers.RepeatedScalarFieldContainer[float]
    num_input_tokens: int
    num_dropped_tokens: int
    num_windows: int
    token_spans: _containers.RepeatedCompositeFieldContainer[TokenSpan]
    extracted_spans: _containers.RepeatedCompositeFieldContainer[ExtractedSpan]
    ranking_score: float
    def __init__(self, label_ids: _Optional[_Iterable[int]] = ..., scores: _Optional[_Iterable[float]] = ..., num_input_tokens: _Optional[int] = ..., num_dropped_tokens: _Optional[int] = ..., num_windows: _Optional[int] = ..., token_spans: _Optional[_Iterable[_Union[TokenSpan, _Mapping]]] = ..., extracted_spans: _Optional[_Iterable[_Union[ExtractedSpan, _Mapping]]] = ..., ranking_score: _Optional[float] = ...) -> None: ...

class TokenSpan(_message.Message):
    __slots__ = ("label", "score", "start", "end")
    LABEL_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    label: str
    score: float
    start: int
    end: int
    def __init__(self, label: _Optional[str] = ..., score: _Optional[float] = ..., start: _Optional[int] = ..., end: _Optional[int] = ...) -> None: ...

class ExtractedSpan(_message.Message):
    __slots__ = ("score", "start", "end")
    SCORE_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    score: float
    start: int
    end: int
    def __init__(self, score: _Optional[float] = ..., start: _Optional[int] = ..., end: _Optional[int] = ...) -> None: ...

class ClassifyResponse(_message.Message):
    __slots__ = ("served_by", "timings", "labels", "head", "results")
    SERVED_BY_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    RESULTS_FIELD_NUMBER: _ClassVar[int]
    served_by: _common_pb2.ServedBy
    timings: _common_pb2.Timings
    labels: _containers.RepeatedScalarFieldContainer[str]
    head: HeadKind
    results: _containers.RepeatedCompositeFieldContainer[Classification]
    def __init__(self, served_by: _Optional[_Union[_common_pb2.ServedBy, _Mapping]] = ..., timings: _Optional[_Union[_common_pb2.Timings, _Mapping]] = ..., labels: _Optional[_Iterable[str]] = ..., head: _Optional[_Union[HeadKind, str]] = ..., results: _Optional[_Iterable[_Union[Classification, _Mapping]]] = ...) -> None: ...

class StreamClassifyRequest(_message.Message):
    __slots__ = ("start", "items")
    START_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    start: StreamClassifyStart
    items: _containers.RepeatedCompositeFieldContainer[StreamClassifyItem]
    def __init__(self, start: _Optional[_Union[StreamClassifyStart, _Mapping]] = ..., items: _Optional[_Iterable[_Union[StreamClassifyItem, _Mapping]]] = ...) -> None: ...

class StreamClassifyStart(_message.Message):
    __slots__ = ("model", "options", "priority")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    OPTIONS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    model: _common_pb2.ModelRef
    options: ClassifyOptions
    priority: _common_pb2.Priority
    def __init__(self, model: _Optional[_Union[_common_pb2.ModelRef, _Mapping]] = ..., options: _Optional[_Union[ClassifyOptions, _Mapping]] = ..., priority: _Optional[_Union[_common_pb2.Priority, str]] = ...) -> None: ...

class StreamClassifyItem(_message.Message):
    __slots__ = ("id", "input")
    ID_FIELD_NUMBER: _ClassVar[int]
    INPUT_FIELD_NUMBER: _ClassVar[int]
    id: int
    input: ClassifyInput
    def __init__(self, id: _Optional[int] = ..., input: _Optional[_Union[ClassifyInput, _Mapping]] = ...) -> None: ...

class StreamClassifyResponse(_message.Message):
    __slots__ = ("answers", "served_by", "timings", "labels", "head")
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    SERVED_BY_FIELD_NUMBER: _ClassVar[int]
    TIMINGS_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    HEAD_FIELD_NUMBER: _ClassVar[int]
    answers: _containers.RepeatedCompositeFieldContainer[StreamClassifyAnswer]
    served_by: _common_pb2.ServedBy
    timings: _common_pb2.Timings
    labels: _containers.RepeatedScalarFieldContainer[str]
    head: HeadKind
    def __init__(self, answers: _Optional[_Iterable[_Union[StreamClassifyAnswer, _Mapping]]] = ..., served_by: _Optional[_Union[_common_pb2.ServedBy, _Mapping]] = ..., timings: _Optional[_Union[_common_pb2.Timings, _Mapping]] = ..., labels: _Optional[_Iterable[str]] = ..., head: _Optional[_Union[HeadKind, str]] = ...) -> None: ...

class StreamClassifyAnswer(_message.Message):
    __slots__ = ("id", "result", "error")
    ID_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    id: int
    result: Classification
    error: _status_pb2.Status
    def __init__(self, id: _Optional[int] = ..., result: _Optional[_Union[Classification, _Mapping]] = ..., error: _Optional[_Union[_status_pb2.Status, _Mapping]] = ...) -> None: ...
