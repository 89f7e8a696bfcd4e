"""Kill a distillation at random moments, resume it each time, and compare its student with that of an unkilled run.

    python tools/kill_resume.py --kills 30 --seed 0

The networks are tiny, and every step is saved. SIGKILL ends the run and its loader processes. The kills are spread over
the whole run, so they come during its start, its steps, its validations and while it writes files. After each kill, all
checkpoints and states must be readable. The exit status is 1 if one is not, or if the final network, the objective's
cells or the state differ from those of the unkilled run in a single bit.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

LONGEST = 3.0
"""The most seconds between a start or a step and the kill. A third of the kills come while the run starts."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30, help="number of kills (default 30)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills (default 0)")
    parser.add_argument("--steps", type=int, help="steps of the whole run (default: 12 per kill)")
    parser.add_argument("--work", type=Path, help="folder for the files (default: a temporary one)")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=args.work) as work:
        return compare(args.kills, random.Random(args.seed), args.steps or 12 * args.kills, Path(work))


def compare(kills: int, rng: random.Random, steps: int, work: Path) -> int:
    whole, killed = work / "whole", work / "killed"
    options = make_options(work, steps)
    for folder in (whole, killed):
        folder.mkdir()
        (folder / "options.yml").write_text(options)
    if finish(whole) != 0:
        return 1
    damaged = 0
    for number in range(1, kills + 1):
        if not kill_once(killed, rng, (number - rng.random()) / kills * (steps - 5)):
            print(f"the run ended by itself before kill {number}; give more --steps", file=sys.stderr)
            return 1
        newest, bad = look(killed)
        damaged += bad
        print(f"kill {number}: newest state {newest}, unreadable files: {bad}", flush=True)
    if finish(killed) != 0:
        return 1
    same = final(whole) == final(killed)
    print(f"{kills} kills, unreadable files: {damaged}; the final files are {'identical' if same else 'DIFFERENT'}")
    return 0 if same and not damaged else 1


def make_options(work: Path, steps: int) -> str:
    import yaml
    from toolbox import write_distillation

    saved = {"logger.save_checkpoint_freq": 1, "logger.keep_checkpoints": 3}
    return yaml.safe_dump(write_distillation(work, **{"train.total_iter": steps} | saved), sort_keys=False)


def start(folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "csd_plugin.train", "-opt", "options.yml", "--auto_resume"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(folder: Path) -> int:
    """Train to the end; the exit status."""
    process = start(folder)
    _, said = process.communicate()
    if process.returncode:
        print(f"the training in {folder} failed:\n{said[-2000:]}", file=sys.stderr)
    return process.returncode


def kill_once(folder: Path, rng: random.Random, after: float) -> bool:
    """Start or resume the run, and kill it with its loader processes; False if it ended by itself.

    Args:
        after: the number of the step that two thirds of the kills wait for.
    """
    process = start(folder)
    assert process.stderr is not None
    delay = LONGEST
    if rng.random() > 1 / 3:
        before = time.monotonic()
        for line in process.stderr:
            if done := re.search(r"iter: +(\d+), lr", line):  # every step is logged
                delay, before = min(LONGEST, 2 * (time.monotonic() - before)), time.monotonic()
                if int(done[1]) >= after:
                    break
    time.sleep(rng.uniform(0, delay))
    ended = process.poll() is not None
    if not ended:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return not ended


def look(folder: Path) -> tuple[str, int]:
    """The name of the newest state, and the number of networks and states that cannot be read."""
    from csd_plugin.archs.checkpoint import load_plain
    from csd_plugin.errors import CSDError
    from csd_plugin.resume_states import saved_states

    experiment, bad = folder / "experiments" / "run", 0
    for path in [*experiment.glob("models/[!.]*.pth"), *experiment.glob("training_states/[!.]*.state")]:
        try:
            load_plain(path, "file")
        except CSDError as error:
            print(error, file=sys.stderr)
            bad += 1
    states = saved_states(experiment / "training_states")
    return (states[0].name if states else "none"), bad


def final(folder: Path) -> dict[str, Any]:
    """The latest networks and the newest state of a run, with tensors as bytes, by file."""
    import torch

    experiment = folder / "experiments" / "run"
    files = sorted(experiment.glob("models/*_latest.pth"))
    contents = {path.name: torch.load(path, weights_only=True) for path in files}
    newest = max(experiment.glob("training_states/*.state"), key=lambda path: int(path.stem))
    contents["state"] = torch.load(newest, weights_only=True)
    return {name: as_bytes(content) for name, content in contents.items()}


def as_bytes(content: Any) -> Any:
    import torch

    if isinstance(content, torch.Tensor):
        return content.dtype, tuple(content.shape), content.numpy().tobytes()
    if isinstance(content, dict):
        return {key: as_bytes(value) for key, value in content.items()}
    return [as_bytes(value) for value in content] if isinstance(content, (list, tuple)) else content


if __name__ == "__main__":
    sys.exit(main())
