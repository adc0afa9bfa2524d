#!/usr/bin/env bash
# requirements.txt from pyproject.toml: every version pinned, no CUDA packages (pip fetches those that torch asks for where
# there is a GPU build), no local version tag, so that one file serves CPU and GPU machines. Needs uv (pip install uv).
set -euo pipefail
cd "$(dirname "$0")/.."
torch=2.13.0
pins=$(mktemp)
trap 'rm -f "$pins"' EXIT
echo "torch==$torch" | uv pip compile pyproject.toml --constraint - --group dev --universal --python-version 3.10 --no-header --no-annotate --quiet --output-file "$pins"
(grep -Ev '^(nvidia-|cuda-|triton|torch==)' "$pins"; echo "torch==$torch") | sort >requirements.txt
wc -l requirements.txt
