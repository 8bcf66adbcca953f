"""Makes versions ready to run, and frees them, on a thread of its own that gives way to the compute loop.

Its memory is found before it is taken, a version is verified before a byte of it is interpreted, its golden outputs are
met in float32 and as served (both in shoal_models), and it has run once before the compute loop sees it. Whatever goes
wrong is a refusal with a reason for people; nothing here ends the engine.
"""

from __future__ import annotations

import gc
import os
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch
from shoal_models.footprint import held_bytes
from shoal_models.golden import GoldenMismatch
from shoal_models.load import LoadedClassifier, LoadedGenerator, LoadError, Proven, load_version
from shoal_models.manifest import Manifest, ManifestError, read_manifest, verify_files
from shoal_models.memory import MemoryNeed, NotEnoughMemory, check_memory
from shoal_models.packed import PackedRow, PagedCache

from shoal_server.config import GenerateConfig
from shoal_server.engine.devices.device import Device
from shoal_server.engine.events import Inbox, LoadFailed, VersionFreed, VersionReady
from shoal_server.engine.model_runner import ReadyClassifier, ReadyGenerator, ReadyVersion
from shoal_server.engine.pacer import Pacer
from shoal_server.engine.request import VersionKey
from shoal_server.ipc.messages import LoadVersion, VersionMemory
from shoal_server.log import Log

_WARM_UP_TOKENS = 8

_log = Log(__name__)


class LoadRefused(Exception):
    """A version cannot be served here; the message says why."""


class BoundReached(Exception):
    """A version would take more than the configuration leaves."""

    def __init__(self, needed_bytes: int, held_bytes: int, limit_bytes: int) -> None:
        super().__init__(
            f"needs {needed_bytes:,} bytes once it is loaded; versions here hold {held_bytes:,} "
            f"and engine.max_loaded_bytes is {limit_bytes:,}"
        )
        self.lacking_bytes = held_bytes + needed_bytes - limit_bytes


class Loader:
    """The loader thread and what waits for it."""

    def __init__(
        self,
        device: Device,
        config: GenerateConfig,
        inbox: Inbox,
        *,
        max_loaded_bytes: int | None,
        shares_weights: bool,
        promised_bytes: Callable[[], int],
        is_busy: Callable[[], bool],
    ) -> None:
        """`promised_bytes` tells how much of the free memory belongs to served versions, though untouched so far.

        `is_busy` tells whether the compute loop has work; both are called by the loader thread.
        """
        self._device = device
        self._promised_bytes = promised_bytes
        self._pacer = Pacer(is_busy)
        self._proven = Proven()
        self._max_loaded_bytes = max_loaded_bytes
        self._shares_weights = shares_weights
        self._held_bytes: dict[VersionKey, int] = {}  # of versions that this thread has made and not freed
        self._handed_over_bytes: dict[VersionKey, int] = {}  # caches that the compute loop has not counted yet
        self._captured_bytes: dict[VersionKey, int] = {}  # on a GPU; they count as free, but nobody can have them
        self._config = config
        self._inbox = inbox
        self._orders: queue.SimpleQueue[LoadVersion | list[ReadyVersion]] = queue.SimpleQueue()

    def start(self) -> None:
        """Start the thread."""
        threading.Thread(target=self._run, name="loader", daemon=True).start()

    def load(self, order: LoadVersion) -> None:
        """Make a version ready; answered in the inbox by `VersionReady` or `LoadFailed`."""
        self._orders.put(order)

    def free(self, ready: ReadyVersion) -> None:
        """Free a version that nobody else holds any more; answered in the inbox by `VersionFreed`."""
        self._orders.put([ready])

    def adopted(self, key: VersionKey) -> None:
        """The compute loop has taken a ready version, and counts its cache, or has turned it down."""
        self._handed_over_bytes.pop(key, None)

    def _run(self) -> None:
        torch.set_num_threads(1)
        # transformers would read weights on four threads of its own, which no pacer holds back.
        os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"
        while True:
            order = self._orders.get()
            if isinstance(order, LoadVersion):
                with self._pacer:
                    self._load_or_refuse(order)
            else:
                self._free(order)
            del order

    def _load_or_refuse(self, order: LoadVersion) -> None:
        key = VersionKey(order.model, order.version)
        try:
            ready = self._load(order, key)
        except Exception as error:
            reason, lacking_bytes = _reason(error), _lacking_bytes(error)
            _log.warning("version.refused", version=key, reason=reason, exc=type(error).__name__)
        else:
            self._held_bytes[key] = ready.memory.total_bytes
            if isinstance(ready, ReadyClassifier):
                self._captured_bytes[key] = ready.model.captured_bytes
            if isinstance(ready, ReadyGenerator) and self._device.commits_lazily:
                self._handed_over_bytes[key] = ready.cache.num_bytes
            self._inbox.put(VersionReady(ready=ready))
            return
        self._reclaim()
        self._inbox.put(LoadFailed(key=key, reason=reason, lacking_bytes=lacking_bytes))

    def _load(self, order: LoadVersion, key: VersionKey) -> ReadyVersion:
        began_s = time.monotonic()
        path = Path(order.path)
        manifest = read_manifest(path)
        if (manifest.model, manifest.version) != key:
            raise LoadRefused(f"the folder holds {manifest.model}@{manifest.version}")
        need = self._check_memory(manifest)
        verify_files(path, manifest)
        model = load_version(
            path,
            manifest,
            dtype=self._device.dtype,
            device=self._device.torch_device,
            proven=self._proven,
            share=self._shares_weights,
        )
        if isinstance(model, LoadedClassifier):
            _check_finite(model.logits(model.trial_row(min(_WARM_UP_TOKENS, manifest.max_tokens))))
            memory = _memory(need, model)
            return ReadyClassifier(
                key=key, manifest=manifest, model=model, memory=memory, load_s=time.monotonic() - began_s
            )
        cache = model.new_cache(self._num_blocks(model), self._config.kv_block_tokens)
        _warm_up_generator(model, cache, self._device.torch_device)
        memory = _memory(need, model, cache.num_bytes)
        return ReadyGenerator(
            key=key, manifest=manifest, model=model, cache=cache, memory=memory, load_s=time.monotonic() - began_s
        )

    def _check_memory(self, manifest: Manifest) -> MemoryNeed:
        promised_bytes = sum(list(self._handed_over_bytes.values())) + self._promised_bytes()
        promised_bytes += sum(self._captured_bytes.values())
        need = check_memory(
            manifest,
            dtype=self._device.dtype,
            device=self._device.torch_device,
            cache_bytes=self._config.kv_cache_bytes if manifest.kind == "generator" else 0,
            available_bytes=max(self._device.memory().free_bytes - promised_bytes, 0),
        )
        held_bytes, needed_bytes = sum(self._held_bytes.values()), need.serving_bytes + need.cache_bytes
        if self._max_loaded_bytes is not None and held_bytes + needed_bytes > self._max_loaded_bytes:
            raise BoundReached(needed_bytes, held_bytes, self._max_loaded_bytes)
        return need

    def _num_blocks(self, model: LoadedGenerator) -> int:
        """As many as the configured bytes hold, but no more than every running sequence could fill."""
        block_bytes = model.cache_bytes_per_token * self._config.kv_block_tokens
        most = self._config.max_running * -(-model.manifest.max_tokens // self._config.kv_block_tokens)
        num_blocks = min(self._config.kv_cache_bytes // block_bytes, most)
        if num_blocks == 0:
            raise LoadRefused(
                f"one KV block takes {block_bytes:,} bytes; generate.kv_cache_bytes is {self._config.kv_cache_bytes:,}"
            )
        return num_blocks

    def _free(self, holder: list[ReadyVersion]) -> None:
        key = holder.pop().key
        self._held_bytes.pop(key, None)
        self._captured_bytes.pop(key, None)
        self._reclaim()
        self._inbox.put(VersionFreed(key=key))

    def _reclaim(self) -> None:
        gc.collect()
        self._device.give_back()


def _memory(need: MemoryNeed, model: LoadedClassifier | LoadedGenerator, cache_bytes: int = 0) -> VersionMemory:
    reckoned_bytes = need.serving_bytes + need.cache_bytes
    weight_bytes = held_bytes(model)
    if isinstance(model, LoadedClassifier):
        weight_bytes += model.captured_bytes
    return VersionMemory(weight_bytes=weight_bytes, cache_bytes=cache_bytes, reckoned_bytes=reckoned_bytes)


def _reason(error: Exception) -> str:
    """Why a version was refused, for people."""
    if isinstance(error, ManifestError | NotEnoughMemory | LoadError | GoldenMismatch | LoadRefused | BoundReached):
        return str(error)
    if is_out_of_memory(error):
        return "the device ran out of memory while loading it"
    _log.error("load.failed", exc_info=True)
    return f"loading failed: {type(error).__name__}: {str(error)[:300]}"


def _lacking_bytes(error: Exception) -> int:
    """How much more memory would have let a version load, as far as is known; 0 where memory was not the reason."""
    match error:
        case NotEnoughMemory():
            return error.needed_bytes - error.available_bytes
        case BoundReached():
            return error.lacking_bytes
        case _:
            return 1 if is_out_of_memory(error) else 0


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means a lack of memory; on a CPU torch says so only in words."""
    words = "can't allocate memory" in str(error) or "not enough memory" in str(error)
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or (isinstance(error, RuntimeError) and words)


@torch.inference_mode()
def _warm_up_generator(model: LoadedGenerator, cache: PagedCache, device: torch.device) -> None:
    """A prefill and a decode over the first block."""
    num_prefill = min(_WARM_UP_TOKENS, cache.block_tokens * cache.num_blocks, model.manifest.max_tokens) - 1
    table = (tuple(range(-(-(num_prefill + 1) // cache.block_tokens))),)
    for context, num_tokens in ((0, num_prefill), (num_prefill, 1)):
        if num_tokens:
            row = PackedRow(
                ids_T=torch.zeros(num_tokens, dtype=torch.int64, device=device),
                positions_T=torch.arange(context, context + num_tokens, device=device),
                starts=(0, num_tokens),
                cache=cache,
                block_tables=table,
                context_lens=(context,),
            )
            _check_finite(model.logits(row, torch.tensor([num_tokens - 1], device=device)))


def _check_finite(logits: torch.Tensor) -> None:
    if not bool(torch.isfinite(logits).all()):
        raise LoadRefused("its first forward gives numbers that are not finite")
