# Sourced by quickstart.sh and run_tests.sh: one virtual environment in .venv, made once, and completed if that was interrupted.
# An importable torch is reused; otherwise a CPU build is installed. PYTHON names another interpreter.

make_environment() {
    local extra=$1 python=${PYTHON:-python3} venv=.venv
    "$python" - <<'CHECK' || return 1
import sys
if sys.version_info < (3, 11):
    sys.exit(f"error: Python {sys.version.split()[0]} found; PyAV 18 installs on 3.11 and later; name another: PYTHON=python3.11 bash tools/..")
CHECK
    local done_mark
    done_mark="$venv/ready-$extra-$(cat pyproject.toml tools/environment.sh | cksum | cut -d' ' -f1)"
    if [ -f "$done_mark" ]; then
        echo "== environment: $venv is ready"
        return 0
    fi
    echo "== environment: making $venv (a few minutes the first time)"
    local site=""
    "$python" -c "import torch" 2>/dev/null && site="--system-site-packages"
    # shellcheck disable=SC2086
    "$python" -m venv $site "$venv" || return 1
    local pip="$venv/bin/python -m pip install --quiet"
    $pip "setuptools<81" wheel || return 1
    if ! "$venv/bin/python" -c "import torch" 2>/dev/null; then
        echo "== environment: torch (CPU build)"
        # the extra index has CPU builds for Linux; without it pip falls back to its usual index
        $pip --retries 1 --timeout 20 --extra-index-url https://download.pytorch.org/whl/cpu torch==2.13.0 2>/dev/null ||
            $pip torch==2.13.0 || return 1
    fi
    if ! "$venv/bin/python" -c "import importlib.metadata as m; m.version('torchvision')" 2>/dev/null; then
        # --no-deps: torchvision needs one exact torch, and would replace the installed one
        $pip --no-deps torchvision==0.28.0 || return 1
    fi
    echo "== environment: BasicSR and the rest"
    $pip -e ".[$extra]" || return 1
    "$venv/bin/python" -m csd_plugin.install_basicsr --quiet || return 1
    touch "$done_mark"
}
