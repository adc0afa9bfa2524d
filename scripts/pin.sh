#!/usr/bin/env bash
# requirements.txt from pyproject.toml: every version pinned, no CUDA packages (pip fetches those that torch asks for where
# there is a GPU build), no local version tag, so that one file serves CPU and GPU machines. Needs uv (pip install uv).
set -euo pipefail
cd "$(dirname "$0")/.."
pins=$(mktemp)
trap 'rm -f "$pins"' EXIT
uv pip compile pyproject.toml --group dev --universal --no-header --no-annotate --quiet --output-file "$pins"
sed -E 's/\+cpu//' "$pins" | grep -Ev '^(nvidia-|cuda-|triton)' | sort -u >requirements.txt
wc -l requirements.txt
