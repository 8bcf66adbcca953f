"""`python -m benchmarks gpu`: packed forwards against what a GPU multiplies at most, and MiniLM through gRPC.

Encoders of the sizes of MiniLM-L6, BERT-base and BERT-large with random weights, in bfloat16. Writes
benchmarks/out/gpu.json and, with default settings, benchmarks/GPU.md. Exits with 2 where there is no CUDA device; with
`--device cpu --scale 12 --seconds 1` its logic can be tried anywhere.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from rich.console import Console
from shoal.aio import AsyncClient

from benchmarks import folders, front_load, gpu_forward, gpu_models, gpu_report, processes
from benchmarks.ceilings import Shape as Product
from benchmarks.front_load import Measured, Shape
from benchmarks.gpu_models import BASE, LARGE, MINILM, Size
from benchmarks.gpu_report import ForwardResult, GpuResults, ServedResult
from benchmarks.machine import machine
from benchmarks.servers import Changes, ShoalServer, wait_live

PAGE_PATH = Path(__file__).resolve().parent / "GPU.md"
NO_DEVICE = 2  # exit code
ROW_TOKENS = (512, 1024, 2048, 4096, 8192)
SQUARES = (2048, 4096, 8192)
NUM_TEXTS = 2000  # of a pass
FRONTS = (1, 2)
SHAPES = (
    Shape(streamed=False, texts=32, ids=False, in_flight=8),
    Shape(streamed=False, texts=1, ids=False, in_flight=64),
)
NUM_LOADS = 2  # processes that make load, each as a shape says
_START_S = 3.0  # until they all send; so much longer do they send


def main(arguments: list[str] | None = None) -> int:
    """Run and report; the exit code is 1 when a call failed."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.stderr.write(
            "benchmarks gpu: torch finds no CUDA device here. Run it on a machine that has one, or try its logic "
            "with --device cpu --scale 12 --seconds 1\n"
        )
        return NO_DEVICE
    console = Console()
    sizes = [size.scaled(options.scale) for size in (MINILM, BASE, LARGE)]
    results = _run(sizes, options, console)
    models = [size.name for size in sizes[1:]]
    page = gpu_report.page(results, models, num_loads=NUM_LOADS)
    console.print(page, markup=False, soft_wrap=True)
    (folders.OUT / "gpu.json").write_text(json.dumps(dataclasses.asdict(results), indent=2) + "\n")
    if options == parser.parse_args([]):
        PAGE_PATH.write_text(page)
    return 1 if any(found.num_errors for found in results.served) else 0


def _run(sizes: list[Size], options: argparse.Namespace, console: Console) -> GpuResults:
    device = torch.device(options.device)
    console.print("Ceiling ...")
    products = [Product(rows=n, inner=n, columns=n) for n in (square // options.scale for square in SQUARES)]
    products += [product for size in sizes for product in size.shapes(ROW_TOKENS[-1])]
    ceiling_flops = gpu_forward.matmul_flops(products, device)
    return GpuResults(
        device=_device(device),
        ceiling_flops=ceiling_flops,
        forwards=tuple(found for size in sizes for found in _forwards(size, device, options.seconds, console)),
        served=tuple(found for num in FRONTS for found in _served(sizes[0], num, options, console)),
        measured_at=time.time(),
    )


def _forwards(size: Size, device: torch.device, seconds: float, console: Console) -> Iterator[ForwardResult]:
    """Every size of rows with captured forwards, then every one without."""
    console.print(f"{size.name} ...")
    loaded = gpu_forward.load(gpu_models.ensure(size), size.name, device)
    lengths = gpu_forward.draw_lengths(NUM_TEXTS)
    flops = size.work().flops(lengths)
    for captured in (True, False):
        if not captured:
            loaded.release_captured()
        for row_tokens in ROW_TOKENS:
            pass_s = gpu_forward.pass_seconds(loaded, gpu_forward.rows_of(lengths, row_tokens), seconds)
            yield ForwardResult(
                model=size.name,
                row_tokens=row_tokens,
                texts_per_s=len(lengths) / pass_s,
                flops_per_s=flops / pass_s,
                captured=captured,
            )


def _served(size: Size, num_fronts: int, options: argparse.Namespace, console: Console) -> Iterator[ServedResult]:
    changes: Changes = {"engine": {"device": options.device}, "listen": {"num_fronts": num_fronts}}
    folder = folders.OUT / "servers" / f"shoal-gpu-{num_fronts}"
    server = ShoalServer(folder, gpu_models.ensure(size), "bfloat16", changes=changes)
    with server:
        asyncio.run(_wait(server.address, size.name))
        for shape in SHAPES:
            console.print(f"{size.name}, {num_fronts} front(s), {shape.name} ...")
            yield _load(server, size.name, shape, num_fronts, options.seconds)


def _load(server: ShoalServer, model: str, shape: Shape, num_fronts: int, seconds: float) -> ServedResult:
    """From several processes at once; the engine tells once a second how long it has been inside forwards."""
    pids = [*processes.of_role(server.pid, "front"), *processes.of_role(server.pid, "engine")]

    def load(_: int) -> Measured:
        return front_load.measure(server.address, model, shape, pids=pids, seconds=seconds + _START_S)

    with ThreadPoolExecutor(NUM_LOADS) as pool:
        loads = pool.map(load, range(NUM_LOADS))
        busy_share = _busy_share(server, seconds)
        return _result(shape, num_fronts, list(loads), busy_share)


def _busy_share(server: ShoalServer, seconds: float) -> float:
    """Within the time that the load lasts."""
    time.sleep(_START_S)
    busy_s, began_s = server.busy_s(), time.monotonic()
    time.sleep(seconds)
    return (server.busy_s() - busy_s) / (time.monotonic() - began_s)


def _result(shape: Shape, num_fronts: int, loads: list[Measured], busy_share: float) -> ServedResult:
    """The first `num_fronts` processes of each are fronts, the last one the engine."""
    cores = [cpu.all_s / loads[0].seconds for cpu in loads[0].processes]
    return ServedResult(
        num_fronts=num_fronts,
        shape=shape,
        texts_per_s=sum(load.num_texts / load.seconds for load in loads),
        busy_share=busy_share,
        front_cores=sum(cores[:num_fronts]),
        engine_cores=sum(cores[num_fronts:]),
        load_cores=max(load.load.all_s / load.seconds for load in loads),
        num_errors=sum(load.num_errors for load in loads),
    )


async def _wait(address: str, model: str) -> None:
    async with AsyncClient(address) as client:
        await wait_live(client, model, 1)


def _device(device: torch.device) -> str:
    if device.type != "cuda":
        return machine()
    properties = torch.cuda.get_device_properties(device)
    return f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}; {machine()}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m benchmarks gpu", description=__doc__)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="(default %(default)s)")
    parser.add_argument("--seconds", type=float, default=10.0, help="measured of each load (default %(default)s)")
    parser.add_argument("--scale", type=int, default=1, help="make models so many times smaller (default %(default)s)")
    return parser


if __name__ == "__main__":
    raise SystemExit(main())
