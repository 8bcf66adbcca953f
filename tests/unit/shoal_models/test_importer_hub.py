"""Hub ids are fetched from a server that answers as a hub does; `HF_ENDPOINT` names it."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from shoal_models.importer import ImportRefused, import_model
from tiny_models import CLASSIFIERS, tiny_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass(slots=True, kw_only=True)
class Hub:
    """Repositories of files, and what was asked for."""

    repositories: dict[str, Path] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    address: str = ""

    def fetched(self) -> set[str]:
        """Names of the files whose bytes were asked for."""
        return {path.rsplit("/", 1)[1] for path in self.asked if path.startswith("GET") and "/resolve/" in path}


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.asked.append(f"{self.command} {path}")
            if path.startswith("/api/models/"):
                self._answer_api(path.removeprefix("/api/models/"))
            else:
                self._answer_file(path.lstrip("/"))

        do_HEAD = do_GET

        def _answer_api(self, path: str) -> None:
            name, _, rest = path.partition("/revision/")
            name, _, tree = name.partition("/tree/")
            folder = hub.repositories.get(name)
            if folder is None:
                self._send(404, b"{}", {"X-Error-Code": "RepoNotFound", "X-Error-Message": "Repository not found"})
                return
            if rest not in {"", "main", COMMIT}:
                self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound", "X-Error-Message": "no such revision"})
                return
            files = sorted(file for file in folder.rglob("*") if file.is_file())
            if tree:
                entries = [
                    {"type": "file", "path": str(f.relative_to(folder)), "size": f.stat().st_size, "oid": _digest(f)}
                    for f in files
                ]
                self._send(200, json.dumps(entries).encode())
                return
            siblings = [{"rfilename": str(file.relative_to(folder))} for file in files]
            facts = {"id": name, "modelId": name, "sha": COMMIT, "siblings": siblings, "tags": [], "private": False}
            facts["cardData"] = {"license": "apache-2.0"}
            self._send(200, json.dumps(facts).encode())

        def _answer_file(self, path: str) -> None:
            name, _, rest = path.partition("/resolve/")
            _, _, file_name = rest.partition("/")
            file = hub.repositories.get(name, Path("/nowhere")) / file_name
            if not file.is_file():
                self._send(404, b"", {"X-Error-Code": "EntryNotFound"})
                return
            self._send(200, file.read_bytes(), {"ETag": f'"{_digest(file)}"', "X-Repo-Commit": COMMIT})

        def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
            self.send_response(status)
            for key, value in (headers or {}).items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    return Handler


def _digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hub cache of the test's own, and no offline mode whatever the environment says."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub on the loopback address."""
    found = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(found))
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    found.address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("HF_ENDPOINT", found.address)
    yield found
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def folder(tmp_path: Path, tokenizer: Any) -> Path:
    """What the hub serves: safetensors beside things that nobody should fetch."""
    found = tmp_path / "served"
    tiny_model("BertForSequenceClassification", CLASSIFIERS["Bert"]()).save_pretrained(found)
    tokenizer.save_pretrained(found)
    (found / "pytorch_model.bin").write_bytes(b"\x80\x04N.")
    (found / "modeling_evil.py").write_text("raise SystemExit")
    (found / "onnx").mkdir()
    (found / "onnx" / "config.json").write_text("{}")
    return found


def test_a_hub_id_becomes_a_version(tmp_path: Path, hub: Hub, folder: Path) -> None:
    hub.repositories["org/bert"] = folder
    manifest = import_model("m", "org/bert", tmp_path / "models")
    assert manifest.kind == "classifier"
    assert manifest.source == f"hub:org/bert@{COMMIT}"
    assert manifest.licence == "apache-2.0"
    assert hub.fetched() == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert not [path for path in hub.asked if "onnx" in path]


def test_a_pickle_only_repository_is_refused_before_anything_is_fetched(tmp_path: Path, hub: Hub, folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    hub.repositories["org/pickled"] = folder
    with pytest.raises(ImportRefused, match=r"org/pickled has only pickled weights \(pytorch_model\.bin\)"):
        import_model("m", "org/pickled", tmp_path / "models")
    assert hub.fetched() == set()


def test_a_repository_of_gguf_files_is_told_how(tmp_path: Path, hub: Hub) -> None:
    served = tmp_path / "ggufs"
    served.mkdir()
    (served / "tiny.Q4_0.gguf").write_bytes(b"GGUF")
    hub.repositories["org/ggufs"] = served
    with pytest.raises(ImportRefused, match=r"name one of its GGUF files, such as tiny\.Q4_0\.gguf"):
        import_model("m", "org/ggufs", tmp_path / "models")


@pytest.mark.parametrize(
    ("hub_id", "revision"), [("org/absent", None), ("org/bert", "no-such-branch")], ids=["repository", "revision"]
)
def test_what_the_hub_does_not_have_is_refused(
    tmp_path: Path, hub: Hub, folder: Path, hub_id: str, revision: str | None
) -> None:
    hub.repositories["org/bert"] = folder
    with pytest.raises(ImportRefused, match=f"{hub_id} cannot be fetched from {hub.address}: "):
        import_model("m", hub_id, tmp_path / "models", revision=revision)


def test_a_hub_that_does_not_answer_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ImportRefused, match=r"org/bert cannot be fetched from http://127\.0\.0\.1:9: "):
        import_model("m", "org/bert", tmp_path / "models")
