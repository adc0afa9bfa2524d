#!/usr/bin/env bash
# Make .venv-peers, kvpress with the transformers it needs, older than ours, and .venv-harness, lm-evaluation-harness.
# Nothing to do for one that is up to date.
set -euo pipefail
cd "$(dirname "$0")/.."

make_venv() { # its folder, its list of packages, what of it to show
    local done=$1/installed.txt
    if ! cmp -s "$2" "$done"; then
        "${PYTHON:-python3}" -m venv "$1"
        "$1/bin/python" -m pip install --quiet --disable-pip-version-check -r "$2"
        cp "$2" "$done"
    fi
    echo "$1: $("$1/bin/python" -m pip list 2>/dev/null | awk -v which="^($3)\$" '$1 ~ which {printf "%s %s  ", $1, $2}')"
}

make_venv .venv-peers tests/peers/requirements.txt "kvpress|transformers|torch"
make_venv .venv-harness tests/peers/harness-requirements.txt "lm_eval|transformers|torch"
