"""Every error of the tree has its status, its details and its trailers, within what headers can carry."""

from __future__ import annotations

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2
from shoal_server import errors
from shoal_server.errors import InvalidRequest, QueueFull, ServerError, Violation, error_classes
from shoal_server.front.status import CODES, DOMAIN, PUSHBACK_KEY, as_server_error, to_status, trailing_metadata

MAX_HEADER_BYTES = 8192


def unpack(status: status_pb2.Status) -> dict[str, object]:
    found: dict[str, object] = {}
    for packed in status.details:
        for kind in (error_details_pb2.ErrorInfo, error_details_pb2.BadRequest, error_details_pb2.RetryInfo):
            if packed.Is(kind.DESCRIPTOR):
                message = kind()
                packed.Unpack(message)
                found[kind.__name__] = message
    assert len(found) == len(status.details)
    return found


@pytest.mark.parametrize("cls", error_classes().values(), ids=lambda cls: cls.__name__)
def test_every_class_of_the_tree_is_in_the_table(cls: type[ServerError]) -> None:
    assert cls in CODES, f"{cls.__name__} has no gRPC status: add it to front/status.py"
    assert CODES[cls] is not grpc.StatusCode.OK


def test_the_table_has_nothing_else() -> None:
    assert set(CODES) == set(error_classes().values())


@pytest.mark.parametrize("cls", error_classes().values(), ids=lambda cls: cls.__name__)
def test_reason_and_domain_are_always_told(cls: type[ServerError]) -> None:
    status = to_status(cls("what happened"))
    info = unpack(status)["ErrorInfo"]
    assert (info.reason, info.domain) == (cls.reason, DOMAIN)
    assert status.message == "what happened"
    assert status.code == CODES[cls].value[0]


def test_a_subclass_has_its_parents_code() -> None:
    """Clients that know only the broad kind of an error need not know its newest subclass."""
    for cls in error_classes().values():
        for parent in cls.__mro__[1:]:
            if parent in CODES and parent is not ServerError:
                assert CODES[cls] is CODES[parent]


def test_reasons_tell_classes_apart() -> None:
    named = [cls for cls in error_classes().values() if cls not in {ServerError, errors.InternalFault}]
    assert len({cls.reason for cls in named}) == len(named)


@pytest.mark.parametrize("cls", error_classes().values(), ids=lambda cls: cls.__name__)
def test_pushback_goes_wherever_retry_info_goes(cls: type[ServerError]) -> None:
    error = cls("later", retry_after_s=1.25)
    status = to_status(error)
    assert unpack(status)["RetryInfo"].retry_delay.ToMilliseconds() == 1250
    assert dict(trailing_metadata(error, status))[PUSHBACK_KEY] == "1250"
    plain = cls("never")
    assert "RetryInfo" not in unpack(to_status(plain))
    assert PUSHBACK_KEY not in dict(trailing_metadata(plain, to_status(plain)))


def test_field_violations_are_told() -> None:
    detail = unpack(to_status(InvalidRequest.of("inputs[3].text", "is empty")))["BadRequest"]
    assert [(v.field, v.description) for v in detail.field_violations] == [("inputs[3].text", "is empty")]


def test_the_status_fits_into_headers_however_much_is_wrong() -> None:
    violations = [Violation(field=f"inputs[{i}].text" * 50, description="é" * 5000) for i in range(500)]
    error = InvalidRequest("é" * 100_000, violations=violations, retry_after_s=1)
    status = to_status(error)
    metadata = trailing_metadata(error, status)
    total = sum(len(k) + len(v) * 4 // 3 if isinstance(v, bytes) else len(k) + len(v) for k, v in metadata)
    message = len("".join(f"%{byte:02X}" if byte > 126 else chr(byte) for byte in status.message.encode()))
    assert total + message < MAX_HEADER_BYTES
    assert len(unpack(status)["BadRequest"].field_violations) >= 1


def test_what_is_not_of_the_tree_tells_nothing_of_the_inside() -> None:
    told = as_server_error(ValueError("a secret prompt"), "id-7")
    assert CODES[type(told)] is grpc.StatusCode.INTERNAL
    assert "secret" not in told.message
    assert "id-7" in told.message


def test_a_class_that_nobody_mapped_is_internal() -> None:
    class Unmapped(ServerError):
        reason = "UNMAPPED"

    try:
        assert type(as_server_error(Unmapped("x"), "id")) is errors.InternalFault
    finally:
        import gc

        del Unmapped
        gc.collect()  # `error_classes` walks the living subclasses


def test_errors_survive_a_process_boundary() -> None:
    error = QueueFull("full", retry_after_s=0.5)
    again = errors.from_wire(error.to_wire())
    assert (type(again), again.message, again.retry_after_s) == (QueueFull, "full", 0.5)
