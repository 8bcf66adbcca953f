"""Training and serving of language models over gRPC: the client.

`Client` blocks, `AsyncClient` does not; both offer the same calls. Errors are those of `shoal.errors`, results those of
`shoal.types`. Needs neither torch nor the server.
"""

from shoal.aio import AsyncClient, AsyncStream, GenerationStream
from shoal.errors import (
    AlreadyExistsError,
    CancelledRpcError,
    ConfigurationError,
    ConflictError,
    DeadlineError,
    ExhaustedError,
    FieldViolation,
    ForbiddenError,
    InvalidRequestError,
    NotBuiltError,
    NotFoundError,
    PreconditionError,
    RpcError,
    ServerFaultError,
    ShoalError,
    UnauthenticatedError,
    UnavailableError,
)
from shoal.sync import BlockingGenerationStream, BlockingStream, Client
from shoal.types import (
    ChatMessage,
    Classification,
    ClassifyResult,
    Dataset,
    GenerateResult,
    GenerationSummary,
    Model,
    ModelVersion,
    TokenSpan,
    TrainingEvent,
    TrainingJob,
    TrainingSpec,
)

__all__ = [
    "AlreadyExistsError",
    "AsyncClient",
    "AsyncStream",
    "BlockingGenerationStream",
    "BlockingStream",
    "CancelledRpcError",
    "ChatMessage",
    "Classification",
    "ClassifyResult",
    "Client",
    "ConfigurationError",
    "ConflictError",
    "Dataset",
    "DeadlineError",
    "ExhaustedError",
    "FieldViolation",
    "ForbiddenError",
    "GenerateResult",
    "GenerationStream",
    "GenerationSummary",
    "InvalidRequestError",
    "Model",
    "ModelVersion",
    "NotBuiltError",
    "NotFoundError",
    "PreconditionError",
    "RpcError",
    "ServerFaultError",
    "ShoalError",
    "TokenSpan",
    "TrainingEvent",
    "TrainingJob",
    "TrainingSpec",
    "UnauthenticatedError",
    "UnavailableError",
]
