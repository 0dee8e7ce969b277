#!/usr/bin/env bash
# Rewrites constraints.txt from the environment $VENV (.venv), after its tests passed. Versions only, no addresses.
set -euo pipefail
cd "$(dirname "$0")/.."
venv="${VENV:-.venv}"
{
    echo "# Every version that the tests passed with, on Linux. Made by: scripts/pin.sh"
    "$venv/bin/uv" pip freeze --quiet --python "$venv/bin/python" --exclude-editable | grep -v '^pip==' | LC_ALL=C sort -f
} >constraints.txt.new
mv constraints.txt.new constraints.txt
