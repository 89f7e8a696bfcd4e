#!/usr/bin/env bash
# All checks and tests, in a separate environment: bash tools/run_tests.sh [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/environment.sh
make_environment dev
echo "== ruff and mypy"
.venv/bin/python -m ruff check .
.venv/bin/python -m ruff format --check .
.venv/bin/python -m mypy
echo "== tests"
cores=$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN)
# one process more than cores, as some tests wait for processes, locks and clocks
.venv/bin/python -m pytest -q -n $((cores + 1)) --dist loadfile "$@"
