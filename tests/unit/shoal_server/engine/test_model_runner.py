"""The runner's check that a forward's rows of logits are those of its plan; fakes stand for the models."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import pytest
import torch
from shoal_models.manifest import Manifest
from shoal_models.packed import PackedRow
from shoal_server.engine.batcher import Batcher
from shoal_server.engine.classify_queue import ClassifyPlan
from shoal_server.engine.lanes import Lanes
from shoal_server.engine.launched import WrongRows
from shoal_server.engine.model_runner import ModelRunner, ReadyClassifier
from shoal_server.engine.request import ClassifyRequest, VersionKey, classify_request
from shoal_server.ipc.messages import ClassifyCall, VersionMemory

VERSION = VersionKey("names", 1)
NOTHING = VersionMemory(weight_bytes=0, cache_bytes=0, reckoned_bytes=0)


@dataclass
class EchoClassifier:
    """Says each token's id, or each sequence's first."""

    head: str

    def logits(self, row: PackedRow) -> torch.Tensor:
        rows_R = row.ids_T if self.head == "token" else row.ids_T[list(row.starts[:-1])]
        return rows_R[:, None].float()


def runner_with(head: str) -> ModelRunner:
    runner = ModelRunner(torch.device("cpu"), Lanes(num_lanes=1, num_step_threads=1, ended=lambda: None))
    model = cast("Any", EchoClassifier(head))
    runner.adopt(ReadyClassifier(key=VERSION, manifest=manifest(head), model=model, memory=NOTHING, load_s=0.0))
    return runner


def manifest(head: str) -> Manifest:
    return Manifest(
        model="names",
        version=1,
        kind="classifier",
        family="encoder",
        architecture="",
        head=head,
        max_tokens=16,
        vocabulary_size=100,
        weight_dtype="float32",
    )


def request(head: str, *sequences: list[int]) -> ClassifyRequest:
    call = ClassifyCall(
        request_id=1,
        model="names",
        version=1,
        sequences=[b"".join(i.to_bytes(4, "little") for i in ids) for ids in sequences],
        type_starts=[-1] * len(sequences),
    )
    return classify_request(call, 1, manifest(head), arrival=0, now_s=0.0)


def a_batcher() -> Batcher:
    batcher = Batcher(token_budget=1024, max_waiting_tokens=1024)
    batcher.add_version(VERSION)
    return batcher


def plan_of(batcher: Batcher, call: ClassifyRequest) -> ClassifyPlan:
    batcher.add(call, 0.0)
    plan = batcher.plan(VERSION, 0.0, may_wait=False)
    assert plan is not None
    return plan


@pytest.mark.parametrize(("head", "rows"), [("token", [7, 8, 9]), ("single_label", [7, 9])])
def test_a_call_gets_a_row_for_each_token_or_for_each_sequence_as_the_head_says(head, rows):
    batcher = a_batcher()
    plan = plan_of(batcher, request(head, [7, 8], [9]))
    runner = runner_with(head)
    logits_RL = runner.launch(runner.prepare(plan), is_alone=True, is_short=False).collect()
    assert logits_RL.tolist() == [[float(row)] for row in rows]
    (done,) = batcher.commit(plan, logits_RL, seconds=1.0, ended_s=1.0)
    assert done.logits_in_order() == logits_RL.tobytes()


def test_a_forward_with_another_number_of_rows_than_planned_answers_nobody():
    plan = plan_of(a_batcher(), request("token", [7, 8], [9]))
    runner = runner_with("single_label")
    launched = runner.launch(runner.prepare(plan), is_alone=True, is_short=True)
    with pytest.raises(WrongRows, match="names@1 gave 2 rows of logits; expected 3"):
        launched.collect()
