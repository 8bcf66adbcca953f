"""What the engine says to fronts, made from requests that advanced or ended."""

from __future__ import annotations

from shoal_server.engine.request import ClassifyRequest, GenerateRequest
from shoal_server.engine.scheduler import Advance
from shoal_server.errors import DeadlinePassed
from shoal_server.ipc.messages import (
    CallFailed,
    ClassifyDone,
    EngineTimes,
    FinishReason,
    GenerateDone,
    TokenLogprobs,
    TokensGenerated,
)


def classify_done(request: ClassifyRequest, now_s: float) -> ClassifyDone:
    """The logits of a request whose sequences have all run."""
    return ClassifyDone(
        request_id=request.key.request_id,
        logits=request.logits_in_order(),
        times=EngineTimes(received_s=request.received_s, started_s=request.started_s, ended_s=now_s),
    )


def token_generated(advance: Advance, logprobs: TokenLogprobs | None) -> TokensGenerated:
    """One output token."""
    return TokensGenerated(
        request_id=advance.request.key.request_id,
        token_ids=[advance.token_id],
        logprobs=[] if logprobs is None else [logprobs],
    )


def generate_done(advance: Advance, reason: FinishReason, now_s: float) -> GenerateDone:
    """The end of a completion."""
    request = advance.request
    started_s = now_s if request.started_s is None else request.started_s
    return GenerateDone(
        request_id=request.key.request_id,
        reason=reason,
        stop_token_id=advance.token_id if reason is FinishReason.STOP_TOKEN else None,
        times=EngineTimes(received_s=request.received_s, started_s=started_s, ended_s=now_s),
        first_token_s=request.first_token_s,
    )


def expired(request: ClassifyRequest | GenerateRequest, now_s: float) -> CallFailed:
    """The end of a call whose deadline passed."""
    waited_s = now_s - request.received_s
    error = DeadlinePassed(f"the deadline passed after {waited_s:.3f} s in the engine")
    return CallFailed(request_id=request.key.request_id, error=error.to_wire())
