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
# in the order of the files: by default, long files of few tests would be last, beside idle cores
.venv/bin/python -m pytest -q -n auto --dist loadfile --no-loadscope-reorder "$@"
