"""The `config` command and the flags of `serve`."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from shoal_server import commands
from shoal_server.config import ConfigError


def configure(*argv: str) -> object:
    return commands._configure(commands._serve_parser().parse_args(list(argv)))


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SHOAL_SERVER__STATE_DIR", raising=False)


def test_shown_configuration_is_good(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.config(["show"]) == 0
    path = tmp_path / "shoal.yaml"
    path.write_text(capsys.readouterr().out)
    assert commands.config(["check", str(path)]) == 0
    assert capsys.readouterr().out == f"{path} is good\n"


def test_bad_configuration_is_one_line_and_code_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "shoal.yaml"
    path.write_text(yaml.safe_dump({"classify": {"token_budget": 1}}))
    assert commands.config(["check", str(path)]) == 2
    assert commands.serve(["--config", str(path)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    assert all("classify.token_budget is 1; allowed are 16 to" in line for line in lines)


def test_flags_win_over_environment_and_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "shoal.yaml"
    path.write_text(
        yaml.safe_dump({"state_dir": "/file", "repository": {"path": "/file"}, "engine": {"num_engines": 3}})
    )
    monkeypatch.setenv("SHOAL_SERVER__STATE_DIR", "/environment")
    monkeypatch.setenv("SHOAL_SERVER__REPOSITORY__PATH", "/environment")
    config = configure("--config", str(path), "--state-dir", "/with: colon", "--device", "cuda:1")
    assert config.state_dir == "/with: colon"  # type: ignore[attr-defined]
    assert config.repository.path == "/environment"  # type: ignore[attr-defined]
    assert config.engine.num_engines == 3  # type: ignore[attr-defined]
    assert config.engine.device == "cuda:1"  # type: ignore[attr-defined]


def test_port_and_host_replace_their_halves_of_the_address() -> None:
    listen = configure("--port", "7", "--metrics-port", "8").listen  # type: ignore[attr-defined]
    assert (listen.address, listen.metrics_address) == ("127.0.0.1:7", "127.0.0.1:8")
    assert configure("--host", "::1").listen.address == "[::1]:50051"  # type: ignore[attr-defined]


def test_open_address_needs_insecure() -> None:
    with pytest.raises(ConfigError, match="--insecure"):
        configure("--host", "0.0.0.0")
    assert configure("--host", "0.0.0.0", "--insecure").listen.insecure  # type: ignore[attr-defined]


def test_the_idle_time_of_a_model_is_checked_as_that_of_the_repository(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "shoal.yaml"
    path.write_text(yaml.safe_dump({"repository": {"models": {"topics": {"idle_unload_s": 0}}}}))
    assert commands.config(["check", str(path)]) == 2
    assert "repository.models.topics.idle_unload_s is 0" in capsys.readouterr().err
    path.write_text(yaml.safe_dump({"repository": {"idle_unload_s": 0}}))
    assert commands.config(["check", str(path)]) == 2
    assert "repository.idle_unload_s is 0.0; allowed are 1 to" in capsys.readouterr().err
