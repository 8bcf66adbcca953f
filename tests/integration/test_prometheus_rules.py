"""Alert and recording rules: promtool accepts them and their unit tests pass, and no alert is without a test."""

from __future__ import annotations

import subprocess

import yaml
from harness.tools import ROOT, tool

PROMETHEUS = ROOT / "deploy" / "prometheus"


def promtool(*arguments: str) -> str:
    """What promtool prints; fails with it."""
    found = subprocess.run([tool("promtool"), *arguments], capture_output=True, text=True, timeout=120)
    assert found.returncode == 0, found.stdout + found.stderr
    return found.stdout


def test_configuration_is_accepted() -> None:
    assert "2 rule files found" in promtool("check", "config", str(PROMETHEUS / "prometheus.yml"))


def test_rules_do_what_their_tests_say() -> None:
    files = sorted(map(str, (PROMETHEUS / "tests").glob("*.yml")))
    assert promtool("test", "rules", *files).count("SUCCESS") == len(files)


def test_every_alert_is_tested_and_tells_a_person_what_to_do() -> None:
    groups = yaml.safe_load((PROMETHEUS / "rules" / "alerts.yml").read_text())["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    tests = "".join(path.read_text() for path in (PROMETHEUS / "tests").glob("*.yml"))
    for rule in rules:
        assert rule["alert"] in tests, f"{rule['alert']} has no test"
        assert rule["annotations"].keys() == {"summary", "description"}
        assert rule["labels"]["severity"] in {"warning", "critical"}
