#!/usr/bin/env bash
# From nothing to a distilled student and a derained clip: bash tools/quickstart.sh [FOLDER]
# FOLDER: clean clips, or a data set in NTURain's layout; default: moving scenes made from photographs.
set -euo pipefail
cd "$(dirname "$0")/.."
source tools/environment.sh
make_environment dev
exec .venv/bin/python tools/quickstart.py "$@"
