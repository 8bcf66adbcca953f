"""Try the bare client with the oldest and the newest versions of what it depends on.

Builds the wheel, installs it into two throw-away environments (every dependency at its lower bound of `pyproject.toml`,
and everything at its newest) and in each of them asks a tiny server over real gRPC. Needs a package index.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SHOWN = ("grpcio", "grpcio-status", "protobuf", "googleapis-common-protos", "rich")

PROBE = """
import asyncio, contextlib, io, os, sys
from concurrent.futures import ThreadPoolExecutor
import shoal
from shoal.cli import main

foreign = {"torch", "transformers", "numpy", "yaml", "msgspec", "shoal_server", "shoal_models", "shoal_training"}
assert not foreign & set(sys.modules), foreign & set(sys.modules)
for name in ("torch", "msgspec", "yaml"):
    try:
        __import__(name)
    except ModuleNotFoundError:
        continue
    raise AssertionError(f"{name} is installed beside the bare client")

import grpc
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status
from shoal.v1 import classify_pb2, classify_pb2_grpc, common_pb2

def refusal():
    status = status_pb2.Status(code=code_pb2.NOT_FOUND, message="no such model")
    status.details.add().Pack(error_details_pb2.ErrorInfo(reason="MODEL_NOT_FOUND"))
    return status

class Tiny(classify_pb2_grpc.ClassifyServiceServicer):
    calls = 0

    def Classify(self, request, context):
        if request.model.name == "missing":
            context.abort_with_status(rpc_status.to_status(refusal()))
        Tiny.calls += 1
        if Tiny.calls == 1:
            context.set_trailing_metadata((("grpc-retry-pushback-ms", "20"),))
            context.abort(grpc.StatusCode.UNAVAILABLE, "later")
        results = [classify_pb2.Classification(label_ids=[1, 0], scores=[0.75, 0.25]) for _ in request.inputs]
        served_by = common_pb2.ServedBy(model=request.model.name, version=3)
        return classify_pb2.ClassifyResponse(served_by=served_by, labels=["a", "b"], results=results)

    def StreamClassify(self, requests, context):
        for request in requests:
            if request.HasField("start") and request.start.model.name == "dying":
                context.abort(grpc.StatusCode.UNAVAILABLE, "the engine was lost")
            result = classify_pb2.Classification(label_ids=[0], scores=[1.0])
            answers = [classify_pb2.StreamClassifyAnswer(id=item.id, result=result) for item in request.items]
            if answers:
                yield classify_pb2.StreamClassifyResponse(answers=answers, labels=["a", "b"])

server = grpc.server(ThreadPoolExecutor(4))
classify_pb2_grpc.add_ClassifyServiceServicer_to_server(Tiny(), server)
port = server.add_insecure_port("127.0.0.1:0")
server.start()
os.environ["SHOAL_ADDRESS"] = f"127.0.0.1:{port}"
try:
    with shoal.Client() as client:
        reply = client.classify("demo", ["x", "y"])
        assert [(r.label, r.score) for r in reply] == [("b", 0.75)] * 2 and reply.version == 3
        assert Tiny.calls == 2, "UNAVAILABLE with pushback was not retried"
        assert [o.index for o in client.classify_stream("demo", (str(n) for n in range(300)))] == list(range(300))
        for _ in range(20):
            try:
                list(client.classify_stream("dying", (str(n) for n in range(300))))
            except shoal.UnavailableError as error:
                assert "engine was lost" in str(error)
            else:
                raise AssertionError("a broken stream ended well")
        try:
            client.classify("missing", "x")
        except shoal.NotFoundError as error:
            assert error.reason == "MODEL_NOT_FOUND"
        else:
            raise AssertionError("a refusal went unnoticed")
    async def ask():
        async with shoal.AsyncClient() as client:
            return (await client.classify("demo", ("one", "two"))).results[0].label
    assert asyncio.run(ask()) == "b"
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        assert main(["classify", "demo", "some text"]) == 0
        assert main(["serve"]) == 2
    assert "some text" in out.getvalue() and "pip install 'shoal[server]'" in err.getvalue(), (out, err)
finally:
    server.stop(0).wait()
"""


def main() -> int:
    """Entry point; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", nargs="*", metavar="oldest|newest", help="default: both")
    wanted = parser.parse_args().which or ["oldest", "newest"]
    with tempfile.TemporaryDirectory(prefix="shoal-client-") as name:
        folder = Path(name)
        wheel = build_wheel(folder)
        results = {which: try_versions(folder, wheel, which) for which in wanted}
    return 0 if all(results.values()) else 1


def build_wheel(folder: Path) -> Path:
    """The wheel of the working tree."""
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(command, check=True)
    return next(folder.glob("shoal-*.whl"))


def lower_bounds() -> list[str]:
    """Every dependency of the bare client, pinned to the oldest version that is allowed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pins: list[str] = []
    for requirement in project["dependencies"]:
        match = re.match(r"([A-Za-z0-9._-]+)\s*>=\s*([0-9.]+)", requirement)
        if match is None:
            raise SystemExit(f"{requirement!r} has no lower bound")
        pins.append(f"{match[1]}=={match[2]}")
    return pins


def try_versions(folder: Path, wheel: Path, which: str) -> bool:
    """Install and probe; whether it went well."""
    environment = folder / which
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    pins = lower_bounds() if which == "oldest" else []
    upgrade = [] if which == "oldest" else ["--upgrade", "--upgrade-strategy", "eager"]
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "--quiet", *upgrade]
    subprocess.run([*pip, str(wheel), *pins], check=True)
    frozen = subprocess.run([str(python), "-m", "pip", "freeze"], check=True, capture_output=True, text=True).stdout
    versions = dict(line.split("==") for line in frozen.splitlines() if "==" in line)
    ended = subprocess.run([str(python), "-W", "error", "-c", PROBE], cwd=folder, timeout=120)
    said = "works" if ended.returncode == 0 else "FAILS"
    print(f"{which}: {said} with " + ", ".join(f"{name} {versions[name]}" for name in SHOWN), flush=True)
    return ended.returncode == 0


if __name__ == "__main__":
    sys.exit(main())
