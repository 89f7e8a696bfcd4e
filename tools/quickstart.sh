#!/usr/bin/env bash
# From nothing to a distilled student and a derained clip: bash tools/quickstart.sh [FOLDER]
# FOLDER: clean clips, or a data set in NTURain's layout; default: moving scenes made from photographs.
set -euo pipefail
[ $# -gt 0 ] && [ -d "$1" ] && set -- "$(cd "$1" && pwd)" "${@:2}" # relative to where the user is
cd "$(dirname "$0")/.."
source tools/environment.sh
make_environment dev
exec .venv/bin/python tools/quickstart.py "$@"
