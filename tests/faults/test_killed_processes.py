"""Kill -9 of every process: what ran ends with UNAVAILABLE, health says so, and all comes back by itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from harness.server import ServerProcess
from shoal import RpcError, ShoalError, UnavailableError


@pytest.fixture
def server(tmp_path: Path, tiny_repository: Path) -> Iterator[ServerProcess]:
    with ServerProcess(tmp_path, tiny_repository) as running:
        running.wait_live("bert", 1)
        running.wait_live("llama", 1)
        yield running


def eventually(condition: Callable[[], bool], limit_s: float = 60.0) -> None:
    limit = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < limit, "it did not come back"
        time.sleep(0.05)


def health(server: ServerProcess, service: str = "") -> int:
    with grpc.insecure_channel(server.address) as channel:
        try:
            return (
                health_pb2_grpc.HealthStub(channel)
                .Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
                .status
            )
        except grpc.RpcError:
            return health_pb2.HealthCheckResponse.UNKNOWN


def answers(server: ServerProcess) -> bool:
    with server.client() as client:
        try:
            client.classify("bert", ["hello"], timeout=5)
            client.generate("llama", "hello", max_new_tokens=2, timeout=5)
        except ShoalError:
            return False
    return True


def test_a_killed_engine_fails_what_ran_and_comes_back(server: ServerProcess) -> None:
    engine = server.children("engine")[0]
    failures: list[Exception] = []

    def stream() -> None:
        try:
            with server.client() as client:
                while True:
                    client.generate("llama", "hello", max_new_tokens=200, ignore_eos=True)
        except RpcError as error:
            failures.append(error)

    threads = [threading.Thread(target=stream) for _ in range(4)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    engine.kill()
    began = time.monotonic()
    for thread in threads:
        thread.join(10)
    assert time.monotonic() - began < 5
    assert [type(error) for error in failures] == [UnavailableError] * 4
    assert all(error.retry_after_s for error in failures)  # type: ignore[attr-defined]
    assert health(server) == health_pb2.HealthCheckResponse.NOT_SERVING
    assert health(server, "shoal.v1.ClassifyService") == health_pb2.HealthCheckResponse.NOT_SERVING
    eventually(lambda: answers(server))
    assert health(server) == health_pb2.HealthCheckResponse.SERVING
    assert server.children("engine")[0].pid != engine.pid
    assert server.metric("shoal_process_restarts_total", role="engine") == 1


def test_a_killed_front_is_replaced_on_the_same_port(server: ServerProcess) -> None:
    front = server.children("front")[0]
    front.kill()
    eventually(lambda: bool(server.children("front")) and server.children("front")[0].pid != front.pid)
    eventually(lambda: answers(server))


def test_a_killed_control_process_leaves_nobody_behind(server: ServerProcess) -> None:
    children = [*server.children("front"), *server.children("engine")]
    assert server.process is not None
    server.process.kill()
    server.process.wait(10)
    eventually(lambda: not any(child.is_running() and child.status() != "zombie" for child in children), 10)
    server.start()
    eventually(lambda: answers(server))


def test_sigterm_lets_running_streams_finish(server: ServerProcess) -> None:
    texts: list[int] = []

    def stream() -> None:
        with server.client() as client:
            reply = client.generate("llama", "hello", max_new_tokens=200, ignore_eos=True)
            texts.append(reply.summary.num_output_tokens)

    threads = [threading.Thread(target=stream) for _ in range(3)]
    for thread in threads:
        thread.start()
    time.sleep(0.15)
    assert server.stop() == 0
    for thread in threads:
        thread.join(10)
    assert texts == [200, 200, 200]
