"""What crosses a process boundary, grouped by the process that receives it.

Times are `time.monotonic()` seconds, which all processes of one machine share. Token ids and logits travel as the raw
bytes of little-endian int32 and float32. A message is encoded once, by its sender, with its class name as tag.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import msgspec

from shoal_server.errors import WireError


class Message(msgspec.Struct, frozen=True, kw_only=True, tag=True, array_like=True):
    """Base of everything that is sent."""


class Priority(StrEnum):
    """Order between waiting requests."""

    LOW = "low"
    NORMAL = "normal"
    HIGH = "high"


class ModelKind(StrEnum):
    """What a model can be asked for."""

    CLASSIFIER = "classifier"
    GENERATOR = "generator"
    BASE = "base"


class VersionState(StrEnum):
    """The life of a version; documented in protos/shoal/v1/model.proto."""

    AVAILABLE = "available"
    LOADING = "loading"
    LIVE = "live"
    DRAINING = "draining"
    REJECTED = "rejected"
    UNLOADED = "unloaded"
    IDLE = "idle"


class FinishReason(StrEnum):
    """Why the engine ended a completion."""

    END_OF_SEQUENCE = "end_of_sequence"
    STOP_TOKEN = "stop_token"  # noqa: S105
    LENGTH = "length"
    CONTEXT_FULL = "context_full"


# --- the engine receives, from fronts -------------------------------------------------------------------------------


class ClassifyCall(Message, frozen=True, kw_only=True):
    """Sequences to run with one version; answered by one `ClassifyDone` or `CallFailed`."""

    request_id: int  # unique within the sending front
    model: str
    version: int
    sequences: list[bytes]  # int32 token ids, special tokens included
    type_starts: list[int]  # for each sequence: index of the first token of the second text, or -1
    priority: Priority = Priority.NORMAL
    deadline_s: float | None = None  # what has expired is never run


class Sampling(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """How the next token is chosen; ranges are checked in the front."""

    temperature: float = 1.0  # 0 is greedy
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int = 0  # always set: drawn by the front where the client gave none


class GenerateCall(Message, frozen=True, kw_only=True):
    """One completion to generate; answered by `TokensGenerated`s, then one `GenerateDone` or `CallFailed`."""

    request_id: int  # unique within the sending front
    model: str
    version: int
    prompt: bytes  # int32 token ids
    sampling: Sampling
    stop_token_ids: list[int]
    max_new_tokens: int
    min_new_tokens: int = 0
    ignore_eos: bool = False
    num_logprobs: int | None = None  # alternatives per token; None: no log-probabilities at all
    priority: Priority = Priority.NORMAL
    deadline_s: float | None = None


class Abort(Message, frozen=True, kw_only=True):
    """Forget a call; its place is free within one step and nothing more is sent for it."""

    request_id: int


# --- the engine receives, from control ------------------------------------------------------------------------------


class LoadVersion(Message, frozen=True, kw_only=True):
    """Verify, load, compare with the golden outputs, warm up; answered by `VersionLoaded` or `VersionRefused`."""

    model: str
    version: int
    path: str


class UnloadVersion(Message, frozen=True, kw_only=True):
    """Free a version once nothing runs on it; answered by `VersionUnloaded`."""

    model: str
    version: int


# --- control receives, from engines ---------------------------------------------------------------------------------


class EngineHello(Message, frozen=True, kw_only=True):
    """First message of an engine."""

    engine_id: int
    pid: int
    address: str  # path of the unix socket on which it takes calls from fronts
    device: str  # "cpu" or "cuda:0"
    device_name: str
    compute_dtype: str


class VersionMemory(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Bytes that a version holds on one engine's device."""

    weight_bytes: int  # measured once it was loaded, in the form it is served in, with what captured forwards keep
    cache_bytes: int  # of its KV cache, 0 for classifiers; on a CPU taken page by page as it fills
    reckoned_bytes: int  # what both together were reckoned to be before it was loaded

    @property
    def total_bytes(self) -> int:
        """Weights and cache."""
        return self.weight_bytes + self.cache_bytes


class VersionLoaded(Message, frozen=True, kw_only=True):
    """A version is ready to run."""

    engine_id: int
    model: str
    version: int
    execution: str  # "packed", or a slower path with its reason
    compute_dtype: str
    load_s: float
    memory: VersionMemory
    kv_cache_tokens: int  # 0 for classifiers


class VersionRefused(Message, frozen=True, kw_only=True):
    """A version failed verification, memory check, golden comparison or warm-up; it holds no memory."""

    engine_id: int
    model: str
    version: int
    reason: str  # for people: what, limit, value
    lacking_bytes: int = 0  # memory that would have made it fit; 0: memory was not the reason


class VersionUnloaded(Message, frozen=True, kw_only=True):
    """A version's memory is free."""

    engine_id: int
    model: str
    version: int


class ModelStatistics(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """What an engine has done for one version since it started; counters only grow."""

    model: str
    version: int
    num_steps: int  # forwards
    busy_s: float  # time inside forwards
    num_sequences: int  # sequences summed over forwards
    num_tokens: int  # tokens summed over forwards
    budget_tokens: int  # token budget summed over forwards; num_tokens / budget_tokens is the fill
    batch_sequences_buckets: list[int]  # histogram counts by SEQUENCE_BUCKETS, not cumulative, last is +Inf
    batch_tokens_buckets: list[int]  # histogram counts by TOKEN_BUCKETS, likewise
    inference_s_buckets: list[int]  # histogram counts of forward times by SECOND_BUCKETS, likewise
    num_running: int  # gauge
    num_waiting: int  # gauge
    num_preempted: int
    num_expired: int  # never run, deadline passed
    kv_blocks_used: int  # gauge
    kv_blocks_total: int  # gauge
    max_wait_s: float  # gauge: how long a lone Classify call may now be kept waiting for company; adapts
    forward_fixed_s: float  # gauge: what a Classify forward costs, however few its tokens; learned
    forward_token_s: float  # gauge: and for each token


class EngineStatistics(Message, frozen=True, kw_only=True):
    """Sent about once a second and after loads."""

    engine_id: int
    uptime_s: float
    busy_s: float  # of the whole device's time, what forwards of all versions had
    device_utilisation: float  # 0 to 1: the GPU's, or this process's CPU share of its threads
    device_memory_used_bytes: int  # the GPU's, or this process's resident set
    device_memory_total_bytes: int
    models: list[ModelStatistics]


SEQUENCE_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
TOKEN_BUCKETS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)
SECOND_BUCKETS = (
    0.001, 0.002, 0.004, 0.008, 0.015, 0.03, 0.06, 0.12, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0, 120.0, 300.0,
)  # fmt: skip


# --- fronts receive, from engines -----------------------------------------------------------------------------------


class EngineTimes(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """When the engine got, began and ended a call."""

    received_s: float
    started_s: float  # first forward
    ended_s: float


class ClassifyDone(Message, frozen=True, kw_only=True):
    """The logits of a `ClassifyCall`."""

    request_id: int
    logits: bytes  # float32, row-major: a row of outputs for each sequence, or, with head "token", for each token
    times: EngineTimes


class TokenLogprobs(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """Log-probability of a chosen token and of the likeliest alternatives."""

    logprob: float
    token_ids: list[int]
    logprobs: list[float]


class TokensGenerated(Message, frozen=True, kw_only=True):
    """New tokens of one completion; several may be held back for one message."""

    request_id: int
    token_ids: list[int]
    logprobs: list[TokenLogprobs] = []  # parallel to token_ids where asked for


class GenerateDone(Message, frozen=True, kw_only=True):
    """The end of one completion, after its last `TokensGenerated`."""

    request_id: int
    reason: FinishReason
    stop_token_id: int | None
    times: EngineTimes
    first_token_s: float | None


class CallFailed(Message, frozen=True, kw_only=True):
    """A call ended without an answer."""

    request_id: int
    error: WireError


# --- fronts receive, from control -----------------------------------------------------------------------------------


class EngineEndpoint(msgspec.Struct, frozen=True, kw_only=True):
    """An engine that fronts may call."""

    engine_id: int
    address: str
    incarnation: int  # grows with every restart of that engine


class RoutedVersion(msgspec.Struct, frozen=True, kw_only=True):
    """A version as fronts need to know it."""

    version: int
    state: VersionState
    reason: str = ""  # of a rejected one
    path: str = ""
    engine_ids: list[int] = []  # engines that have it loaded
    on_demand: bool = False  # requests for it call `WakeVersion` and wait


class RoutedModel(msgspec.Struct, frozen=True, kw_only=True):
    """A model as fronts need to know it."""

    name: str
    kind: ModelKind
    labels: dict[str, int]
    default_version: int  # 0: none is live or comes on demand
    versions: list[RoutedVersion]


class Routing(Message, frozen=True, kw_only=True):
    """The whole routing table; replaces the one before. Fronts answer with `RoutingApplied`."""

    revision: int
    engines: list[EngineEndpoint]
    models: list[RoutedModel]
    serving: bool  # what health shall say of the whole server
    wants_room: bool = False  # a version waits for memory: say at once which others are idle, see `VersionsInUse`


class PrepareVersion(Message, frozen=True, kw_only=True):
    """Load the tokenizer of a version that is about to become live; answered by `VersionPrepared`."""

    model: str
    version: int
    path: str


class Drain(Message, frozen=True, kw_only=True):
    """Health NOT_SERVING at once, after the lame-duck pause stop listening, end within `drain_s`, then exit 0."""

    lame_duck_s: float
    drain_s: float


class ControlReply(Message, frozen=True, kw_only=True):
    """The answer to a `ControlCall`: exactly one of `result` and `error`."""

    call_id: int
    result: Any = None  # builtins of the result struct that the call's docstring names
    error: WireError | None = None


class ControlStreamItem(Message, frozen=True, kw_only=True):
    """One item of a streamed answer; the stream ends with a `ControlReply`."""

    call_id: int
    item: Any


# --- control receives, from fronts ----------------------------------------------------------------------------------


class FrontHello(Message, frozen=True, kw_only=True):
    """First message of a front, sent when it listens."""

    front_id: int
    pid: int
    port: int


class VersionPrepared(Message, frozen=True, kw_only=True):
    """The front holds the tokenizer, or says why it cannot."""

    front_id: int
    model: str
    version: int
    error: str = ""


class RoutingApplied(Message, frozen=True, kw_only=True):
    """The front uses this routing table; sent again whenever `in_flight` of a draining version falls to zero."""

    front_id: int
    revision: int
    in_flight: dict[str, int]  # "model@version" -> open requests, draining versions only; zero entries left out


class VersionUse(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """How one front uses a version."""

    model: str
    version: int
    num_open: int  # requests under way or waiting for the version
    last_used_s: float  # when the last request ended, 0.0: none has


class VersionsInUse(Message, frozen=True, kw_only=True):
    """Which versions the front's requests use; sent about once a second where versions may rest.

    Sent at once for a table that `wants_room`, and while that is in force, whenever a version falls idle.
    """

    front_id: int
    revision: int  # of the table that the front uses
    uses: list[VersionUse]


class ControlCall(Message, frozen=True, kw_only=True):
    """A Train or Model call, forwarded. `method` names the request struct of `ipc/calls.py`."""

    call_id: int
    method: str
    arguments: Any  # builtins of that struct


class ControlCancel(Message, frozen=True, kw_only=True):
    """The client of a streamed `ControlCall` has left, or nobody waits for a `WakeVersion` any more."""

    call_id: int


class Sample(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """One series of a front's registry at one moment."""

    labels: list[str]
    value: float = 0.0  # counters and gauges
    buckets: list[int] = []  # histograms: counts, not cumulative, last is +Inf
    total: float = 0.0  # histograms: sum of observations


class Family(msgspec.Struct, frozen=True, kw_only=True, array_like=True):
    """All series of one metric."""

    name: str  # without the counters' "_total"
    type: str  # "counter", "gauge" or "histogram"
    help: str
    label_names: list[str]
    bounds: list[float]  # upper bounds of the buckets without +Inf; empty unless a histogram
    samples: list[Sample]


class MetricsSnapshot(Message, frozen=True, kw_only=True):
    """Everything a front has counted since it started; sent about once a second and on request."""

    front_id: int
    families: list[Family]


ToEngine = ClassifyCall | GenerateCall | Abort | LoadVersion | UnloadVersion
FromEngineToFront = ClassifyDone | TokensGenerated | GenerateDone | CallFailed
FromControlToFront = Routing | PrepareVersion | Drain | ControlReply | ControlStreamItem
ToControl = (
    EngineHello
    | VersionLoaded
    | VersionRefused
    | VersionUnloaded
    | EngineStatistics
    | FrontHello
    | VersionPrepared
    | RoutingApplied
    | VersionsInUse
    | ControlCall
    | ControlCancel
    | MetricsSnapshot
)
