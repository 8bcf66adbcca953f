"""Versions found in a folder, by polling and by events; weights are never looked at."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import shutil
from pathlib import Path

import pytest
from control_world import make_found
from shoal_models.manifest import publish
from shoal_server.control.versions import FoundVersion, VersionKey
from shoal_server.control.watcher import Scanner, Watcher


def put(repository: Path, model: str = "m", *, kind: str = "classifier") -> int:
    manifest = make_found(model, 1, kind=kind).manifest
    assert manifest is not None
    return publish(repository, manifest, lambda folder: (folder / "config.json").write_text("{}") and None).version


def test_complete_versions_are_found_with_their_manifest(tmp_path: Path) -> None:
    put(tmp_path)
    put(tmp_path)
    put(tmp_path, "base", kind="base")
    (tmp_path / "m" / "7").mkdir()  # a copy under way, without manifest
    (tmp_path / "m" / ".tmp-8").mkdir()
    found = Scanner(tmp_path).scan()
    assert set(found) == {VersionKey("m", 1), VersionKey("m", 2), VersionKey("base", 1)}
    assert found[VersionKey("base", 1)].kind == "base"


def test_manifest_is_read_again_only_when_it_changed(tmp_path: Path) -> None:
    put(tmp_path)
    scanner = Scanner(tmp_path)
    first = scanner.scan()[VersionKey("m", 1)]
    assert scanner.scan()[VersionKey("m", 1)] is first
    os.utime(tmp_path / "m" / "1" / "manifest.json", ns=(1, 1))
    second = scanner.scan()[VersionKey("m", 1)]
    assert second == dataclasses.replace(first, mtime_ns=1)


@pytest.mark.parametrize(
    ("damage", "word"),
    [("{", "unreadable"), ('{"schema_version": 99}', "schema 99"), ("[]", "not an object")],
)
def test_bad_manifest_is_found_with_its_error(tmp_path: Path, damage: str, word: str) -> None:
    put(tmp_path)
    (tmp_path / "m" / "1" / "manifest.json").write_text(damage)
    found = Scanner(tmp_path).scan()[VersionKey("m", 1)]
    assert found.manifest is None
    assert word in found.error


def test_unknown_kind_is_an_error(tmp_path: Path) -> None:
    put(tmp_path, kind="oracle")
    assert "oracle" in Scanner(tmp_path).scan()[VersionKey("m", 1)].error


@pytest.mark.parametrize("use_events", [True, False])
async def test_new_and_removed_versions_are_reported(tmp_path: Path, use_events: bool) -> None:
    """With events a long poll interval does not matter; without them polling finds everything."""
    reports: asyncio.Queue[dict[VersionKey, FoundVersion]] = asyncio.Queue()
    watcher = Watcher(
        tmp_path, poll_interval_s=0.5 if use_events else 0.05, use_events=use_events, report=reports.put_nowait
    )
    running = asyncio.create_task(watcher.run())
    try:
        assert await asyncio.wait_for(reports.get(), 10) == {}
        put(tmp_path)
        await wait_for(reports, {VersionKey("m", 1)})
        shutil.rmtree(tmp_path / "m")
        await wait_for(reports, set())
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_events_are_faster_than_polling(tmp_path: Path) -> None:
    reports: asyncio.Queue[dict[VersionKey, FoundVersion]] = asyncio.Queue()
    watcher = Watcher(tmp_path, poll_interval_s=60.0, use_events=True, report=reports.put_nowait)
    running = asyncio.create_task(watcher.run())
    try:
        await asyncio.wait_for(reports.get(), 10)
        await asyncio.sleep(0.5)  # the listener's thread has to be at work
        put(tmp_path)
        await wait_for(reports, {VersionKey("m", 1)})
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def test_repository_that_is_away_for_a_while_changes_nothing(tmp_path: Path) -> None:
    repository = tmp_path / "models"
    repository.mkdir()
    reports: list[dict[VersionKey, FoundVersion]] = []
    put(repository)
    watcher = Watcher(repository, poll_interval_s=60.0, use_events=False, report=reports.append)
    await watcher.scan_now()
    repository.rename(tmp_path / "away")
    await watcher.scan_now()
    assert len(reports) == 1


async def wait_for(reports: asyncio.Queue[dict[VersionKey, FoundVersion]], keys: set[VersionKey]) -> None:
    async with asyncio.timeout(10):
        while set(await reports.get()) != keys:
            continue
