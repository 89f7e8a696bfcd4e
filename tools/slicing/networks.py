"""The networks of a slice: their options, and the weights from which they start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from slicing.telling import SliceError, say

ROOT = Path(__file__).resolve().parents[2]
MATRIX = ROOT / "options/matrix/gpu_slice.yml"
#: `--cpu`: what a rehearsal without a GPU changes, so that some steps fit
SMALL = {
    "num_gpu": 0,
    "train.cuda_graph": False,
    "datasets.train.gt_size": 32,
    "datasets.train.num_frame": 7,
    "datasets.train.num_target": 1,
    "datasets.train.batch_size_per_gpu": 1,
    "logger.print_freq": 5,
}
SMALL_WIDTH = 4


@dataclass
class Network:
    """options, test: contents of option files. start: weights that it starts from. share: of the time, beside those of
    the others. step: seconds. memory: GiB at most, 0 on a CPU. before: iterations of earlier slices in this folder."""

    row: str
    name: str
    options: dict[str, Any]
    test: dict[str, Any]
    start: Path | None = None
    share: float = 1.0
    step: float = 0.0
    memory: float = 0.0
    before: int = 0
    note: str = ""

    @property
    def folder(self) -> Path:
        return Path("experiments", self.name)

    @property
    def newest(self) -> Path | None:
        """The weights that were saved last: a training that is stopped saves them by iteration alone."""
        saved = self.folder.glob("models/net_g_*.pth")
        return max(saved, key=lambda file: file.stat().st_mtime_ns, default=None)

    @property
    def states(self) -> list[Path]:
        """The states from which a training can be resumed, oldest first."""
        return sorted(self.folder.glob("training_states/*.state"), key=lambda file: int(file.stem))

    @property
    def steps(self) -> int:
        """Iterations whose weights are on the disk."""
        return int(self.states[-1].stem) if self.states else 0


def plan(rows: Sequence[tuple[str, float]] | None, before: Path, cpu: bool) -> list[Network]:
    """The networks of the matrix, starting from the weights of the slice before where it left any."""
    shares = dict(rows or ())
    if len(shares) < len(rows or ()):
        raise SliceError("--networks names a row twice")
    from csd_plugin.lab.matrix import changed, read_matrix, runs_of

    networks = []
    for run in runs_of(read_matrix(MATRIX), MATRIX, list(shares) or None).values():
        assert run.options is not None and run.test is not None
        options, test = run.options, changed(run.test, {"num_gpu": int(not cpu)})
        if cpu:
            options = changed(options, SMALL | {"network_g.num_feat": SMALL_WIDTH})
            test = changed(test, {"network_g.num_feat": SMALL_WIDTH, "datasets.test_1.frame_range": [7, 7]})
        start = start_of(run.row, before, cpu)
        if start is not None:
            options = changed(options, {"path.pretrain_network_g": str(start), "path.param_key_g": "params"})
        network = Network(run.row, run.name, options, test, start, shares.get(run.row, 1.0))
        network.before = network.steps
        say(f"{run.row}: from {(network.states or [start])[-1] or 'the beginning'}")
        networks.append(network)
    return networks


def start_of(row: str, before: Path, cpu: bool) -> Path | None:
    """The weights of the slice before, else those that ship, which narrow networks cannot take; None: neither."""
    shipped = [] if cpu else [ROOT / "csd_plugin/weights" / f"{row}.pth"]
    return next((file for file in (before / f"{row}.pth", *shipped) if file.is_file()), None)
