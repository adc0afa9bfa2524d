#!/usr/bin/env bash
# Make .venv-peers: kvpress with the transformers it needs, older than ours. Nothing to do if it is up to date.
set -euo pipefail
cd "$(dirname "$0")/.."
list=tests/peers/requirements.txt
done=.venv-peers/installed.txt
if ! cmp -s "$list" "$done"; then
    "${PYTHON:-python3}" -m venv .venv-peers
    .venv-peers/bin/python -m pip install --quiet --disable-pip-version-check -r "$list"
    cp "$list" "$done"
fi
echo ".venv-peers: $(.venv-peers/bin/python -m pip list 2>/dev/null | awk '$1 ~ /^(kvpress|transformers|torch)$/ {printf "%s %s  ", $1, $2}')"
