"""Every query of the overview dashboard on a real Prometheus that scrapes a real server under load."""

from __future__ import annotations

import json
import math
import re
import socket
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness import models, tiny
from harness.server import ServerProcess
from harness.tools import ROOT, tool
from shoal import Client, RpcError

DASHBOARD = ROOT / "deploy" / "grafana" / "overview.json"
RULES = ROOT / "deploy" / "prometheus" / "rules"
SCRAPE_S = 0.5
LOAD_S = 8.0
# Panels about running jobs, of which there is none: their queries must run, and may find nothing.
MAY_BE_EMPTY = {"Progress", "Training loss"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """One target of one panel."""

    panel: str
    ref: str
    expr: str


def dashboard_queries() -> list[Query]:
    board = json.loads(DASHBOARD.read_text())
    return [
        Query(panel=panel["title"], ref=target["refId"], expr=target["expr"])
        for panel in board["panels"]
        if panel["type"] != "row"
        for target in panel["targets"]
    ]


class Prometheus:
    """A Prometheus on loopback that scrapes one address."""

    def __init__(self, folder: Path, target: str) -> None:
        self._folder = folder
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = int(probe.getsockname()[1])
        config = {
            "global": {"scrape_interval": f"{int(SCRAPE_S * 1000)}ms", "scrape_timeout": "400ms"},
            "rule_files": [str(RULES / "*.yml")],
            "scrape_configs": [{"job_name": "shoal", "static_configs": [{"targets": [target]}]}],
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Prometheus:
        with (self._folder / "prometheus.log").open("wb") as log:
            self._process = subprocess.Popen(
                [
                    tool("prometheus"),
                    f"--config.file={self._folder / 'prometheus.yml'}",
                    f"--storage.tsdb.path={self._folder / 'data'}",
                    f"--web.listen-address=127.0.0.1:{self._port}",
                ],
                stdout=log,
                stderr=log,
                env={"GOMAXPROCS": "1"},
            )
        limit = time.monotonic() + 30
        while not self._is_ready():
            assert self._process.poll() is None, (self._folder / "prometheus.log").read_text()
            assert time.monotonic() < limit, (self._folder / "prometheus.log").read_text()
            time.sleep(0.1)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process is not None
        self._process.terminate()
        self._process.wait(20)

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/-/ready", timeout=2) as reply:
                return bool(reply.status == 200)
        except OSError:
            return False

    def query(self, expr: str) -> list[dict[str, Any]]:
        """The series of an instant query; fails with Prometheus' own words."""
        form = urllib.parse.urlencode({"query": expr}).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self._port}/api/v1/query", data=form)
        try:
            with urllib.request.urlopen(request, timeout=10) as reply:
                answer = json.loads(reply.read())
        except urllib.error.HTTPError as error:
            pytest.fail(f"{expr}: {error.read().decode()}")
        found: list[dict[str, Any]] = answer["data"]["result"]
        return found


def load(client: Client, limit_s: float) -> None:
    """Some of everything that a client does, its mistakes included."""
    end = time.monotonic() + limit_s
    texts = tiny.texts(1, 64, longest=20)
    turn = 0
    while time.monotonic() < end:
        client.classify("bert", [texts[turn % len(texts)], texts[(turn + 7) % len(texts)]])
        client.generate("llama", texts[turn % len(texts)], temperature=0, max_new_tokens=8, ignore_eos=True)
        with pytest.raises(RpcError):
            client.classify("bert", [""])
        turn += 1
        time.sleep(0.02)
    assert turn > 10


@pytest.fixture(scope="module")
def prometheus(
    tmp_path_factory: pytest.TempPathFactory, tiny_repository: Path, tiny_server: ServerProcess
) -> Iterator[Prometheus]:
    """Has watched a server under load, which refused a damaged version meanwhile."""
    target = f"127.0.0.1:{tiny_server.metrics_port}"
    with Prometheus(tmp_path_factory.mktemp("prometheus"), target) as running, tiny_server.client() as client:
        publish_damaged(tiny_repository)
        load(client, LOAD_S)
        yield running


def publish_damaged(repository: Path) -> None:
    """Put bert@2 beside bert@1, one bit of its weights flipped."""
    folder = models.copy_version(repository, "bert", repository / "bert" / "1", 2)
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)[0]
        file.seek(-1, 2)
        file.write(bytes([last ^ 1]))


def rules(file: str) -> list[dict[str, Any]]:
    groups = yaml.safe_load((RULES / file).read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def on_this_server(expr: str) -> str:
    """The query as Grafana would send it with everything selected."""
    return expr.replace("$__rate_interval", "30s").replace("$job", ".*").replace("$instance", ".*")


@pytest.mark.parametrize("query", dashboard_queries(), ids=lambda query: f"{query.panel} {query.ref}".replace(" ", "-"))
def test_query_runs_and_finds_what_it_should(query: Query, prometheus: Prometheus) -> None:
    expr = on_this_server(query.expr)
    assert "$" not in expr
    found = prometheus.query(expr)
    if query.panel not in MAY_BE_EMPTY:
        values = [float(series["value"][1]) for series in found]
        assert any(not math.isnan(value) for value in values), f"{expr} found {found}"


def test_scrape_is_clean_and_recording_rules_find_something(prometheus: Prometheus) -> None:
    assert [series["value"][1] for series in prometheus.query('up{job="shoal"}')] == ["1"]
    for rule in rules("recording.yml"):
        assert prometheus.query(rule["expr"].replace("[5m]", "[30s]")), rule["record"]


def test_only_the_refused_version_is_alarming(prometheus: Prometheus) -> None:
    firing = {rule["alert"]: prometheus.query(rule["expr"]) for rule in rules("alerts.yml")}
    (refused,) = firing.pop("ShoalVersionRejected")
    assert (refused["metric"]["model"], refused["metric"]["version"]) == ("bert", "2")
    assert not {alert: found for alert, found in firing.items() if found}


def test_every_metric_that_is_asked_for_exists() -> None:
    """A name that nobody serves would leave a panel or an alert silent; some have no series before a job runs."""
    sources = "".join(path.read_text() for path in (ROOT / "server" / "shoal_server").rglob("*.py"))
    served = set(re.findall(r'"(shoal_[a-z_]+)"', sources))
    asked = "".join(path.read_text() for path in RULES.glob("*.yml")) + " ".join(q.expr for q in dashboard_queries())
    names = {re.sub(r"_(total|bucket|sum|count)$", "", name) for name in re.findall(r"\bshoal_[a-z_]+", asked)}
    # "_total" ends the names of counters, and of two gauges.
    assert not {name for name in names if name not in served and f"{name}_total" not in served}


def test_committed_dashboard_is_what_the_script_builds() -> None:
    command = [sys.executable, str(ROOT / "scripts" / "build_dashboard.py"), "--check"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert found.returncode == 0, found.stderr
