# Everything a newcomer types. `make demo` and `make test` set up what they need; a second run takes seconds of set-up.
#
#   TORCH    what pip is asked for, for another build of torch: make demo TORCH="torch --index-url URL"
#   BENCH_FLAGS, such as --resume or --only open; --help of `python -m benchmarks side-by-side` tells them
#   PYTHON   the interpreter that makes the environment: make test PYTHON=python3.12

PYTHON ?= python3
TORCH ?= torch==2.13.0
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help demo serve test lint format protos bench bench-all bench-front bench-gpu bench-sweep bench-swaps setup setup-dev tools clean

help:  ## what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

demo: setup  ## the whole loop on real models: import, serve, fine-tune, hot-load, classify, chat, metrics
	@$(BIN)/python examples/demo.py

serve: setup  ## the demo's models, served until Ctrl-C, with three commands to try
	@$(BIN)/python examples/demo.py --serve

test: setup-dev tools  ## all tests
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile $(PYTEST_FLAGS)

lint: setup-dev  ## ruff, mypy strict, import contracts, buf lint, generated code up to date
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache
	@$(BIN)/python scripts/generate_protos.py --image .venv/protos.binpb
	@$(BIN)/buf lint .venv/protos.binpb --config protos/buf.yaml
	@$(BIN)/python scripts/generate_protos.py --check

format: setup-dev  ## format the code
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

protos: setup-dev  ## regenerate client/shoal/v1 from protos/
	@$(BIN)/python scripts/generate_protos.py

bench: setup-dev  ## Shoal, a naive server and the best two peers side by side, within 45 minutes, to benchmarks/RESULTS.md
	@$(BIN)/python -m benchmarks.side_by_side $(BENCH_FLAGS)

bench-all: setup-dev  ## the same with every peer (about two hours)
	@$(BIN)/python -m benchmarks.side_by_side --all $(BENCH_FLAGS)

bench-sweep: setup-dev  ## find the best settings of a peer and keep them: make bench-sweep PEER=mosec
	@$(BIN)/python -m benchmarks.peers.sweep --peer $(PEER) $(BENCH_FLAGS)

bench-front: setup-dev  ## what one request costs in front of the engine, hop by hop, written to benchmarks/FRONT.md
	@$(BIN)/python -m benchmarks.front_budget

bench-gpu: setup-dev  ## packed forwards against a GPU's matmul ceiling, and MiniLM through gRPC, to benchmarks/GPU.md
	@$(BIN)/python -m benchmarks.gpu_classify $(BENCH_FLAGS)

bench-swaps: setup-dev  ## latency during hot swaps against latency without, written to benchmarks/SWAPS.md
	@$(BIN)/python -m benchmarks.swap_benchmark

setup:
	@PYTHON="$(PYTHON)" TORCH="$(TORCH)" scripts/setup.sh run

setup-dev:
	@PYTHON="$(PYTHON)" TORCH="$(TORCH)" scripts/setup.sh dev

tools: setup-dev
	@scripts/install_tools.sh

clean:  ## remove the environment and everything the demo made
	rm -rf .venv .tools demo
