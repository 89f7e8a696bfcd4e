#!/usr/bin/env bash
# One slice of training on a rented machine with one GPU and no network.
#
#   bash tools/gpu_slice.sh pack --clips CLEAN [--before SLICE/weights] [--python 3.12] OUT.tar   here: makes the archive to copy
#   bash tools/gpu_slice.sh check [--seconds 300] [--out check]                                   there, unpacked
#   bash tools/gpu_slice.sh run [--seconds 540] [--out slice] [--measure] [--cpu] ..              there, unpacked
#
# `pack` fetches the wheels that such a machine lacks, and packs as many frames of every clip as fit into 60 MB in all.
# `run` installs them, checks the machine, renders the rain, measures, trains several networks in turns, tests them, and
# leaves weights, logs and a table in the folder --out. Networks start from the weights of the previous slice, else
# from those that ship. With the same --out again, trainings are resumed.
# `--seconds` is the time for everything, from this command's start to its table. A slow machine does less, not later:
# the table names what was not begun or was cut off. If anything hangs, everything is ended 10 seconds later.
# The machine must have Python, torch, NumPy, OpenCV, PyYAML, SciPy and scikit-image; PyAV is not needed.
#
# `check` needs no clips: it runs `csd bench step` and `infer`, `run --measure`, and the tests for GPUs, for which pytest
# and hypothesis must be there; pytest-xdist runs up to eight at once. What is not done in time is interrupted.
#
# If commands may run for ten minutes, and files of limited size in $OUT are copied back, with slice.tar there:
#   mkdir s && tar -xf slice.tar -C s && cd s && bash tools/gpu_slice.sh check; tar -czf "$OUT/check.tar.gz" check
#   mkdir -p s && tar -xf slice.tar -C s && cd s && { bash tools/gpu_slice.sh run --seconds 540; cd slice && \
#       tar -cf - weights logs table.md measured.json | split -b 15M - "$OUT/slice.tar."; }
# The next slice, on a new machine, continues from these weights: pack with --before.
set -euo pipefail
here=$(cd "$(dirname "$0")/.." && pwd)
limit_mb=60
packages="basicsr==1.4.2 torchvision==0.26.0 tqdm lmdb safetensors requests urllib3 idna certifi charset-normalizer
    pydantic annotated-types typing-inspection"

usage() { # the head of this file
    sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0"
}

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
        -*) fail "pack: $1 is unknown; see bash $0 --help" ;;
        *) out=$1 && shift ;;
        esac
    done
    [ -d "$clips" ] && [ -n "$out" ] || fail "pack: give --clips FOLDER of clean clips, and OUT.tar"
    stage=$(mktemp -d) # for the trap, which runs after this function
    trap 'rm -rf "$stage"' EXIT
    local parts="csd_plugin options tools tests pyproject.toml"
    # shellcheck disable=SC2086
    git -C "$here" archive HEAD $parts | tar -x -C "$stage"
    # shellcheck disable=SC2086
    if [ -n "$(git -C "$here" status --porcelain -- $parts)" ]; then
        echo "note: what is not committed is left out (git status shows it)" >&2
    fi
    fetch_wheels "$stage/wheels" "$python"
    if [ -n "$before" ]; then cp -r "$before" "$stage/before"; fi
    local left=$((limit_mb * 1000000 - $(tar -cf - -C "$stage" . | wc -c)))
    python3 "$here/tools/gpu_slice.py" pack-clips "$clips" "$stage/clips" --bytes "$left"
    tar -cf "$out" -C "$stage" .
    echo "$out: $(stat -c %s "$out") bytes"
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

install() { # sets python; what is carried, beside what the machine has
    local site
    python=${PYTHON:-python3}
    site=$(mktemp -d)
    "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" "$here"/wheels/*.whl ||
        fail "the wheels do not fit this machine's Python ($("$python" --version)): pack again with --python"
    export PYTHONPATH="$here:$site" PYTHONUNBUFFERED=1
}

check() {
    local out=check seconds=300 began=$SECONDS failed=0 several=""
    while [ $# -gt 0 ]; do
        case $1 in
        --out) out=$2 && shift 2 ;;
        --seconds) seconds=$2 && shift 2 ;;
        *) fail "check: $1 is unknown; see bash $0 --help" ;;
        esac
    done
    install
    mkdir -p "$out"
    out=$(cd "$out" && pwd) && cd "$here"
    part step 25 -m csd_plugin bench step --device cuda --precision bf16 --batch 4 --size 128 --num-target 5 --rounds 5 \
        --json "$out/step.json"
    part ways 30 tools/gpu_slice.py run --measure --seconds $((seconds * 3 / 10)) --out "$out/measured" \
        --networks realtime large student1 teacher
    part infer 25 -m csd_plugin bench infer --device cuda --networks tiny realtime large --sizes 640x480 --rounds 3 \
        --backends plain torch torch:bf16 compiled:bf16 --json "$out/infer.json"
    export PYTHONPATH="$here/tests/gpu:$PYTHONPATH"
    if "$python" -c "import xdist" 2>/dev/null; then several="-n auto --maxprocesses 8"; fi
    # shellcheck disable=SC2086
    part tests 100 -m pytest -q -rs -p no:cacheprovider $several tests/gpu/{cases,equality,formats,graphs}.py
    return $failed
}

part() { # name, share of the time in percent, arguments of Python: of `check`
    local name=$1 limit=$((seconds * $2 / 100)) left=$((seconds - SECONDS + began)) status=0
    shift 2
    # interrupted, pytest still says what has failed so far
    timeout -s INT -k 10 $((limit < left ? limit : left > 1 ? left : 1)) "$python" "$@" >"$out/$name.log" 2>&1 ||
        status=$?
    [ $status = 0 ] || failed=1
    echo "== $name: status $status after $((SECONDS - began)) s of $seconds; the end of $out/$name.log:"
    tail -n 25 "$out/$name.log"
}

run() {
    export GPU_SLICE_BEGAN # what is done before Python begins counts too
    GPU_SLICE_BEGAN=$(date +%s.%N)
    install
    exec "$python" "$here/tools/gpu_slice.py" run "$@"
}

case ${1:-} in
pack) shift && pack "$@" ;;
check) shift && check "$@" ;;
run) shift && run "$@" ;;
-h | --help) usage ;;
*) fail "say pack, check or run; see bash $0 --help" ;;
esac
