#!/bin/sh
# The backend's tests under the oldest transformers we support; `make test` runs them under the newest.
# The environment is made once, in .venv-tf52. PYTHON chooses the interpreter; further arguments go to pytest.
set -eu
cd "$(dirname "$0")/.."
venv=.venv-tf52
if ! "$venv/bin/python" -c "import transformers, torch, pytest" 2>/dev/null; then
    "${PYTHON:-python3}" -m venv "$venv"
    "$venv/bin/python" -m pip install --quiet transformers==5.2.0 torch==2.13.0 numpy safetensors pytest pytest-timeout hypothesis
fi
"$venv/bin/python" -c "import transformers; print('transformers', transformers.__version__)"
exec "$venv/bin/python" -m pytest -q tests/backend "$@"
