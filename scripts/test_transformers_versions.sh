#!/usr/bin/env bash
# The backend's tests under the oldest transformers we support and under the newest there is. Each has a virtual environment of its own, made
# once: .venv-transformers-5.2.0, .venv-transformers-newest. PYTHON chooses the interpreter; further arguments go to pytest.
set -euo pipefail
cd "$(dirname "$0")/.."
torch=$(grep '^torch==' requirements.txt)
failed=()
for version in 5.2.0 newest; do
    venv=.venv-transformers-$version
    wanted=transformers && [ "$version" = newest ] || wanted="transformers==$version"
    if [ ! -f "$venv/.ready" ]; then
        "${PYTHON:-python3}" -m venv "$venv"
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$wanted" "$torch" numpy safetensors pytest pytest-timeout hypothesis
        touch "$venv/.ready"
    elif [ "$version" = newest ]; then
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --upgrade transformers
    fi
    "$venv/bin/python" -c "import torch, transformers; print(f'== transformers {transformers.__version__}, torch {torch.__version__}')"
    "$venv/bin/python" -m pytest -q --timeout 1800 tests/backend "$@" || failed+=("$version")
done
[ ${#failed[@]} -eq 0 ] || { echo "failed under transformers: ${failed[*]}"; exit 1; }
