#!/usr/bin/env bash
# The tests: ruff, then pytest with the unit tests first. Arguments go to pytest, as in `make test ARGS="-k config"`.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$(cd "${VENV:-.venv}/bin" && pwd):$PATH"
unset PYTHONDONTWRITEBYTECODE # see demo.sh
export PATH
# Ray asks for tokens by itself where a token file lies in the home folder; the tests' clusters are on loopback.
export RAY_AUTH_MODE=disabled RAY_USAGE_STATS_ENABLED=0

ruff check .
mapfile -t units < <(find tests -mindepth 1 -maxdepth 1 \( -type d ! -name integration ! -name '__*' -o -name 'test_*.py' \) | sort)
# The slow ones (minutes: kills in mid-training, whole submissions) run with SLOW=1, as in `SLOW=1 make test`.
chosen="$(python -c 'import torch; print("" if torch.cuda.is_available() else "not gpu")')"
if [[ "${SLOW:-0}" != 1 ]]; then
    chosen="not slow${chosen:+ and $chosen}"
fi
exec pytest -m "$chosen" "${units[@]}" tests/integration "$@"
