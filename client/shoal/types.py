"""What calls take and give back: frozen dataclasses, lower-case words for enums, seconds for times.

An enum value is a word in lower case without its prefix: state "live", finish reason "end_of_sequence". A value that
this client is too old to know reads "unknown_<number>". Knows no gRPC and no protobuf but `TrainingSpec`, which is the
message.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, NamedTuple, TypeAlias, TypedDict

from shoal.errors import RpcError
from shoal.v1.train_pb2 import TrainingSpec as TrainingSpec

Priority: TypeAlias = Literal["low", "normal", "high"]
ScoreKind: TypeAlias = Literal["probabilities", "logits"]
Overflow: TypeAlias = Literal["refuse", "truncate_end", "truncate_start", "windows"]
WindowPooling: TypeAlias = Literal["mean", "max"]
Aggregation: TypeAlias = Literal["none", "simple", "first", "average", "max"]
DataFormat: TypeAlias = Literal["csv", "jsonl", "parquet"]
ChatRole: TypeAlias = Literal["system", "user", "assistant"]
# One thing to classify: a text, two texts read together (a tuple), or token ids.
ClassifyInput: TypeAlias = str | tuple[str, str] | Sequence[int]


class CallOptions(TypedDict, total=False):
    """What every call takes."""

    timeout: float | None  # seconds; unset: the client's, else what suits the call; None: no deadline
    request_id: str  # sent as x-request-id, 1 to 64 characters; unset: made up


class ModelOptions(CallOptions, total=False):
    """What calls to a model take: which version answers, and how urgent it is. At most one of version and label."""

    version: int | None  # immutable number, from 1
    label: str | None  # such as "stable"
    priority: Priority  # default "normal"


class ClassifyOptions(ModelOptions, total=False):
    """What classifying takes."""

    top_k: int  # only the best labels of each input; 0 (default): all; not for token heads
    scores: ScoreKind  # default "probabilities", and token heads give nothing else
    overflow: Overflow  # what happens to an input longer than the model takes; default "refuse"
    pooling: WindowPooling  # how the logits of windows become one; default "mean"; not for token heads
    aggregation: Aggregation  # token heads only: how tokens become spans, as in transformers' pipeline; default "none"
    ignore_labels: Sequence[str]  # token heads only: spans that are left out; default ["O"]


class GenerateOptions(ModelOptions, total=False):
    """What generating takes. Exactly one of prompt, messages and token_ids."""

    messages: Sequence[AnyChatMessage]
    token_ids: Sequence[int]
    max_new_tokens: int  # default: the server's (256)
    min_new_tokens: int  # default 0
    temperature: float  # 0 to 10, 0 is greedy; default 1
    top_k: int  # 0 (default) keeps all
    top_p: float  # above 0, up to 1; default 1
    min_p: float  # 0 to 1; default 0
    repetition_penalty: float  # above 0, up to 10; default 1
    seed: int  # default: drawn at random
    stop: str | Sequence[str]  # up to 16 strings
    stop_token_ids: Sequence[int]  # up to 64
    ignore_eos: bool  # default False
    logprobs: int  # log-probabilities of each token and of so many alternatives, 0 to 20; unset: none
    num_completions: int  # 1 to 16; default 1


class ChatMessageDict(TypedDict):
    """A chat message as a plain mapping."""

    role: str
    content: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatMessage:
    """One message of a conversation."""

    role: ChatRole
    content: str


# A chat message, or its role and content as a mapping or a tuple.
AnyChatMessage: TypeAlias = ChatMessage | ChatMessageDict | tuple[str, str]


# --- common ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedBy:
    """The version that answered."""

    model: str
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """Where the time of a request went, measured in the server."""

    tokenize_s: float
    queue_s: float
    run_s: float


class ScoredLabel(NamedTuple):
    """A label and its score."""

    label: str
    score: float


# --- classify -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSpan:
    """A run of tokens that bear one label: `text[span.start:span.end]`, or the same of the token ids that were sent."""

    label: str  # with aggregation "none" the token's label, such as "B-PER"; else the group, such as "PER"
    score: float
    start: int  # first character (code point), or index of the first token id
    end: int  # one past the last


@dataclass(frozen=True, slots=True, kw_only=True)
class Classification:
    """The outcome for one input.

    Labels, label ids and scores run in parallel, best first (regression: in label order). Of a token head they are
    empty, and of all others the spans are.
    """

    labels: tuple[str, ...]
    label_ids: tuple[int, ...]
    scores: tuple[float, ...]
    num_input_tokens: int  # read by the model, special tokens included
    num_dropped_tokens: int  # lost to truncation
    num_windows: int  # read; 1 unless overflow="windows" split the input
    spans: tuple[TokenSpan, ...] = ()  # in the order of the input

    @property
    def label(self) -> str:
        """The best label."""
        return self.labels[0]

    @property
    def score(self) -> float:
        """The score of the best label."""
        return self.scores[0]

    @property
    def ranking(self) -> tuple[ScoredLabel, ...]:
        """Labels with their scores, best first."""
        return tuple(map(ScoredLabel, self.labels, self.scores))


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassifyResult:
    """Answers to all inputs of one call, by one version. Behaves as a sequence of its `results`."""

    results: tuple[Classification, ...]  # in the order of the inputs
    labels: tuple[str, ...]  # all labels of the model, by id
    head: str  # "single_label", "multi_label", "regression" or "token"
    served_by: ServedBy
    timings: Timings
    request_id: str

    @property
    def version(self) -> int:
        """Number of the version that answered."""
        return self.served_by.version

    def __len__(self) -> int:
        return len(self.results)

    def __getitem__(self, index: int) -> Classification:
        return self.results[index]

    def __iter__(self) -> Iterator[Classification]:
        return iter(self.results)


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamedClassification:
    """The outcome of one item of a stream: a result or an error, never both."""

    index: int  # which item, counted from 0
    result: Classification | None = None
    error: RpcError | None = None
    served_by: ServedBy | None = None  # set with `result`
    timings: Timings | None = None  # set with `result`


# --- generate -------------------------------------------------------------------------------------------------------


class TokenAlternative(NamedTuple):
    """A token that might have been chosen."""

    token_id: int
    logprob: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprob:
    """A token and how likely it was."""

    token_id: int
    logprob: float  # natural logarithm
    alternatives: tuple[TokenAlternative, ...]  # best first


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationDelta:
    """A piece of a completion."""

    index: int  # which completion, from 0
    text: str  # what is new; may be empty
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]  # when asked for


@dataclass(frozen=True, slots=True, kw_only=True)
class CompletionSummary:
    """How a completion ended."""

    index: int
    finish_reason: str  # "end_of_sequence", "stop_string", "stop_token", "length" or "context_full"
    stop_string: str | None  # set with "stop_string"
    stop_token_id: int | None  # set with "stop_token"
    num_output_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationSummary:
    """The end of every generation."""

    served_by: ServedBy
    timings: Timings
    time_to_first_token_s: float | None  # unset when there was no token
    num_prompt_tokens: int
    num_output_tokens: int  # over all completions
    completions: tuple[CompletionSummary, ...]
    request_id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """One whole completion."""

    text: str  # cut before a stop string
    token_ids: tuple[int, ...]
    logprobs: tuple[TokenLogprob, ...]  # when asked for
    finish_reason: str  # as in `CompletionSummary`
    stop_string: str | None
    stop_token_id: int | None
    num_output_tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateResult:
    """Everything that one call generated."""

    completions: tuple[Completion, ...]
    summary: GenerationSummary

    @property
    def text(self) -> str:
        """The text of the first completion."""
        return self.completions[0].text

    @property
    def version(self) -> int:
        """Number of the version that answered."""
        return self.summary.served_by.version


# --- models ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelVersion:
    """One version of a model."""

    version: int
    state: str  # "available", "loading", "live", "draining", "rejected", "unloaded" or "idle"
    reason: str  # why it was refused; empty otherwise
    labels: tuple[str, ...]
    publish_time: datetime | None
    load_s: float | None  # how long the last load took
    weight_bytes: int  # of its files
    memory_bytes: int  # that it holds now, weights and KV cache, over all engines
    execution: str  # how the engine runs it, and why
    compute_dtype: str
    architecture: str
    max_tokens: int
    class_labels: tuple[str, ...]
    head: str  # a classifier's; empty otherwise
    chat: bool  # whether a generator carries a chat template
    job_id: str  # the training job that published it; empty for imports
    metrics: Mapping[str, float]  # figures of its evaluation


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A model and all of its versions."""

    name: str
    kind: str  # "classifier", "generator" or "base"
    versions: tuple[ModelVersion, ...]  # newest first
    default_version: int  # answers requests that name only the model; 0 when none does


# --- training -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """A stored dataset."""

    name: str  # dataset://<sha256>
    format: str  # "csv", "jsonl" or "parquet"
    size_bytes: int
    create_time: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFailure:
    """Why and how a job failed."""

    reason: str  # such as "bad_data" or "out_of_memory"
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class JobProgress:
    """Where a running job stands."""

    step: int  # optimizer steps done
    total_steps: int
    epoch: float
    loss: float
    learning_rate: float
    time_left_s: float | None  # an estimate


# States from which a job never moves on.
ENDED_STATES = frozenset({"succeeded", "cancelled", "failed", "rejected"})


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingJob:
    """A training job."""

    id: str
    spec: TrainingSpec  # with every default filled in
    state: str  # "queued", "validating", "preparing", "running", "evaluating", "publishing", "succeeded", "failed", ...
    failure: JobFailure | None  # set when failed
    progress: JobProgress | None  # the latest
    metrics: Mapping[str, float]  # of the evaluation, once there
    published_version: int  # 0 before
    create_time: datetime | None
    start_time: datetime | None
    end_time: datetime | None
    num_attempts: int

    @property
    def ended(self) -> bool:
        """Whether its state is final."""
        return self.state in ENDED_STATES


@dataclass(frozen=True, slots=True, kw_only=True)
class StateChanged:
    """The job entered a state."""

    state: str
    failure: JobFailure | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Figures over validation rows."""

    step: int
    metrics: Mapping[str, float]
    final: bool  # whether these are of the published weights


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointSaved:
    """A checkpoint is complete."""

    step: int


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionPublished:
    """The version is complete in the repository."""

    model: str
    version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class JobWarning:
    """Something a person should know."""

    message: str


JobEvent: TypeAlias = StateChanged | JobProgress | Evaluation | CheckpointSaved | VersionPublished | JobWarning


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingEvent:
    """Something that happened to a job."""

    sequence: int  # from 1, without gaps
    time: datetime | None
    event: JobEvent | None  # None: of a kind that this client is too old to know
