#!/usr/bin/env bash
# Make .venv-peers, kvpress with the transformers it needs, older than ours, and its evaluation folder; and
# .venv-harness, lm-evaluation-harness.
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
# kvpress's benchmarks are in its source distribution only
if [ ! -d .venv-peers/kvpress-0.5.5/evaluation ]; then
    .venv-peers/bin/python -m pip download --quiet --disable-pip-version-check --no-deps --no-binary kvpress kvpress==0.5.5 --dest .venv-peers
    tar -xzf .venv-peers/kvpress-0.5.5.tar.gz -C .venv-peers kvpress-0.5.5/evaluation
fi

make_venv .venv-harness tests/peers/harness-requirements.txt "lm_eval|transformers|torch"
