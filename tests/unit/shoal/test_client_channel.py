"""Address, token, TLS and the service config."""

from __future__ import annotations

import datetime as dt
import json
import os
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from shoal import AsyncClient, Client, ConfigurationError, UnavailableError
from shoal._methods import METHODS
from shoal.channel import ClientSettings, is_local, resolve_endpoint, service_config
from shoal_fake_server import FakeServer


def test_arguments_win_over_the_environment_and_that_over_defaults() -> None:
    environment = {"SHOAL_ADDRESS": "127.0.0.1:7"}
    assert resolve_endpoint("127.0.0.1:8", {}, environment).address == "127.0.0.1:8"
    assert resolve_endpoint(None, {}, environment).address == "127.0.0.1:7"
    assert resolve_endpoint(None, {}, {}).address == "127.0.0.1:50051"


@pytest.mark.parametrize(
    "address", ["nohost", ":50051", "host:", "host:port", "host:0", "host:70000", "https://host:443"]
)
def test_a_malformed_address_is_refused(address: str) -> None:
    with pytest.raises(ConfigurationError, match="host:port"):
        resolve_endpoint(address, {}, {})


@pytest.mark.parametrize(
    ("address", "local"),
    [
        ("127.0.0.1:1", True),
        ("[::1]:1", True),
        ("localhost:1", True),
        ("unix:/tmp/x", True),
        ("10.0.0.1:1", False),
        ("dns:///far:1", False),
    ],
)
def test_local_addresses_are_known(address: str, *, local: bool) -> None:
    assert is_local(address) is local


def test_a_token_never_travels_in_the_clear_unasked() -> None:
    with pytest.raises(ConfigurationError, match="unencrypted") as caught:
        resolve_endpoint("far.example:50051", {"token": "secret-word"}, {})
    assert "secret-word" not in str(caught.value)
    allowed = resolve_endpoint("far.example:50051", {"token": "secret-word", "allow_insecure_token": True}, {})
    assert "secret-word" not in repr(allowed)
    assert "secret-word" not in repr(AsyncClient("127.0.0.1:1", token="secret-word"))


@pytest.mark.parametrize("content", ["", "  \n", "two words", "ümlaut"])
def test_a_file_without_a_usable_token_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "token"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigurationError, match="holds no token") as caught:
        resolve_endpoint(None, {}, {"SHOAL_TOKEN_FILE": str(path)})
    assert "words" not in str(caught.value)


@pytest.mark.parametrize("settings", [{"token_file": "/nowhere/token"}, {"tls_ca": "/nowhere/ca.pem"}])
def test_a_missing_file_is_named(settings: ClientSettings) -> None:
    with pytest.raises(ConfigurationError, match=r"/nowhere/\S+: No such file"):
        resolve_endpoint(None, settings, {})


def test_what_is_no_pem_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    path.write_text("hello")
    with pytest.raises(ConfigurationError, match="not a PEM file"):
        resolve_endpoint(None, {}, {"SHOAL_TLS_CA": str(path)})
    with pytest.raises(ConfigurationError, match="go together"):
        resolve_endpoint(None, {"tls_cert": path}, {})


def test_a_replaced_token_file_is_read_again(server: FakeServer, tmp_path: Path) -> None:
    path = tmp_path / "token"
    path.write_text("first\n")
    with Client(server.address, token_file=path) as client:
        client.get_model("demo")
        path.write_text("second")
        os.utime(path, ns=(1, 1))
        client.get_model("demo")
    assert [call.metadata["authorization"] for call in server.record.calls] == ["Bearer first", "Bearer second"]


def test_only_safe_methods_are_retried_and_only_when_unavailable() -> None:
    """The list is written out, so that a method joins it by decision."""
    (config,) = json.loads(service_config())["methodConfig"]
    assert {name["method"] for name in config["name"]} == {
        "Classify",
        "ListModels",
        "GetModel",
        "LoadModel",
        "UnloadModel",
        "DeleteModelVersion",
        "GetDataset",
        "CreateTrainingJob",
        "GetTrainingJob",
        "ListTrainingJobs",
        "CancelTrainingJob",
    }
    assert config["retryPolicy"]["retryableStatusCodes"] == ["UNAVAILABLE"]


def test_every_retried_method_is_declared_safe_in_its_proto() -> None:
    protos = Path(__file__).parents[3] / "protos" / "shoal" / "v1"
    text = "\n".join(path.read_text() for path in protos.glob("*.proto"))
    for method in METHODS:
        comment = text.partition(f"  rpc {method.name}(")[0].rpartition("\n\n  ")[2].rpartition("service ")[2]
        assert not method.retry or "Safe to retry" in comment.replace("\n  // ", " "), method.name


@pytest.fixture
def authority(tmp_path: Path) -> Path:
    """A certificate for 127.0.0.1 that signs itself, and its key beside it."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.oid.NameOID.COMMON_NAME, "shoal-test")])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    (tmp_path / "ca.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (tmp_path / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return tmp_path / "ca.pem"


@pytest.fixture
def tls_server(authority: Path) -> Iterator[FakeServer]:
    pair = (authority.with_name("key.pem").read_bytes(), authority.read_bytes())
    running = FakeServer(grpc.ssl_server_credentials([pair])).start()
    yield running
    running.stop()


def test_tls_with_an_authority_carries_the_token(
    tls_server: FakeServer, authority: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = tls_server.address.rpartition(":")[2]
    monkeypatch.setenv("SHOAL_TLS_CA", str(authority))
    with Client(f"localhost:{port}", token="secret") as client:
        assert client.get_model("demo").name == "demo"
    assert tls_server.record.calls[0].metadata["authorization"] == "Bearer secret"
    with Client(tls_server.address, tls_server_name="localhost") as client:
        assert client.get_model("demo").name == "demo"


def test_an_unknown_authority_is_not_trusted(tls_server: FakeServer, authority: Path) -> None:
    with (
        Client(tls_server.address, tls=True, tls_server_name="localhost") as client,
        pytest.raises(UnavailableError, match="no server can be reached"),
    ):
        client.get_model("demo")
    assert tls_server.record.calls == []
