"""The front as a process: health, reflection, routing orders, credentials, drain."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from front_world import (
    World,
    byte_tokenizer,
    classifier,
    classify_world,
    generator,
    text_request,
    word_tokenizer,
    world,
    write_version,
)
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from shoal.v1 import classify_pb2_grpc
from shoal_server.config import ListenConfig, ServerConfig
from shoal_server.front.control_client import ControlLost
from shoal_server.front.server import CannotListen
from shoal_server.ipc.messages import ClassifyCall, Drain, EngineEndpoint, PrepareVersion, VersionPrepared, VersionState

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
UNKNOWN = health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


async def health(world: World, service: str = "") -> int:
    stub = health_pb2_grpc.HealthStub(world.channel())
    return (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status


async def test_health_of_server_services_and_models() -> None:
    async with classify_world() as world:
        for name in ("", "shoal.v1.ClassifyService", "shoal.v1.TrainService", "shoal.model/topics"):
            assert await health(world, name) == SERVING, name
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await health(world, "shoal.model/nobody")
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND


async def test_a_watcher_sees_an_engine_die_and_come_back() -> None:
    async with classify_world() as world:
        stub = health_pb2_grpc.HealthStub(world.channel())
        general = stub.Watch(health_pb2.HealthCheckRequest())
        model = stub.Watch(health_pb2.HealthCheckRequest(service="shoal.model/topics"))
        train = stub.Watch(health_pb2.HealthCheckRequest(service="shoal.v1.TrainService"))
        assert [(await watch.read()).status for watch in (general, model, train)] == [SERVING] * 3
        world.engine.die()
        assert [(await watch.read()).status for watch in (general, model)] == [NOT_SERVING] * 2
        assert await health(world, "shoal.v1.TrainService") == SERVING  # needs no engine
        await world.engine.start()
        assert [(await watch.read()).status for watch in (general, model)] == [SERVING] * 2
        await world.classify.Classify(text_request("fox"))


async def test_a_new_incarnation_of_an_engine_is_connected() -> None:
    async with classify_world() as world:
        world.engine.die()
        old = world.engine.endpoint
        world.engine.endpoint = EngineEndpoint(engine_id=0, address=old.address + "2", incarnation=2)
        await world.engine.start()
        await world.route(classifier(world.repository / "topics" / "1"))
        await world.classify.Classify(text_request("fox"))


async def test_a_watcher_of_a_model_that_comes_later_hears_of_it() -> None:
    async with world() as made:
        stub = health_pb2_grpc.HealthStub(made.channel())
        watch = stub.Watch(health_pb2.HealthCheckRequest(service="shoal.model/topics"))
        assert (await watch.read()).status == UNKNOWN
        await made.route(classifier(write_version(made.repository, word_tokenizer())))
        assert (await watch.read()).status == SERVING


async def test_reflection_lists_the_services() -> None:
    async with world(ServerConfig(services=("classify",))) as made:
        stub = reflection_pb2_grpc.ServerReflectionStub(made.channel())
        call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
        (answer,) = [answer async for answer in call]
    names = [service.name for service in answer.list_services_response.service]
    assert names == ["grpc.health.v1.Health", "grpc.reflection.v1alpha.ServerReflection", "shoal.v1.ClassifyService"]


async def test_a_service_that_is_not_configured_is_unimplemented() -> None:
    async with world(ServerConfig(services=("classify",))) as made:
        from shoal.v1 import model_pb2

        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await made.models.GetModel(model_pb2.GetModelRequest(name="x"))
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_version_is_prepared_or_refused() -> None:
    async with world() as made:
        good = write_version(made.repository, word_tokenizer())
        made.control.send(PrepareVersion(model="topics", version=1, path=str(good)))
        assert (await made.control.wait_for(VersionPrepared)).error == ""
        damaged = write_version(made.repository, word_tokenizer(), version=2)
        (damaged / "tokenizer.json").write_text("{}")
        made.control.send(PrepareVersion(model="topics", version=2, path=str(damaged)))
        assert "tokenizer.json" in (await made.control.wait_for(VersionPrepared, lambda m: m.version == 2)).error
        broken = write_version(
            made.repository, byte_tokenizer(), {"chat_template.jinja": "{% if %}"}, model="writer", kind="generator"
        )
        made.control.send(PrepareVersion(model="writer", version=1, path=str(broken)))
        assert "template" in (await made.control.wait_for(VersionPrepared, lambda m: m.model == "writer")).error
        made.control.send(PrepareVersion(model="none", version=1, path=str(made.folder / "none")))
        assert (await made.control.wait_for(VersionPrepared, lambda m: m.model == "none")).error


async def test_a_template_in_the_tokenizers_settings_is_found() -> None:
    async with world() as made:
        settings = (
            '{"chat_template": [{"name": "default", "template": "{{ bos_token }}!"}], "bos_token": {"content": "<s>"}}'
        )
        path = write_version(
            made.repository, byte_tokenizer(), {"tokenizer_config.json": settings}, model="writer", kind="generator"
        )
        from shoal_server.front.version_text import load_version_text

        text = load_version_text(path)
        assert text.chat is not None
        assert text.chat.write([], 100) == "<s>!"


async def test_one_version_that_cannot_be_read_does_not_hold_up_the_table() -> None:
    async with world() as made:
        good = write_version(made.repository, word_tokenizer())
        await made.route(classifier(good), generator(made.folder / "missing"))
        await made.classify.Classify(text_request("fox"))


async def test_drain_tells_health_first_and_lets_what_is_under_way_finish() -> None:
    async with classify_world() as world:
        world.engine.on_classify = lambda engine, call: None
        stub, channel = world.classify, world.channel()
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == SERVING
        open_call = stub.Classify(text_request("fox"))
        (call,) = await world.engine.wait_for(ClassifyCall)
        world.control.send(Drain(lame_duck_s=0.2, drain_s=5))
        assert (await watch.read()).status == NOT_SERVING
        late = stub.Classify(text_request("dog"))  # in the lame-duck pause the door is still open
        calls = await world.engine.wait_for(ClassifyCall, 2)
        await asyncio.sleep(0.3)
        with pytest.raises(grpc.aio.AioRpcError):
            await watch.read()
        assert not world.front.done()
        for one in calls:
            world.engine.answer_classify(one)
        await asyncio.gather(open_call, late)
        async with asyncio.timeout(3):
            await world.front  # returns: exit code 0
        assert call is calls[0]


async def test_losing_control_ends_the_front() -> None:
    async with world() as made:
        made.control.die()
        with pytest.raises(ControlLost):
            async with asyncio.timeout(5):
                await made.front


async def test_an_address_that_is_taken_is_told() -> None:
    async with world() as first:
        second = World(ServerConfig(), Path(tempfile.mkdtemp(prefix="shoal")))
        await second.control.start()
        await second.engine.start()
        import msgspec
        from shoal_server.front.server import FrontServer

        startup = msgspec.structs.replace(first.server._startup, grpc_address=f"127.0.0.1:{first.port}")
        with pytest.raises(CannotListen, match="cannot be listened on"):
            await FrontServer(startup).run()
        second.engine.die()
        second.control.die()
        await asyncio.sleep(0.01)
        shutil.rmtree(second.folder)


# --- credentials ----------------------------------------------------------------------------------------------------

TOKEN, OTHER = "a-token-of-24-characters", "another-token-of-24-chars"


async def classify_with(world: World, token: str | None, stub=None) -> grpc.StatusCode:
    metadata = (("authorization", f"Bearer {token}"),) if token else ()
    try:
        await (stub or world.classify).Classify(text_request("fox"), metadata=metadata)
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def test_tokens_open_the_door_and_are_reloaded_whole(tmp_path: Path) -> None:
    file = tmp_path / "tokens"
    file.write_text(f"# ours\n{TOKEN}\n")
    async with classify_world(ServerConfig(listen=ListenConfig(tokens_file=str(file)))) as world:
        ok, no = grpc.StatusCode.OK, grpc.StatusCode.UNAUTHENTICATED
        assert [await classify_with(world, t) for t in (TOKEN, OTHER, None)] == [ok, no, no]
        assert await health(world) == SERVING  # probes carry no token
        file.write_text("short\n")
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.sleep(0.1)
        assert await classify_with(world, TOKEN) is ok  # what cannot be used is refused
        file.write_text(f"{OTHER}\n")
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.sleep(0.1)
        assert [await classify_with(world, t) for t in (TOKEN, OTHER)] == [no, ok]


def make_certificate(folder: Path, name: str, *, authority: str | None = None) -> None:
    """An RSA key and a certificate for localhost, signed by itself or by `authority`."""
    run = lambda *words: subprocess.run(["openssl", *words], check=True, capture_output=True, cwd=folder)  # noqa: E731
    subject = f"/CN={name}"
    if authority is None:
        run("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", subject, "-keyout", f"{name}.key",
            "-out", f"{name}.crt", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1")  # fmt: skip
        return
    run("req", "-newkey", "rsa:2048", "-nodes", "-subj", subject, "-keyout", f"{name}.key", "-out", f"{name}.csr")
    (folder / "san").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1")
    sign = ["-CA", f"{authority}.crt", "-CAkey", f"{authority}.key", "-CAcreateserial", "-extfile", "san"]
    run("x509", "-req", "-in", f"{name}.csr", "-days", "2", "-out", f"{name}.crt", *sign)


async def secure_classify(world: World, credentials: grpc.ChannelCredentials) -> grpc.StatusCode:
    async with grpc.aio.secure_channel(f"127.0.0.1:{world.port}", credentials) as channel:
        return await classify_with(world, None, classify_pb2_grpc.ClassifyServiceStub(channel))


async def test_tls_and_its_reload(tmp_path: Path) -> None:
    for name in ("first", "second"):
        make_certificate(tmp_path, name)
    paths = {"tls_cert": str(tmp_path / "first.crt"), "tls_key": str(tmp_path / "first.key")}
    trusted = {n: grpc.ssl_channel_credentials((tmp_path / f"{n}.crt").read_bytes()) for n in ("first", "second")}
    trusted["second"] = grpc.ssl_channel_credentials((tmp_path / "second.crt").read_bytes())
    async with classify_world(ServerConfig(listen=ListenConfig(**paths))) as world:
        assert await secure_classify(world, trusted["first"]) is grpc.StatusCode.OK
        assert await secure_classify(world, trusted["second"]) is grpc.StatusCode.UNAVAILABLE
        (tmp_path / "first.crt").write_bytes((tmp_path / "second.crt").read_bytes())  # half of a pair: refused
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.sleep(0.1)
        assert await secure_classify(world, trusted["first"]) is grpc.StatusCode.OK
        (tmp_path / "first.key").write_bytes((tmp_path / "second.key").read_bytes())
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.sleep(0.1)
        assert await secure_classify(world, trusted["second"]) is grpc.StatusCode.OK
        assert await secure_classify(world, trusted["first"]) is grpc.StatusCode.UNAVAILABLE


async def test_clients_must_show_a_certificate_where_an_authority_is_named(tmp_path: Path) -> None:
    make_certificate(tmp_path, "authority")
    for name in ("server", "client"):
        make_certificate(tmp_path, name, authority="authority")
    read: Callable[[str], bytes] = lambda name: (tmp_path / name).read_bytes()  # noqa: E731
    listen = ListenConfig(
        tls_cert=str(tmp_path / "server.crt"),
        tls_key=str(tmp_path / "server.key"),
        tls_client_ca=str(tmp_path / "authority.crt"),
    )
    async with classify_world(ServerConfig(listen=listen)) as world:
        known = grpc.ssl_channel_credentials(read("authority.crt"), read("client.key"), read("client.crt"))
        assert await secure_classify(world, known) is grpc.StatusCode.OK
        unknown = grpc.ssl_channel_credentials(read("authority.crt"))
        assert await secure_classify(world, unknown) is grpc.StatusCode.UNAVAILABLE


async def test_a_state_that_is_not_served_has_no_serving_health() -> None:
    async with world() as made:
        path = write_version(made.repository, word_tokenizer())
        await made.route(classifier(path, state=VersionState.LOADING))
        assert await health(made, "shoal.model/topics") == NOT_SERVING
