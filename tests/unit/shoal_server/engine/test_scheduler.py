"""The scheduler: continuous batching, preemption; nothing is lost, doubled, leaked or run after its deadline."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shoal_server.config import GenerateConfig
from shoal_server.engine.kv_cache import BlockAllocator
from shoal_server.engine.request import CallKey, GenerateRequest, VersionKey, order_of
from shoal_server.engine.scheduler import Advance, Scheduler, StepPlan
from shoal_server.errors import InternalFault, InvalidRequest, QueueFull
from shoal_server.ipc.messages import FinishReason, Priority, Sampling

VERSION = VersionKey("story", 1)
EOS, STOP = 1, 2


def scheduler(*, num_blocks: int = 64, block_tokens: int = 4, **changes: int) -> Scheduler:
    config = GenerateConfig(**{"token_budget": 32, "max_running": 4, "max_waiting": 8, **changes})
    return Scheduler(VERSION, config, BlockAllocator(num_blocks=num_blocks, block_tokens=block_tokens))


def shape_of(plan: StepPlan | None) -> list[tuple[int, int, bool]]:
    """(request id, new tokens, wants a token) of each piece."""
    assert plan is not None
    return [(p.request.key.request_id, p.num_tokens, p.wants_token) for p in plan.pieces]


def step(queue: Scheduler, token_id: int = 7, now_s: float = 0.0) -> tuple[list[tuple[int, int, bool]], list[Advance]]:
    plan = queue.plan(now_s)
    shape = shape_of(plan)
    return shape, queue.commit(plan, [token_id] * sum(p.wants_token for p in plan.pieces), now_s)


def test_prefill_then_decodes_until_the_length_is_reached(make_generate):
    queue = scheduler()
    queue.add(make_generate(5, 3))
    assert step(queue)[0] == [(0, 5, True)]
    assert step(queue)[0] == [(0, 1, True)]
    shape, advances = step(queue)
    assert shape == [(0, 1, True)]
    assert [(a.token_id, a.is_output, a.finished) for a in advances] == [(7, True, FinishReason.LENGTH)]
    assert queue.plan(0.0) is None
    assert queue.allocator.num_used == 0


def test_decodes_come_first_and_prefill_is_cut_to_the_rest_of_the_budget(make_generate):
    """Budget 32: one decode leaves 31 of the 50 prompt tokens, the other 19 follow with the next decode."""
    queue = scheduler()
    queue.add(make_generate(3, 10))
    step(queue)
    queue.add(make_generate(50, 2))
    assert step(queue)[0] == [(0, 1, True), (1, 31, False)]
    assert step(queue)[0] == [(0, 1, True), (1, 19, True)]
    assert step(queue)[0] == [(0, 1, True), (1, 1, True)]


def test_no_more_run_than_allowed_and_a_place_is_taken_as_soon_as_it_is_free(make_generate):
    queue = scheduler(max_running=2)
    for max_new_tokens in (1, 3, 3):
        queue.add(make_generate(2, max_new_tokens))
    assert step(queue)[0] == [(0, 2, True), (1, 2, True)]
    assert step(queue)[0] == [(1, 1, True), (2, 2, True)]


def test_priority_then_deadline_then_arrival_decides_who_is_admitted(make_generate):
    queue = scheduler(max_running=1)
    queue.add(make_generate(2, 1))
    queue.add(make_generate(2, 1, priority=Priority.LOW, deadline_s=1.0))
    queue.add(make_generate(2, 1, deadline_s=9.0))
    queue.add(make_generate(2, 1, deadline_s=5.0))
    queue.add(make_generate(2, 1, priority=Priority.HIGH))
    assert [step(queue)[0][0][0] for _ in range(5)] == [4, 3, 2, 0, 1]


def test_when_blocks_run_out_the_last_in_order_is_preempted_and_recomputed(make_generate):
    """6 blocks of 4. Two sequences of 8 tokens hold 2 each; growing past 8 and 12 they need 3 and 4: together 8.

    The second (later) one gives its blocks up when the first needs its fourth; once the first is done it starts again
    with prompt and output as one prefill, and still gives 6 tokens.
    """
    queue = scheduler(num_blocks=6)
    queue.add(make_generate(8, 6))
    queue.add(make_generate(8, 6))
    seen = {0: 0, 1: 0}
    shapes = []
    while (plan := queue.plan(0.0)) is not None:
        shapes.append(shape_of(plan))
        for advance in queue.commit(plan, [7] * sum(p.wants_token for p in plan.pieces), 0.0):
            seen[advance.request.key.request_id] += 1
        queue.allocator.check()
    assert seen == {0: 6, 1: 6}
    assert queue.num_preempted == 1
    assert [(1, 13, True)] in shapes
    assert queue.allocator.num_used == 0


def test_a_request_that_can_never_fit_is_refused_with_numbers(make_generate):
    """16 blocks of 4 hold 64 tokens; the last of 65 is chosen but never computed."""
    queue = scheduler(num_blocks=16)
    queue.add(make_generate(60, 5))
    with pytest.raises(InvalidRequest, match=r"65 tokens; the KV cache holds 64"):
        queue.add(make_generate(60, 6))


def test_beyond_twice_the_bound_a_request_is_refused(make_generate):
    queue = scheduler(max_waiting=1)
    queue.add(make_generate(2, 2))
    queue.add(make_generate(2, 2))
    with pytest.raises(QueueFull, match="2 completions wait already; limit 2"):
        queue.add(make_generate(2, 2))


def test_an_id_in_use_is_refused_and_the_first_request_goes_on(make_generate):
    queue = scheduler()
    request = make_generate(2, 2)
    queue.add(request)
    with pytest.raises(InternalFault):
        queue.add(request)
    assert queue.num_waiting == 1


def test_an_abort_frees_blocks_at_once_and_the_next_step_knows_nothing_of_it(make_generate):
    queue = scheduler()
    first, second = make_generate(9, 9), make_generate(9, 9)
    queue.add(first)
    queue.add(second)
    step(queue)
    assert queue.abort(first.key)
    assert queue.allocator.num_used == 3
    assert step(queue)[0] == [(1, 1, True)]
    assert not queue.abort(first.key)


def test_a_running_request_whose_deadline_passes_ends_and_frees_its_blocks(make_generate):
    queue = scheduler()
    request = make_generate(9, 9, deadline_s=5.0)
    queue.add(request)
    step(queue)
    assert queue.next_event_s() == 5.0
    assert queue.expire(4.9) == []
    assert queue.expire(5.0) == [request]
    assert queue.allocator.num_used == 0
    assert queue.plan(5.0) is None


@pytest.mark.parametrize(("token_id", "reason"), [(EOS, FinishReason.END_OF_SEQUENCE), (STOP, FinishReason.STOP_TOKEN)])
def test_an_end_or_stop_token_ends_and_is_no_output(make_generate, token_id, reason):
    queue = scheduler()
    queue.add(make_generate(3, 9, end_ids=frozenset({EOS}), stop_ids=frozenset({STOP})))
    _, advances = step(queue, token_id)
    assert [(a.is_output, a.finished) for a in advances] == [(False, reason)]
    assert advances[0].request.first_token_s is None, "no output, no first token"


def test_an_ignored_end_is_an_output_like_any_other(make_generate):
    queue = scheduler()
    queue.add(make_generate(3, 9))
    _, advances = step(queue, EOS)
    assert [(a.is_output, a.finished) for a in advances] == [(True, None)]


def test_a_full_context_ends_a_request_that_wanted_more(make_generate):
    """Context 5, prompt 3: two tokens come out, the second fills it."""
    queue = scheduler()
    queue.add(make_generate(3, 9, max_tokens=5))
    assert step(queue)[1][0].finished is None
    assert step(queue)[1][0].finished is FinishReason.CONTEXT_FULL


def test_a_failed_step_ends_its_requests_and_spares_those_that_wait(make_generate):
    queue = scheduler(max_running=1)
    queue.add(make_generate(3, 9))
    queue.add(make_generate(3, 9))
    plan = queue.plan(0.0)
    ended = queue.fail([piece.request for piece in plan.pieces])
    assert [request.key.request_id for request in ended] == [0]
    assert step(queue)[0] == [(1, 3, True)]


STEP = st.one_of(
    st.tuples(
        st.just("add"),
        st.integers(1, 30),
        st.integers(1, 12),
        st.sampled_from(list(Priority)),
        st.one_of(st.none(), st.integers(1, 40)),
    ),
    st.tuples(st.just("run"), st.sampled_from([7, 7, 7, 7, EOS])),
    st.tuples(st.just("run"), st.just(7)),
    st.tuples(st.just("abort"), st.integers(0, 10)),
    st.tuples(st.just("fail")),
)


@settings(max_examples=500, deadline=None)
@given(
    num_blocks=st.integers(2, 12),
    token_budget=st.integers(2, 24),
    max_running=st.integers(1, 5),
    steps=st.lists(STEP, max_size=50),
)
def test_whatever_happens_every_request_is_computed_in_order_and_ends_once(
    num_blocks, token_budget, max_running, steps
):
    """Arrivals, aborts, failures, ends and deadlines in any order, with too few blocks; then run to the end.

    A shadow of the cache follows what was written where: a piece must find its whole context in its own blocks, so
    blocks given to two, or lost by a preemption that was not recomputed, show at once.
    """
    block_tokens = 4
    config = GenerateConfig(token_budget=token_budget, max_running=max_running, max_waiting=1000)
    allocator = BlockAllocator(num_blocks=num_blocks, block_tokens=block_tokens)
    queue = Scheduler(VERSION, config, allocator)
    arrivals = itertools.count()
    requests: dict[int, GenerateRequest] = {}
    outputs: dict[int, int] = {}
    ended: dict[int, str] = {}
    written: dict[tuple[int, int], tuple[int, int]] = {}  # (block, offset) -> (request id, position)
    now_s = 0.0

    def end(request: GenerateRequest, how: str) -> None:
        assert request.key.request_id not in ended, "a request ends once"
        ended[request.key.request_id] = how
        assert allocator.table(request.key) == (), "who has ended holds no blocks"

    def run(token_id: int, *, fail: bool = False) -> bool:
        nonlocal now_s
        now_s += 1
        for request in queue.expire(now_s):
            assert request.order.deadline_s <= now_s
            end(request, "expired")
        plan = queue.plan(now_s)
        allocator.check()
        if plan is None:
            return False
        assert plan.num_tokens == sum(piece.num_tokens for piece in plan.pieces) <= token_budget
        assert len(plan.pieces) <= max_running
        assert queue.num_running <= max_running
        sizes = [piece.num_tokens > 1 for piece in plan.pieces if piece.request.num_computed]
        assert sizes == sorted(sizes), "decodes stand before the chunks of those that run"
        for piece in plan.pieces:
            request_id, first = piece.request.key.request_id, piece.request.num_computed
            assert request_id not in ended
            assert piece.request.order.deadline_s > now_s
            for position in range(first):
                slot = (piece.block_table[position // block_tokens], position % block_tokens)
                assert written[slot] == (request_id, position)
            for position in range(first, first + piece.num_tokens):
                written[piece.block_table[position // block_tokens], position % block_tokens] = (request_id, position)
        if fail:
            for request in queue.fail([piece.request for piece in plan.pieces]):
                end(request, "failed")
            return True
        token_ids = [token_id] * sum(piece.wants_token for piece in plan.pieces)
        for advance in queue.commit(plan, token_ids, now_s):
            request_id = advance.request.key.request_id
            outputs[request_id] = outputs.get(request_id, 0) + advance.is_output
            if advance.finished is not None:
                end(advance.request, advance.finished.value)
        allocator.check()
        return True

    for action in steps:
        if action[0] == "add":
            arrival = next(arrivals)
            tokens = np.zeros(action[1] + action[2], dtype=np.int32)
            request = GenerateRequest(
                key=CallKey(1, arrival),
                version=VERSION,
                tokens=tokens,
                num_prompt=action[1],
                num_tokens=action[1],
                max_new_tokens=action[2],
                min_new_tokens=0,
                sampling=Sampling(),
                end_ids=frozenset({EOS}),
                stop_ids=frozenset(),
                num_logprobs=None,
                order=order_of(action[3], None if action[4] is None else now_s + action[4], arrival),
                received_s=now_s,
            )
            if len(tokens) - 1 > num_blocks * block_tokens:
                with pytest.raises(InvalidRequest):
                    queue.add(request)
            else:
                requests[arrival] = request
                queue.add(request)
        elif action[0] == "run":
            run(action[1])
        elif action[0] == "abort":
            known = action[1] in requests and action[1] not in ended
            assert queue.abort(CallKey(1, action[1])) == known
            if known:
                ended[action[1]] = "aborted"
        else:
            run(7, fail=True)
    for _ in range(2000):
        if not run(7):
            break
    assert set(ended) == set(requests), "every request ended"
    for request_id, how in ended.items():
        if how == "length":
            assert outputs[request_id] == requests[request_id].max_new_tokens
    assert allocator.num_used == 0
    assert queue.num_open == queue.num_waiting == queue.num_running == 0
