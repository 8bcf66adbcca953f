"""The whole control process with fake fronts and engines: small processes that speak the real messages."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from control_world import make_found
from shoal_models.manifest import publish
from shoal_server.ipc.calls import GetModel, ModelStatus

PEERS = '''
"""A front and an engine that do as they are told, and a front that notes what it hears."""
import asyncio, json, os, signal, socket, sys
import msgspec
from shoal_server.ipc import messages as m
from shoal_server.ipc.channel import ChannelClosed, connect

def front(startup):
    asyncio.run(_front(startup))

def engine(startup):
    asyncio.run(_engine(startup))

def broken(startup):
    sys.exit("no certificate")

def note(startup, **line):
    with open(os.environ["NOTES"], "a") as file:
        file.write(json.dumps(line) + "\\n")

async def _front(startup):
    host, _, port = startup.grpc_address.rpartition(":")
    listener = socket.socket()
    shared = startup.config.listen.num_fronts > 1
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT if shared else socket.SO_REUSEADDR, 1)
    listener.bind((host, int(port)))
    listener.listen()
    channel = await connect(startup.control_address, m.FromControlToFront)
    channel.send(m.FrontHello(front_id=startup.index, pid=os.getpid(), port=int(port)))
    two = m.Sample(labels=[], value=2)
    family = m.Family(name="shoal_fake", type="counter", help="", label_names=[], bounds=[], samples=[two])
    channel.send(m.MetricsSnapshot(front_id=startup.index, families=[family]))
    if os.path.exists(os.environ["NOTES"] + ".ask"):
        ask = json.load(open(os.environ["NOTES"] + ".ask"))
        channel.send(m.ControlCall(call_id=7, method=ask["method"], arguments=ask["arguments"]))
    while True:
        try:
            received = await channel.receive()
        except ChannelClosed:
            return
        for message in received:
            if isinstance(message, m.Routing):
                channel.send(m.RoutingApplied(front_id=startup.index, revision=message.revision, in_flight={}))
                live = {model.name: model.default_version for model in message.models}
                note(startup, front=startup.index, serving=message.serving, live=live, engines=len(message.engines))
            elif isinstance(message, m.PrepareVersion):
                channel.send(m.VersionPrepared(front_id=startup.index, model=message.model, version=message.version))
            elif isinstance(message, m.ControlReply):
                note(startup, reply=msgspec.to_builtins(message))
            elif isinstance(message, m.Drain):
                note(startup, drained=startup.index)
                await asyncio.sleep(float(os.environ.get("DRAIN_TAKES", "0")))
                return

async def _engine(startup):
    channel = await connect(startup.control_address, m.LoadVersion | m.UnloadVersion)
    cpu = {"device": "cpu", "device_name": "cpu", "compute_dtype": "float32"}
    channel.send(m.EngineHello(engine_id=startup.index, pid=os.getpid(), address="/none", **cpu))
    while True:
        try:
            received = await channel.receive()
        except ChannelClosed:
            return
        for message in received:
            subject = {"engine_id": startup.index, "model": message.model, "version": message.version}
            if isinstance(message, m.LoadVersion):
                memory = m.VersionMemory(weight_bytes=1, cache_bytes=0, reckoned_bytes=1)
                facts = {"execution": "packed", "compute_dtype": "float32", "memory": memory, "kv_cache_tokens": 0}
                channel.send(m.VersionLoaded(load_s=0.1, **subject, **facts))
            else:
                channel.send(m.VersionUnloaded(**subject))
'''

START = """
import sys
from shoal_server.control import server

server.ControlServer.__init__.__kwdefaults__.update(
    front_entry=sys.argv[2], engine_entry="fake_peers:engine"
)
from shoal_server.commands import serve
sys.exit(serve(["--config", sys.argv[1]]))
"""


class FakeServer:
    """`shoal serve` with fake children, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state_dir = folder / "state"
        self.repository = folder / "models"
        self.notes_path = folder / "notes"
        self.config: dict[str, Any] = {
            "state_dir": str(self.state_dir),
            "listen": {"address": "127.0.0.1:0", "metrics_address": "127.0.0.1:0", "lame_duck_s": 0.0, "drain_s": 5.0},
            "repository": {"path": str(self.repository), "poll_interval_s": 0.1},
            "log": {"level": "DEBUG"},
        }
        self.environment: dict[str, str] = {}
        self.front = "fake_peers:front"
        self.process: subprocess.Popen[str] | None = None
        (folder / "fake_peers.py").write_text(PEERS)

    def spawn(self) -> subprocess.Popen[str]:
        path = self.folder / "shoal.yaml"
        path.write_text(yaml.safe_dump(self.config))
        python_path = os.pathsep.join(filter(None, [str(self.folder), os.environ.get("PYTHONPATH")]))
        environment = {**os.environ, "PYTHONPATH": python_path, "NOTES": str(self.notes_path), **self.environment}
        self.process = subprocess.Popen(
            [sys.executable, "-c", START, str(path), self.front],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return self.process

    def start(self) -> dict[str, int]:
        process = self.spawn()
        file = self.state_dir / "server.json"
        limit = time.monotonic() + 30
        while not file.exists():
            assert process.poll() is None, process.communicate()[0]
            assert time.monotonic() < limit
            time.sleep(0.02)
        place: dict[str, int] = json.loads(file.read_text())
        return place

    def fail(self) -> tuple[int, str]:
        """Start a server that must not come up: its exit code and what it said."""
        process = self.spawn()
        output, _ = process.communicate(timeout=30)
        return process.returncode, output

    def stop(self) -> tuple[int, str]:
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        output, _ = self.process.communicate(timeout=30)
        return self.process.returncode, output

    def publish(self, model: str = "m") -> int:
        manifest = make_found(model, 1).manifest
        assert manifest is not None
        return publish(self.repository, manifest, lambda folder: (folder / "config.json").touch()).version

    def notes(self) -> list[dict[str, Any]]:
        if not self.notes_path.exists():
            return []
        return [json.loads(line) for line in self.notes_path.read_text().splitlines()]

    def until_note(self, **wanted: Any) -> dict[str, Any]:
        limit = time.monotonic() + 30
        while True:
            for note in self.notes():
                if wanted.items() <= note.items():
                    return note
            assert time.monotonic() < limit, self.notes()
            time.sleep(0.02)

    def children(self) -> list[int]:
        assert self.process is not None
        path = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children")
        return [int(pid) for pid in path.read_text().split()]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FakeServer]:
    made = FakeServer(tmp_path)
    yield made
    if made.process is not None and made.process.poll() is None:
        made.process.kill()
        made.process.communicate()


def scrape(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as reply:
        text: str = reply.read().decode()
        return text


def test_versions_go_live_and_are_replaced_and_the_server_ends_in_good_order(server: FakeServer) -> None:
    server.config["listen"]["num_fronts"] = 2
    server.publish()
    place = server.start()
    assert place["pid"] == server.process.pid  # type: ignore[union-attr]
    server.until_note(live={"m": 1}, serving=True)
    server.publish()
    server.until_note(live={"m": 2}, serving=True)
    text = scrape(place["metrics_port"])
    assert "shoal_fake_total 4.0" in text  # two fronts, two each
    assert 'shoal_version_state{model="m",state="live",version="2"} 1.0' in text
    code, output = server.stop()
    assert code == 0
    assert f"Shoal is listening on 127.0.0.1:{place['grpc_port']}" in output
    assert {note["drained"] for note in server.notes() if "drained" in note} == {0, 1}
    assert not (server.state_dir / "server.json").exists()


def test_killed_engine_leaves_the_routing_and_comes_back(server: FakeServer) -> None:
    server.publish()
    server.start()
    server.until_note(live={"m": 1}, serving=True)
    server.notes_path.unlink()
    engine = next(pid for pid in server.children() if b":engine" in Path(f"/proc/{pid}/cmdline").read_bytes())
    os.kill(engine, signal.SIGKILL)
    server.until_note(serving=False, engines=0)
    server.until_note(serving=True, engines=1)
    assert engine not in server.children()


def test_model_call_of_a_front_is_answered(server: FakeServer) -> None:
    server.publish()
    Path(f"{server.notes_path}.ask").write_text(json.dumps({"method": GetModel.__name__, "arguments": {"name": "m"}}))
    server.start()
    limit = time.monotonic() + 20
    while not (replies := [note["reply"] for note in server.notes() if "reply" in note]):
        assert time.monotonic() < limit
        time.sleep(0.02)
    assert replies[0][1] == 7  # tag, call id, then result
    assert set(ModelStatus.__struct_fields__) == set(replies[0][2])


def test_second_signal_ends_at_once(server: FakeServer) -> None:
    server.environment["DRAIN_TAKES"] = "20"
    server.start()
    assert server.process is not None
    server.process.send_signal(signal.SIGTERM)
    server.until_note(drained=0)
    began = time.monotonic()
    code, _ = server.stop()
    assert code == 128 + signal.SIGTERM
    assert time.monotonic() - began < 10


def test_front_that_cannot_start_ends_the_server_with_its_name(server: FakeServer) -> None:
    server.front = "fake_peers:broken"
    code, output = server.fail()
    assert code == 1
    assert "front-0 ended 3 times before it was ready" in output
    assert "Traceback" not in output


def test_taken_ports_are_named(server: FakeServer) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for key in ("address", "metrics_address"):
            before = server.config["listen"][key]
            server.config["listen"][key] = address
            code, output = server.fail()
            server.config["listen"][key] = before
            assert code == 3
            assert f"{address} is taken" in output
            assert "Traceback" not in output


@pytest.mark.parametrize("num_fronts", [1, 2])
def test_second_server_on_the_same_port_is_refused(server: FakeServer, tmp_path: Path, num_fronts: int) -> None:
    server.config["listen"]["num_fronts"] = num_fronts
    place = server.start()
    (tmp_path / "other").mkdir()
    other = FakeServer(tmp_path / "other")
    other.config["listen"] |= {"num_fronts": num_fronts, "address": f"127.0.0.1:{place['grpc_port']}"}
    code, output = other.fail()
    assert code == 3
    assert "is taken" in output


def test_state_folder_in_use_is_named(server: FakeServer, tmp_path: Path) -> None:
    server.start()
    (tmp_path / "other").mkdir()
    other = FakeServer(tmp_path / "other")
    other.config["state_dir"] = str(server.state_dir)
    code, output = other.fail()
    assert code == 5
    assert f"state_dir {server.state_dir} is in use by another server" in output
    assert (server.state_dir / "server.json").exists()


def test_newer_database_is_refused(server: FakeServer) -> None:
    server.state_dir.mkdir()
    with sqlite3.connect(server.state_dir / "jobs.sqlite") as connection:
        connection.execute("PRAGMA user_version = 999")
    connection.close()
    code, output = server.fail()
    assert code == 6
    assert "schema version 999" in output


def test_state_folder_that_is_a_file(server: FakeServer) -> None:
    server.state_dir.touch()
    code, output = server.fail()
    assert code == 4
    assert str(server.state_dir) in output


def test_repository_is_created(server: FakeServer) -> None:
    server.config["engine"] = {"num_engines": 0}
    server.start()
    server.until_note(serving=True, live={})
    assert server.repository.is_dir()


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB; skipped where none may be mounted."""
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)], capture_output=True)
    if mounted.returncode != 0:
        pytest.skip("no file system can be mounted here")
    (place / "filler").write_bytes(b"\0" * 60 * 1024)
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_full_disk_is_named(server: FakeServer, full_disk: Path) -> None:
    server.config["state_dir"] = str(full_disk / "state")
    code, output = server.fail()
    assert code == 4
    assert "is on a full disk" in output


def test_fake_peers_end_with_their_parent(server: FakeServer) -> None:
    server.start()
    children = server.children()
    assert len(children) == 2
    assert server.process is not None
    server.process.kill()
    server.process.communicate()
    limit = time.monotonic() + 10
    while any(is_running(pid) for pid in children):
        assert time.monotonic() < limit
        time.sleep(0.02)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False
