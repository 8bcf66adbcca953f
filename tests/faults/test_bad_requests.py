"""Bad requests: each gets its status, with field, limit and value, and nothing else suffers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc
import pytest
from harness.server import ServerProcess
from shoal import Client, InvalidRequestError, NotBuiltError, NotFoundError, PreconditionError, RpcError

Call = Callable[[Client], Any]

INVALID: list[tuple[str, str, Call]] = [
    ("empty text", "inputs[0].text", lambda c: c.classify("bert", [""])),
    ("no inputs", "inputs", lambda c: c.classify("bert", [])),
    ("too many inputs", "inputs", lambda c: c.classify("bert", ["x"] * 257)),
    ("too many characters", "inputs[1].text", lambda c: c.classify("bert", ["x", "y" * 200_001])),
    ("too many tokens", "inputs[0].text", lambda c: c.classify("bert", ["the fox " * 200])),
    ("empty token ids", "inputs[0].token_ids", lambda c: c.classify("bert", [[]])),
    ("token id beyond the vocabulary", "inputs[0].token_ids", lambda c: c.classify("bert", [[999_999]])),
    ("empty prompt", "generation", lambda c: c.generate("llama", "")),
    ("negative temperature", "generation.sampling.temperature", lambda c: c.generate("llama", "x", temperature=-1)),
    (
        "infinite temperature",
        "generation.sampling.temperature",
        lambda c: c.generate("llama", "x", temperature=float("inf")),
    ),
    ("top_p of zero", "generation.sampling.top_p", lambda c: c.generate("llama", "x", top_p=0.0)),
    ("top_p that is no number", "generation.sampling.top_p", lambda c: c.generate("llama", "x", top_p=float("nan"))),
    ("min_p above one", "generation.sampling.min_p", lambda c: c.generate("llama", "x", min_p=1.5)),
    (
        "repetition penalty of zero",
        "generation.sampling.repetition_penalty",
        lambda c: c.generate("llama", "x", repetition_penalty=0),
    ),
    ("too many stop strings", "generation.stop.strings", lambda c: c.generate("llama", "x", stop=["a"] * 17)),
    ("an empty stop string", "generation.stop.strings", lambda c: c.generate("llama", "x", stop=[""])),
    ("too many completions", "generation.num_completions", lambda c: c.generate("llama", "x", num_completions=17)),
    (
        "more new tokens than the context takes",
        "generation.stop.max_new_tokens",
        lambda c: c.generate("llama", "x", max_new_tokens=10_000),
    ),
    (
        "min above max",
        "generation.stop.min_new_tokens",
        lambda c: c.generate("llama", "x", max_new_tokens=2, min_new_tokens=3),
    ),
    ("prompt longer than the context", "generation", lambda c: c.generate("llama", "the fox " * 500)),
]


@pytest.mark.parametrize(("field", "call"), [case[1:] for case in INVALID], ids=[case[0] for case in INVALID])
def test_an_invalid_field_is_named(tiny_server: ServerProcess, field: str, call: Call) -> None:
    with tiny_server.client() as client, pytest.raises(InvalidRequestError) as caught:
        call(client)
    fields = [violation.field for violation in caught.value.violations]
    assert any(found.startswith(field) for found in fields), fields
    assert caught.value.reason


def test_limit_and_value_are_told(tiny_server: ServerProcess) -> None:
    with tiny_server.client() as client, pytest.raises(InvalidRequestError) as caught:
        client.classify("bert", ["x"] * 300)
    assert "300" in str(caught.value)
    assert "256" in str(caught.value)


def test_one_bad_input_fails_the_whole_call_and_is_named(tiny_server: ServerProcess) -> None:
    with tiny_server.client() as client, pytest.raises(InvalidRequestError) as caught:
        client.classify("bert", ["good", "good", "", "good"])
    assert caught.value.violations[0].field == "inputs[2].text"


@pytest.mark.parametrize(
    ("call", "listed"),
    [
        (lambda c: c.classify("nobody", ["x"]), "bert"),
        (lambda c: c.classify("bert", ["x"], version=99), "1"),
        (lambda c: c.classify("bert", ["x"], label="nowhere"), ""),
        (lambda c: c.get_model("nobody"), "bert"),
        (lambda c: c.get_training_job("nobody"), ""),
    ],
    ids=["model", "version", "label", "model of GetModel", "job"],
)
def test_what_is_not_there_is_not_found_and_what_is_there_is_listed(
    tiny_server: ServerProcess, call: Call, listed: str
) -> None:
    with tiny_server.client() as client, pytest.raises(NotFoundError) as caught:
        call(client)
    assert listed in str(caught.value)


def test_the_wrong_kind_of_model_is_a_failed_precondition(tiny_server: ServerProcess) -> None:
    with tiny_server.client() as client:
        with pytest.raises(PreconditionError, match="generator"):
            client.classify("llama", ["x"])
        with pytest.raises(PreconditionError, match="classifier"):
            client.generate("bert", "x")


def test_overflow_is_refused_by_default_and_stated_when_cut(tiny_server: ServerProcess) -> None:
    long = "the quick brown fox " * 40
    with tiny_server.client() as client:
        with pytest.raises(InvalidRequestError):
            client.classify("bert", [long])
        end, start = (
            client.classify("bert", [long], overflow=way).results[0] for way in ("truncate_end", "truncate_start")
        )
        windows = client.classify("bert", [long], overflow="windows").results[0]
    assert end.num_input_tokens == start.num_input_tokens == 64
    assert end.num_dropped_tokens == start.num_dropped_tokens > 0
    assert windows.num_windows > 1
    assert windows.num_dropped_tokens == 0


def test_no_prompt_is_ever_logged(tiny_server: ServerProcess) -> None:
    secret = "xylophone-secret-93"
    with tiny_server.client() as client:
        client.classify("bert", [secret])
        client.generate("llama", secret, max_new_tokens=2)
        for call in (
            lambda: client.classify("bert", [secret * 20]),
            lambda: client.generate("llama", secret, temperature=-1),
        ):
            with pytest.raises(RpcError) as caught:
                call()
            assert secret not in str(caught.value)
    assert secret not in tiny_server.log()


def test_what_is_not_built_says_so(tiny_server: ServerProcess) -> None:
    from shoal.v1 import train_pb2, train_pb2_grpc

    with grpc.insecure_channel(tiny_server.address) as channel:
        stub = train_pb2_grpc.TrainServiceStub(channel)
        for method, request in (
            (stub.PauseTrainingJob, train_pb2.PauseTrainingJobRequest(id="x")),
            (stub.GetTrainingReport, train_pb2.GetTrainingReportRequest(id="x")),
        ):
            with pytest.raises(grpc.RpcError) as caught:
                method(request, timeout=10)
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
            assert "not built" in caught.value.details().lower()
    assert NotBuiltError.__doc__


def test_a_request_id_comes_back(tiny_server: ServerProcess) -> None:
    with tiny_server.client() as client:
        assert client.classify("bert", ["x"], request_id="my-id-17").request_id == "my-id-17"
    assert "my-id-17" in tiny_server.log()
