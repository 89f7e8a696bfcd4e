#!/usr/bin/env bash
# A slice of training on a machine with one GPU and no network, lent for minutes.
#
#   bash tools/gpu_slice.sh pack --clips CLEAN [--before SLICE/weights] [--python 3.12] OUT.tar   here: all that travels
#   bash tools/gpu_slice.sh run [--seconds 480] [--out slice] [--cpu] ..                  there, in the unpacked folder
#
# `pack` fetches the wheels that such a machine lacks and takes of every clip as many frames as fit, below 60 MB in all.
# `run` installs them, checks the machine, renders the rain, measures, trains several networks side by side, tests them,
# and leaves weights, logs and a table in the folder --out. Networks start from the weights of the slice before, else
# from those that ship. With the same --out again, trainings are resumed.
# The machine brings Python, torch, NumPy, OpenCV, PyYAML, SciPy and scikit-image.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
limit_mb=60
packages="basicsr==1.4.2 torchvision==0.26.0 tqdm lmdb safetensors requests urllib3 idna certifi charset-normalizer
    pydantic annotated-types typing-inspection"

fail() {
    echo "error: $*" >&2
    exit 2
}

pack() {
    local clips="" before="" python=3.12 out=""
    while [ $# -gt 0 ]; do
        case $1 in
        --clips) clips=$2 && shift 2 ;;
        --before) before=$2 && shift 2 ;;
        --python) python=$2 && shift 2 ;;
        -*) fail "pack: $1 is unknown; see the head of $0" ;;
        *) out=$1 && shift ;;
        esac
    done
    [ -d "$clips" ] && [ -n "$out" ] || fail "pack: give --clips FOLDER of clean clips, and OUT.tar"
    stage=$(mktemp -d) # for the trap, which runs after this function
    trap 'rm -rf "$stage"' EXIT
    git -C "$here" archive HEAD csd_plugin options tools pyproject.toml | tar -x -C "$stage"
    fetch_wheels "$stage/wheels" "$python"
    if [ -n "$before" ]; then cp -r "$before" "$stage/before"; fi
    local left=$((limit_mb * 1000 - $(du -sk --apparent-size "$stage" | cut -f1) - 500)) # for tar's own
    python3 "$here/tools/gpu_slice.py" pack-clips "$clips" "$stage/clips" --kilobytes "$left"
    tar -cf "$out" -C "$stage" .
    echo "$out: $(($(stat -c %s "$out") / 1000000)) MB"
}

fetch_wheels() { # folder, Python version: built here where a package comes as source alone
    local platforms="" tag
    for tag in manylinux_2_28 manylinux_2_27 manylinux_2_17 manylinux2014 manylinux1; do
        platforms="$platforms --platform ${tag}_x86_64"
    done
    mkdir -p "$1"
    python3 -m pip wheel -q --no-build-isolation --no-deps -w "$1" basicsr==1.4.2 ||
        fail "pack: BasicSR does not build here: run this in the project's environment (see CONTRIBUTING.md)"
    # shellcheck disable=SC2086
    python3 -m pip download -q --no-deps --only-binary=:all: --python-version "$2" --implementation cp $platforms \
        -d "$1" ${packages#basicsr==1.4.2}
    local core
    core=$(unzip -p "$1"/pydantic-[0-9]*.whl '*/METADATA' | sed -n 's/^Requires-Dist: pydantic-core *(\{0,1\}==*\([0-9.]*\).*/\1/p')
    # shellcheck disable=SC2086
    python3 -m pip download -q --no-deps --only-binary=:all: --python-version "$2" --implementation cp $platforms \
        -d "$1" "pydantic-core==$core"
}

run() {
    local python=${PYTHON:-python3} site
    site=$(mktemp -d)
    "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$here"/wheels/*.whl ||
        fail "the wheels do not fit this machine's Python ($("$python" --version)): pack again with --python"
    PYTHONPATH="$here:$site" PYTHONUNBUFFERED=1 exec "$python" "$here/tools/gpu_slice.py" run "$@"
}

case ${1:-} in
pack) shift && pack "$@" ;;
run) shift && run "$@" ;;
*) fail "say pack or run; see the head of $0" ;;
esac
