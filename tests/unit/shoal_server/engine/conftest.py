"""Requests for tests of the engine's pure parts."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
from shoal_server.engine.request import CallKey, ClassifyRequest, GenerateRequest, VersionKey, order_of
from shoal_server.ipc.messages import Priority, Sampling

VERSION = VersionKey("news", 1)

MakeClassify = Callable[..., ClassifyRequest]
MakeGenerate = Callable[..., GenerateRequest]


@pytest.fixture
def make_classify() -> MakeClassify:
    """A factory of Classify requests; ids and arrivals count up."""
    arrivals = itertools.count()

    def make(
        lengths: list[int],
        *,
        version: VersionKey = VERSION,
        priority: Priority = Priority.NORMAL,
        deadline_s: float | None = None,
        now_s: float = 0.0,
        is_per_token: bool = False,
    ) -> ClassifyRequest:
        arrival = next(arrivals)
        return ClassifyRequest(
            key=CallKey(1, arrival),
            version=version,
            sequences=[np.full(length, arrival, dtype=np.int32).tobytes() for length in lengths],
            lengths=lengths,
            type_starts=[-1] * len(lengths),
            order=order_of(priority, deadline_s, arrival),
            received_s=now_s,
            is_per_token=is_per_token,
        )

    return make


@pytest.fixture
def make_generate() -> MakeGenerate:
    """A factory of Generate requests; ids and arrivals count up."""
    arrivals = itertools.count()

    def make(
        num_prompt: int,
        max_new_tokens: int,
        *,
        priority: Priority = Priority.NORMAL,
        deadline_s: float | None = None,
        sampling: Sampling | None = None,
        max_tokens: int = 1_000_000,
        min_new_tokens: int = 0,
        end_ids: frozenset[int] = frozenset(),
        stop_ids: frozenset[int] = frozenset(),
        num_logprobs: int | None = None,
        prompt: list[int] | None = None,
    ) -> GenerateRequest:
        arrival = next(arrivals)
        tokens = np.zeros(min(num_prompt + max_new_tokens, max_tokens), dtype=np.int32)
        tokens[:num_prompt] = 5 if prompt is None else prompt
        return GenerateRequest(
            key=CallKey(1, arrival),
            version=VERSION,
            tokens=tokens,
            num_prompt=num_prompt,
            num_tokens=num_prompt,
            max_new_tokens=max_new_tokens,
            min_new_tokens=min_new_tokens,
            sampling=sampling or Sampling(temperature=0.0),
            end_ids=end_ids,
            stop_ids=stop_ids,
            num_logprobs=num_logprobs,
            order=order_of(priority, deadline_s, arrival),
            received_s=0.0,
        )

    return make
