"""What cannot start says why in a line and ends with a code of its own."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from harness.server import ServerProcess


def failure(server: ServerProcess) -> tuple[int, str]:
    """Exit code and output of a server that must not come up."""
    process = server.spawn()
    code = process.wait(60)
    return code, server.log()


def test_two_servers_on_one_port(tmp_path: Path, tiny_server: ServerProcess) -> None:
    changes: dict[str, Any] = {"listen": {"address": tiny_server.address}}
    code, output = failure(ServerProcess(tmp_path, tmp_path / "models", changes))
    assert code not in {0, None}
    assert str(tiny_server.grpc_port) in output
    assert "Traceback" not in output


def test_two_servers_on_one_metrics_port(tmp_path: Path, tiny_server: ServerProcess) -> None:
    changes: dict[str, Any] = {"listen": {"metrics_address": f"127.0.0.1:{tiny_server.metrics_port}"}}
    code, output = failure(ServerProcess(tmp_path, tmp_path / "models", changes))
    assert code != 0
    assert str(tiny_server.metrics_port) in output
    assert "Traceback" not in output


def test_two_servers_on_one_state_folder(tmp_path: Path, tiny_server: ServerProcess) -> None:
    code, output = failure(ServerProcess(tmp_path, tmp_path / "models", {"state_dir": str(tiny_server.state_dir)}))
    assert code != 0
    assert str(tiny_server.state_dir) in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"classify": {"token_budget": 1}}, ("classify.token_budget", "16")),
        ({"clasify": {}}, ("clasify",)),
        ({"listen": {"address": "0.0.0.0:0"}}, ("--insecure",)),
        ({"services": ["classify", "sing"]}, ("sing",)),
    ],
    ids=["range", "unknown section", "open to the world", "unknown service"],
)
def test_a_bad_configuration_names_key_and_range(
    tmp_path: Path, changes: dict[str, Any], words: tuple[str, ...]
) -> None:
    code, output = failure(ServerProcess(tmp_path, tmp_path / "models", changes))
    assert code == 2
    assert all(word in output for word in words), output
    assert "Traceback" not in output


def test_a_newer_database_is_refused_by_name(tmp_path: Path) -> None:
    with ServerProcess(tmp_path, tmp_path / "models", {"engine": {"num_engines": 0}}) as server:
        assert server.stop() == 0
    (database,) = server.state_dir.glob("*.sqlite*")
    with sqlite3.connect(database) as connection:
        connection.execute("PRAGMA user_version = 999")
    code, output = failure(ServerProcess(tmp_path, tmp_path / "models", {"engine": {"num_engines": 0}}))
    assert code != 0
    assert "999" in output
    assert "Traceback" not in output


@pytest.mark.skipif(os.geteuid() == 0 and not Path("/proc/self/ns/user").exists(), reason="root may write anywhere")
def test_a_state_folder_that_cannot_be_made(tmp_path: Path) -> None:
    blocker = tmp_path / "file"
    blocker.write_text("not a folder")
    code, output = failure(
        ServerProcess(tmp_path / "server", tmp_path / "models", {"state_dir": str(blocker / "state")})
    )
    assert code != 0
    assert str(blocker) in output
    assert "Traceback" not in output


def test_config_show_prints_what_config_check_takes(tmp_path: Path) -> None:
    def shoal(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "shoal.cli", *arguments], capture_output=True, text=True, timeout=60
        )

    shown = shoal("config", "show")
    assert shown.returncode == 0
    path = tmp_path / "shoal.yaml"
    path.write_text(shown.stdout)
    assert shoal("config", "check", str(path)).returncode == 0
    path.write_text(shown.stdout.replace("token_budget: 512", "token_budget: many"))
    wrong = shoal("config", "check", str(path))
    assert wrong.returncode != 0
    assert "token_budget" in wrong.stderr
