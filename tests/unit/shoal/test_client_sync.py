"""The blocking facade: the same calls, from any thread, with streams that end their calls."""

from __future__ import annotations

import inspect
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from shoal import AsyncClient, Client, ConfigurationError, NotFoundError
from shoal_fake_server import FakeServer


def public(cls: type) -> dict[str, inspect.Signature]:
    return {
        name: inspect.signature(member)
        for name, member in inspect.getmembers(cls, inspect.isfunction)
        if name[0] != "_"
    }


def test_both_clients_offer_the_same_calls_with_the_same_arguments() -> None:
    blocking, other = public(Client), public(AsyncClient)
    assert set(blocking) == set(other)
    for name, signature in blocking.items():
        ours = [(p.name, p.kind, p.default) for p in signature.parameters.values()]
        theirs = [(p.name, p.kind, p.default) for p in other[name].parameters.values()]
        assert ours == theirs, name


def test_many_threads_share_one_client(server: FakeServer) -> None:
    def ask(number: int) -> tuple[int, str]:
        reply = client.classify("demo", "x" * number, request_id=f"id-{number}")
        with client.stream_generate("demo", f"prompt {number}") as stream:
            text = "".join(delta.text for delta in stream)
        assert text == f"prompt {number} goes on "
        return reply[0].num_input_tokens, reply.request_id

    with Client(server.address) as client, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(1, 60)))
    assert answers == [(number + 2, f"id-{number}") for number in range(1, 60)]


def test_errors_come_out_as_they_are(server: FakeServer) -> None:
    with Client(server.address) as client, pytest.raises(NotFoundError, match="there is: demo"):
        client.classify("missing", "x")


def test_break_closes_the_call_though_the_stream_is_still_held(server: FakeServer) -> None:
    with Client(server.address) as client:
        stream = client.stream_generate("endless", "x")
        for _ in stream:
            break
        assert server.record.cancelled.wait(5)
        stream.close()


def test_an_exception_in_the_loop_closes_the_call(server: FakeServer) -> None:
    with Client(server.address) as client:

        def stumble() -> None:
            for _ in client.stream_generate("endless", "x"):
                raise LookupError

        with pytest.raises(LookupError):
            stumble()
        assert server.record.cancelled.wait(5)


def test_a_stream_of_a_closed_client_is_over(server: FakeServer) -> None:
    client = Client(server.address)
    stream = client.stream_generate("endless", "x")
    next(stream)
    client.close()
    client.close()
    assert server.record.cancelled.wait(5)
    stream.close()
    with pytest.raises(ConfigurationError, match="closed"):
        client.get_model("demo")


def test_closing_from_another_thread_ends_a_waiting_reader(server: FakeServer) -> None:
    with Client(server.address) as client:
        stream = client.watch_training_job("job-open")
        closer = threading.Timer(0.5, stream.close)
        closer.start()
        assert len(list(stream)) == 7
        closer.join()
        assert server.record.cancelled.wait(5)


def test_a_blocking_iterable_is_streamed_as_it_comes(server: FakeServer) -> None:
    """Each item is asked for only after the answer to the one before: reading and answering run side by side."""
    answered = threading.Semaphore(1)

    def items() -> Iterator[str]:
        for number in range(5):
            assert answered.acquire(timeout=5)
            yield f"item {number}"

    with Client(server.address) as client, client.classify_stream("prompt", items()) as outcomes:
        for number, outcome in enumerate(outcomes):
            assert outcome.index == number
            answered.release()
    assert number == 4


def test_what_a_blocking_iterable_raises_comes_out(server: FakeServer) -> None:
    def failing() -> Iterator[str]:
        yield "x"
        raise LookupError("no more")

    with Client(server.address) as client, pytest.raises(LookupError, match="no more"):
        list(client.classify_stream("demo", failing()))


def test_leaving_a_stream_stops_reading_its_input(server: FakeServer) -> None:
    taken = 0

    def endless() -> Iterator[str]:
        nonlocal taken
        while True:
            taken += 1
            yield "x"

    with Client(server.address) as client:
        with client.classify_stream("demo", endless(), max_unanswered=4) as outcomes:
            next(outcomes)
        time.sleep(0.2)
        after = taken
        time.sleep(0.2)
    assert taken == after <= 4 + 64 + 2
    assert not any(thread.name == "shoal-feed" for thread in threading.enumerate())


def test_the_loop_thread_ends_with_the_last_client(server: FakeServer) -> None:
    def running() -> bool:
        return any(thread.name == "shoal-client" for thread in threading.enumerate())

    first, second = Client(server.address), Client(server.address)
    first.close()
    assert second.get_model("demo").name == "demo"
    assert running()
    second.close()
    assert not running()


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


def test_a_client_that_is_never_closed_does_not_disturb_the_end(server: FakeServer) -> None:
    ended = run_python(
        f"from shoal import Client; client = Client({server.address!r});"
        "stream = client.stream_generate('endless', 'x'); print(next(stream).text)"
    )
    assert (ended.returncode, ended.stdout.strip(), ended.stderr) == (0, "tick", "")


def test_import_needs_neither_torch_nor_the_server() -> None:
    ended = run_python(
        "import sys, shoal; print(sorted({'torch', 'transformers', 'numpy', 'yaml', 'msgspec', 'rich', 'shoal_server',"
        " 'shoal_models', 'shoal_training'} & set(sys.modules)))"
    )
    assert ended.stdout.strip() == "[]"


def test_quickstart_runs_and_is_what_the_readme_shows(server: FakeServer, capsys: pytest.CaptureFixture[str]) -> None:
    root = Path(__file__).parents[3]
    program = (root / "examples/quickstart.py").read_text().partition('"""\n\n')[2]
    assert f"```python\n{program}```" in (root / "README.md").read_text()
    exec(program.replace("127.0.0.1:50051", server.address), {})
    classified, streamed = capsys.readouterr().out.split("\n2:")
    assert all(" by version " in line for line in classified.splitlines())
    assert streamed.startswith("In one short paragraph: why do fish swim in shoals?")
