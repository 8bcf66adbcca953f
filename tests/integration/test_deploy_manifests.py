"""What deploy/ ships for containers and Kubernetes is valid, hardened, and agrees with what the server can be told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from harness.tools import ROOT, tool
from shoal_server.config import ServerConfig, load_config, split_address

BIN = Path(sys.executable).parent
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
KUBERNETES = ROOT / "deploy" / "kubernetes"
VARIANTS = ("base", "tls")


def rendered(variant: str) -> str:
    """What `kubectl apply -k` would send."""
    command = [tool("kubectl"), "kustomize", str(KUBERNETES / variant)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def objects(variant: str) -> dict[str, dict[str, Any]]:
    """The rendered objects by kind and name; the ConfigMap's name without its digest."""
    found = {}
    for tree in yaml.safe_load_all(rendered(variant)):
        name = "shoal-config" if tree["kind"] == "ConfigMap" else tree["metadata"]["name"]
        found[f"{tree['kind']}/{name}"] = tree
    return found


def configuration(variant: str, folder: Path) -> ServerConfig:
    """The ConfigMap's configuration, read by the server's own loader."""
    path = folder / "shoal.yaml"
    path.write_text(objects(variant)["ConfigMap/shoal-config"]["data"]["shoal.yaml"])
    return load_config(path, environment={})


def pod(variant: str) -> dict[str, Any]:
    """The pod's spec."""
    spec: dict[str, Any] = objects(variant)["Deployment/shoal"]["spec"]["template"]["spec"]
    return spec


def test_dockerfile_is_clean() -> None:
    found = subprocess.run([BIN / "hadolint", DOCKERFILE], capture_output=True, text=True, timeout=60)
    assert found.returncode == 0, found.stdout + found.stderr


def test_dockerfile_copies_only_what_the_build_context_lets_in() -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied: set[str] = set()
    for line in DOCKERFILE.read_text().splitlines():
        if line.startswith("COPY ") and "--from" not in line:
            copied.update(line.split()[1:-1])
    assert copied == allowed
    assert all((ROOT / name).exists() for name in copied)


@pytest.mark.parametrize("variant", VARIANTS)
def test_manifests_are_valid(variant: str, tmp_path: Path) -> None:
    path = tmp_path / "rendered.yaml"
    path.write_text(rendered(variant))
    found = subprocess.run(
        [BIN / "kubernetes-validate", "--strict", "--no-warn", path], capture_output=True, text=True, timeout=120
    )
    assert found.returncode == 0, found.stdout + found.stderr
    assert found.stdout.count("passed for resource") == len(objects(variant))


@pytest.mark.parametrize("variant", VARIANTS)
def test_configuration_is_accepted_and_agrees_with_the_manifests(variant: str, tmp_path: Path) -> None:
    config = configuration(variant, tmp_path)
    (container,) = pod(variant)["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert split_address(config.listen.address) == ("0.0.0.0", ports["grpc"])
    assert split_address(config.listen.metrics_address) == ("0.0.0.0", ports["metrics"])
    mounts = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert {config.repository.path, config.state_dir, "/tmp"} <= mounts


@pytest.mark.parametrize("variant", VARIANTS)
def test_pod_is_given_longer_than_the_drain(variant: str, tmp_path: Path) -> None:
    listen = configuration(variant, tmp_path).listen
    assert pod(variant)["terminationGracePeriodSeconds"] >= listen.lame_duck_s + listen.drain_s + 10


@pytest.mark.parametrize("variant", VARIANTS)
def test_container_may_do_no_more_than_it_must(variant: str) -> None:
    spec = pod(variant)
    (container,) = spec["containers"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["automountServiceAccountToken"] is False
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert "memory" in container["resources"]["limits"]
    user = f"USER {spec['securityContext']['runAsUser']}:{spec['securityContext']['runAsGroup']}"
    assert user in DOCKERFILE.read_text().splitlines()


def test_plain_pods_are_probed_by_grpc_health() -> None:
    (container,) = pod("base")["containers"]
    assert container["startupProbe"]["grpc"]["port"] == 50051
    assert container["readinessProbe"]["grpc"]["port"] == 50051


def test_tls_variant_refuses_strangers_and_is_probed_without_grpc(tmp_path: Path) -> None:
    """The kubelet's gRPC probes speak no TLS."""
    listen = configuration("tls", tmp_path).listen
    assert not listen.insecure
    assert listen.tokens_file is not None
    spec = pod("tls")
    (container,) = spec["containers"]
    mounts = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    for path in (listen.tls_cert, listen.tls_key, listen.tokens_file):
        assert path is not None
        assert mounts[str(Path(path).parent)]["readOnly"]
    for probe in ("startupProbe", "readinessProbe"):
        assert "grpc" not in container[probe]
        assert container[probe]["httpGet"]["path"] == "/readyz"


def test_service_resolves_to_the_pods() -> None:
    found = objects("base")
    service, deployment = found["Service/shoal"]["spec"], found["Deployment/shoal"]["spec"]
    assert service["clusterIP"] == "None"
    assert service["selector"].items() <= deployment["template"]["metadata"]["labels"].items()
