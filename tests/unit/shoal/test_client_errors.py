"""The error tree and how statuses become errors."""

from __future__ import annotations

import pickle

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.rpc import error_details_pb2
from shoal import errors
from shoal_fake_server import bad_request, rich_status


def subclasses(cls: type[errors.ShoalError]) -> set[type[errors.ShoalError]]:
    return {cls}.union(*(subclasses(below) for below in cls.__subclasses__()))


def call_error(code: grpc.StatusCode, message: str, *trailing: tuple[str, str | bytes]) -> grpc.aio.AioRpcError:
    return grpc.aio.AioRpcError(code, trailing_metadata=grpc.aio.Metadata(*trailing), details=message)


def test_every_status_has_a_class_and_every_class_is_documented() -> None:
    assert set(errors.ERROR_BY_CODE) == set(grpc.StatusCode) - {grpc.StatusCode.OK}
    assert errors.__doc__ is not None
    missing = [cls.__name__ for cls in subclasses(errors.ShoalError) if cls.__name__ not in errors.__doc__]
    assert missing == []
    leaves = subclasses(errors.RpcError) - {errors.RpcError}
    assert set(errors.ERROR_BY_CODE.values()) == leaves


def test_details_are_read_and_pushback_fills_in_for_retry_info() -> None:
    retry = error_details_pb2.RetryInfo(retry_delay=Duration(seconds=1, nanos=500_000_000))
    encoded = rich_status(8, "queue is full", retry).SerializeToString()
    from_info = errors.from_grpc(
        call_error(
            grpc.StatusCode.RESOURCE_EXHAUSTED,
            "queue is full",
            (errors.DETAILS_KEY, encoded),
            (errors.PUSHBACK_KEY, "900"),
        ),
        "r1",
    )
    from_pushback = errors.from_grpc(
        call_error(grpc.StatusCode.UNAVAILABLE, "soon", (errors.PUSHBACK_KEY, "900")), "r2"
    )
    refused = errors.from_grpc(call_error(grpc.StatusCode.UNAVAILABLE, "never", (errors.PUSHBACK_KEY, "-1")), "r3")
    assert isinstance(from_info, errors.ExhaustedError)
    assert (from_info.retry_after_s, from_pushback.retry_after_s, refused.retry_after_s) == (1.5, 0.9, None)


def test_unreadable_details_never_hide_the_status() -> None:
    error = errors.from_grpc(call_error(grpc.StatusCode.NOT_FOUND, "gone", (errors.DETAILS_KEY, b"\xff\xff")), "r")
    assert isinstance(error, errors.NotFoundError)
    assert (str(error), error.reason, error.violations) == ("gone", "", ())


def test_a_status_without_a_message_is_named_by_its_code() -> None:
    assert str(errors.from_grpc(call_error(grpc.StatusCode.ABORTED, ""), "r")) == "ABORTED"


def test_an_unknown_code_in_a_stream_is_a_fault_of_the_server() -> None:
    assert isinstance(errors.from_status(rich_status(99, "odd"), "r"), errors.ServerFaultError)


def test_errors_survive_pickling_whole() -> None:
    error = errors.from_status(bad_request("inputs[1].text", "is empty"), "r7")
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is errors.InvalidRequestError
    assert (str(again), again.violations, again.reason, again.request_id) == (
        "inputs[1].text: is empty",
        error.violations,
        "INVALID_REQUEST",
        "r7",
    )


@pytest.mark.parametrize("code", sorted(errors.ERROR_BY_CODE, key=lambda code: int(code.value[0])))
def test_each_code_becomes_its_class(code: grpc.StatusCode) -> None:
    error = errors.from_grpc(call_error(code, "why"), "r")
    assert type(error) is errors.ERROR_BY_CODE[code]
    assert (error.code, error.message, error.request_id) == (code, "why", "r")
