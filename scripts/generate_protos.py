"""Regenerate `client/shoal/v1` from `protos/`, or with `--check` say whether it is up to date.

The generated code is committed so that an installation needs no compiler. Uses the grpcio-tools of the protobuf 6 line
that `pyproject.toml` pins, whose output runs on protobuf 6 and 7.
"""

from __future__ import annotations

import argparse
import filecmp
import importlib.resources
import sys
import tempfile
from pathlib import Path

import google.rpc
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
GENERATED = ROOT / "client" / "shoal" / "v1"


def include_flags() -> list[str]:
    """The folders that imports are looked up in: ours, googleapis' and protobuf's own."""
    googleapis = Path(next(iter(google.rpc.__path__))).parent.parent
    well_known = importlib.resources.files("grpc_tools") / "_proto"
    return [f"-I{PROTOS}", f"-I{googleapis}", f"-I{well_known}"]


def sources() -> list[str]:
    """Every proto file of ours, sorted."""
    return sorted(str(path) for path in PROTOS.rglob("*.proto"))


def run_protoc(flags: list[str]) -> None:
    """Run the compiler, ending the process with its message when it refuses."""
    if protoc.main(["protoc", *include_flags(), *flags, *sources()]) != 0:
        sys.exit("protoc failed")


def generate(target: Path) -> None:
    """Write modules and type stubs below `target`."""
    run_protoc([f"--python_out={target}", f"--pyi_out={target}", f"--grpc_python_out={target}"])


def check() -> bool:
    """Whether the committed modules are what the compiler writes today."""
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        fresh = sorted(path for path in Path(folder, "shoal", "v1").iterdir() if path.is_file())
        stale = [
            p.name
            for p in fresh
            if not (GENERATED / p.name).exists() or not filecmp.cmp(p, GENERATED / p.name, shallow=False)
        ]
    extra = {p.name for p in GENERATED.glob("*_pb2*")} - {p.name for p in fresh}
    for name in [*stale, *sorted(extra)]:
        print(f"client/shoal/v1/{name} is not what protos/ generates; run `make protos`", file=sys.stderr)
    return not stale and not extra


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only compare, exit 1 on a difference")
    parser.add_argument("--image", type=Path, help="also write a descriptor image, as buf lint reads it")
    arguments = parser.parse_args()
    if arguments.image:
        run_protoc([f"--descriptor_set_out={arguments.image}", "--include_imports", "--include_source_info"])
    elif arguments.check:
        sys.exit(0 if check() else 1)
    else:
        generate(ROOT / "client")


if __name__ == "__main__":
    main()
