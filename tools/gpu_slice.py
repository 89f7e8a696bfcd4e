"""The work of `gpu_slice.sh`: choose clips that travel; check, render, measure, train side by side, test."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
MATRIX = ROOT / "options/matrix/gpu_slice.yml"
VALIDATION = ("davis_bmx-trees", "davis_cows", "udacity_solidWhiteRight")
VALIDATION_FRAMES = 28  # the test looks at frames 11 to 25, in windows of 7
LEAST_FRAMES = 12  # of a training clip: windows of 11
DATA = Path("datasets/rain_clips")
JPEG_QUALITY = 75
SAVED_EVERY = 60  # seconds
PATIENCE = 20.0  # seconds after the deadline, for a step and a checkpoint
CONTEXT_GIB = 1.0  # of a GPU's memory, that a process takes for itself
#: `--cpu`: what a rehearsal without a GPU changes, so that some steps fit
SMALL = {
    "num_gpu": 0,
    "datasets.train.gt_size": 32,
    "datasets.train.num_frame": 7,
    "datasets.train.num_target": 1,
    "datasets.train.batch_size_per_gpu": 1,
    "logger.print_freq": 5,
}
SMALL_WIDTH = 4


class SliceError(RuntimeError):
    """A line for the user."""


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    jobs = parser.add_subparsers(dest="job", required=True)
    pack = jobs.add_parser("pack-clips")
    pack.add_argument("source", type=Path)
    pack.add_argument("target", type=Path)
    pack.add_argument("--kilobytes", type=int, required=True, help="that all of them may have")
    run = jobs.add_parser("run")
    run.add_argument("--seconds", type=float, default=480, help="of training (default 480)")
    run.add_argument("--out", type=Path, default=Path("slice"), help="folder for all that is made (default slice)")
    run.add_argument("--clips", type=Path, default=ROOT / "clips", help="with train/ and validation/ (default: packed)")
    run.add_argument("--before", type=Path, default=ROOT / "before", help="weights to start from (default: packed)")
    run.add_argument("--networks", nargs="+", metavar="ROW", help="rows of options/matrix/gpu_slice.yml (default all)")
    run.add_argument("--cpu", action="store_true", help="rehearse without a GPU: narrow networks, small crops")
    args = parser.parse_args(argv)
    try:
        if args.job == "pack-clips":
            print(pack_clips(args.source, args.target, args.kilobytes))
        else:
            run_slice(args)
    except (SliceError, ValueError) as error:  # CSDError is a ValueError
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


# ---------------------------------------------------------------------- clips
def pack_clips(source: Path, target: Path, kilobytes: int) -> str:
    """Copy the first frames of each clip: of those for validation what the test looks at, of others what fits."""
    clips = {folder.name: sorted(folder.iterdir()) for folder in sorted(source.iterdir()) if folder.is_dir()}
    missing = [name for name in VALIDATION if name not in clips]
    if missing:
        raise SliceError(f"{source} lacks the validation clip {missing[0]}")
    left = kilobytes * 1000
    for name in VALIDATION:
        left -= copy_frames(clips.pop(name)[:VALIDATION_FRAMES], target / "validation" / name)
    count = max(map(len, clips.values()), default=0)
    while count >= LEAST_FRAMES and sum(f.stat().st_size for clip in clips.values() for f in clip[:count]) > left:
        count -= 1
    if count < LEAST_FRAMES:
        raise SliceError(f"{source}: {LEAST_FRAMES} frames of every clip do not fit into {max(left, 0) // 1000} KB")
    for name, frames in clips.items():
        copy_frames(frames[:count], target / "train" / name)
    return f"{len(clips)} clips to train on, their first {count} frames; {len(VALIDATION)} to validate on"


def copy_frames(frames: Sequence[Path], folder: Path) -> int:
    """Bytes copied."""
    folder.mkdir(parents=True)
    for frame in frames:
        shutil.copyfile(frame, folder / frame.name)
    return sum(frame.stat().st_size for frame in frames)


# ---------------------------------------------------------------------- a slice
@dataclass
class Network:
    """options, test: contents of option files. start: weights that it starts from. step: seconds, alone. memory: GiB
    at most, 0 on a CPU."""

    row: str
    name: str
    options: dict[str, Any]
    test: dict[str, Any]
    start: Path | None = None
    step: float = 0.0
    memory: float = 0.0
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
        """What a training can be resumed from, oldest first."""
        return sorted(self.folder.glob("training_states/*.state"), key=lambda file: int(file.stem))


def run_slice(args: argparse.Namespace) -> None:
    began = time.monotonic()
    clips, before = args.clips.resolve(), args.before.resolve()
    check_machine(args.cpu)
    for part in ("train", "validation"):
        if not (clips / part).is_dir():
            raise SliceError(f"{clips} has no folder {part}; pack clips, or give --clips")
    args.out.mkdir(parents=True, exist_ok=True)
    os.chdir(args.out)
    render_rain(clips)
    networks = plan(args.networks, before, args.cpu)
    measure(networks, args.cpu)
    train(networks, args.seconds)
    test(networks)
    print(write_results(networks, args.seconds))
    say(f"all of it took {time.monotonic() - began:.0f} s")


def say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] {text}", flush=True)


def check_machine(cpu: bool) -> None:
    import torch

    say(f"Python {platform.python_version()}, torch {torch.__version__}, {os.cpu_count()} processors")
    free = shutil.disk_usage(".").free / 2**30
    if free < 2:
        raise SliceError(f"{free:.1f} GiB of disk are free; 2 are needed")
    if torch.cuda.is_available():
        facts = torch.cuda.get_device_properties(0)
        cudnn = torch.backends.cudnn.version()
        say(f"{facts.name}, {facts.total_memory / 2**30:.0f} GiB, CUDA {torch.version.cuda}, cuDNN {cudnn}")
    elif cpu:
        say("no GPU: a rehearsal of narrow networks, whose weights are of no use")
    else:
        raise SliceError("torch finds no GPU; --cpu rehearses without one")


def render_rain(clips: Path) -> None:
    """The rain of `csd reproduce`: four versions of each training clip, one of each validation clip.

    Not by `csd rain`, which reads videos too: PyAV's wheel would take half of what may travel.
    """
    began = time.monotonic()
    tasks = [
        (
            clip,
            DATA / split / (f"{clip.name}_Rain_{version:02d}" if versions > 1 else f"{clip.name}_Rain"),
            seed,
            version,
        )
        for part, split, versions, seed in (
            ("train", "Dataset_Training_Synthetic", 4, 0),
            ("validation", "Dataset_Testing_Synthetic", 1, 1000),
        )
        for clip in sorted((clips / part).iterdir())
        for version in range(1, versions + 1)
    ]
    with multiprocessing.get_context("spawn").Pool(min(os.cpu_count() or 1, len(tasks))) as pool:
        pool.starmap(rain_on, [task for task in tasks if not task[1].is_dir()], chunksize=1)
    say(f"rain rendered in {time.monotonic() - began:.0f} s")


def rain_on(clip: Path, target: Path, seed: int, version: int) -> None:
    """A folder of rainy frames and, with the first version, the clean ones next to it."""
    import cv2

    from csd_plugin.data.rain import PRESETS
    from csd_plugin.data.rain.renderer import clip_renderer

    cv2.setNumThreads(1)
    draft, rain = target.with_name(f".{target.name}"), None
    draft.mkdir(parents=True, exist_ok=True)
    for number, file in enumerate(sorted(clip.iterdir())):
        frame = cv2.cvtColor(cv2.imread(str(file)), cv2.COLOR_BGR2RGB)
        rain = rain or clip_renderer(PRESETS["nturain"], seed, clip.name, version, frame)
        rainy = cv2.cvtColor(rain.render(frame, number), cv2.COLOR_RGB2BGR)
        cv2.imwrite(str(draft / f"{number + 1:05d}.jpg"), rainy, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    if version == 1:
        clean = target.with_name(f"{clip.name}_GT")
        clean.mkdir(exist_ok=True)
        for number, file in enumerate(sorted(clip.iterdir())):
            shutil.copyfile(file, clean / f"{number + 1:05d}{file.suffix.lower()}")
    draft.rename(target)


def plan(rows: Sequence[str] | None, before: Path, cpu: bool) -> list[Network]:
    """The networks of the matrix, starting from the weights of the slice before where it left any."""
    from csd_plugin.lab.matrix import changed, read_matrix, runs_of

    networks = []
    for run in runs_of(read_matrix(MATRIX), MATRIX, list(rows) if rows else None).values():
        assert run.options is not None and run.test is not None
        options, test = run.options, changed(run.test, {"num_gpu": int(not cpu)})
        if cpu:
            options = changed(options, SMALL | {"network_g.num_feat": SMALL_WIDTH})
            test = changed(test, {"network_g.num_feat": SMALL_WIDTH, "datasets.test_1.frame_range": [11, 11]})
        start = start_of(run.row, before, cpu)
        if start is not None:
            options = changed(options, {"path.pretrain_network_g": str(start), "path.param_key_g": "params"})
        network = Network(run.row, run.name, options, test, start)
        say(f"{run.row}: from {(network.states or [start])[-1] or 'the beginning'}")
        networks.append(network)
    return networks


def start_of(row: str, before: Path, cpu: bool) -> Path | None:
    """The weights of the slice before, else those that ship, which narrow networks cannot take; None: neither."""
    shipped = [] if cpu else [ROOT / "csd_plugin/weights" / f"{row}.pth"]
    return next((file for file in (before / f"{row}.pth", *shipped) if file.is_file()), None)


def measure(networks: Sequence[Network], cpu: bool) -> None:
    """Seconds and memory of a step of each network alone; of the teacher, the share of the device's own rate."""
    import torch

    from csd_plugin import registration

    registration.install()
    from csd_plugin.archs.interface import run_network
    from csd_plugin.bench.measure import MatrixRate, finished, seconds
    from csd_plugin.bench.operations import operations
    from csd_plugin.models.probe import Probe

    device = torch.device("cpu" if cpu else "cuda")
    rate = MatrixRate(device, torch.float32 if cpu else torch.bfloat16).measure()
    say(f"matrix products: {2 * rate / 1e12:.2f} TFLOP/s in {'fp32' if cpu else 'bf16'}")
    for network in networks:
        if not cpu:
            torch.cuda.reset_peak_memory_stats()
        probe = Probe(network.options)
        step = finished(probe.step, device)
        step()
        network.step = min(seconds(step) for _ in range(2 if cpu else 10))
        network.memory = 0.0 if cpu else torch.cuda.max_memory_allocated() / 2**30
        model = probe.model
        useful = operations(model.net_g, model.num_frame).useful * model.gt.numel() / 3

        def forward(model: Any = model) -> None:
            with torch.no_grad():
                run_network(
                    model.net_g,
                    model.lq,
                    model.gt.shape[1],
                    model.interface_of(model.net_g),
                    autocast=model.autocast_dtype,
                )

        once = finished(forward, device)
        once()
        ahead = min(seconds(once) for _ in range(2 if cpu else 10))
        say(
            f"{network.row}: step {1e3 * network.step:.1f} ms ({3 * useful / network.step / rate:.1%} of matrix "
            f"products), forward {1e3 * ahead:.1f} ms ({useful / ahead / rate:.1%}), {network.memory:.1f} GiB"
        )
        del probe, model, step, once
        if not cpu:
            torch.cuda.empty_cache()


def train(networks: Sequence[Network], length: float) -> None:
    """All that fit into the GPU's memory at once, each in a process; they end by the clock, or are stopped."""
    began = time.monotonic()
    chosen = fitting(networks, free_memory(), resident_memory())
    processes = {}
    for network in chosen:
        left = length - (time.monotonic() - began)
        network.options["train"]["max_seconds"] = round(seconds_before(network) + left, 1)
        network.options["logger"]["save_checkpoint_freq"] = max(1, round(SAVED_EVERY / (network.step * len(chosen))))
        processes[network.row] = launch("train", network, network.options, len(chosen))
    for network in chosen:
        process = processes[network.row]
        try:
            process.wait(max(0.0, began + length + PATIENCE - time.monotonic()))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)  # which saves
            network.note = "stopped late"
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        if process.returncode not in (0, 128 + signal.SIGTERM, -signal.SIGTERM):  # the last: it had ended by itself
            network.note = f"training failed with status {process.returncode}: {last_error(network)}"
    say(f"{len(chosen)} networks trained for {time.monotonic() - began:.0f} s")


def seconds_before(network: Network) -> float:
    """Those that a training has had which is resumed, as its clock counts them."""
    import torch

    return float(torch.load(network.states[-1], map_location="cpu")["seconds"]) if network.states else 0.0


def free_memory() -> float:
    """GiB of the GPU."""
    import torch

    return torch.cuda.mem_get_info()[0] / 2**30 if torch.cuda.is_available() else float("inf")


def resident_memory() -> float:
    """GiB of the training clips, which each process keeps decoded on the GPU."""
    import cv2

    total = 0
    for clip in (DATA / "Dataset_Training_Synthetic").iterdir():
        frames = sorted(clip.iterdir())
        total += len(frames) * cv2.imread(str(frames[0])).nbytes
    return total / 2**30


def fitting(networks: Sequence[Network], room: float, resident: float) -> list[Network]:
    """In order, as long as the GPU has room; each process also needs some memory for itself and its clips."""
    chosen = []
    for network in networks:
        needed = 1.2 * network.memory + resident + CONTEXT_GIB
        if needed <= room:
            chosen.append(network)
            room -= needed
        else:
            network.note = f"left out: needs {needed:.1f} GiB, {room:.1f} are left"
            say(f"{network.row} {network.note}")
    return chosen


def launch(job: str, network: Network, options: Mapping[str, Any], processes: int) -> subprocess.Popen[Any]:
    import yaml

    file, log = Path("options", f"{network.row}_{job}.yml"), Path("logs", f"{network.row}.log")
    for path in (file, log):
        path.parent.mkdir(exist_ok=True)
    file.write_text(yaml.safe_dump(dict(options), sort_keys=False), encoding="utf-8")
    command = [sys.executable, "-m", f"csd_plugin.{job}", "-opt", str(file)]
    command += ["--auto_resume"] if job == "train" else []
    environment = {**os.environ, "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes))}
    with log.open("a", encoding="utf-8") as sink:
        return subprocess.Popen(command, stdout=sink, stderr=sink, env=environment)


def last_error(network: Network) -> str:
    lines = Path("logs", f"{network.row}.log").read_text(encoding="utf-8", errors="replace").splitlines()
    return next((line for line in reversed(lines) if line.startswith("error:")), lines[-1] if lines else "no output")


def test(networks: Sequence[Network]) -> None:
    """Those that have weights, at once: whole frames of the validation clips."""
    ready = [network for network in networks if network.newest is not None]
    processes = {}
    for network in ready:
        options = network.test | {"path": network.test["path"] | {"pretrain_network_g": str(network.newest)}}
        processes[network.row] = launch("test", network, options, len(ready))
    for network in ready:
        if processes[network.row].wait():
            network.note = f"test failed: {last_error(network)}"


def write_results(networks: Sequence[Network], length: float) -> str:
    """Weights by row, for the next slice too, and the table. Returns the table.

    A network that has not trained keeps the weights that it would have started from.
    """
    import torch

    from csd_plugin.metrics.results import load_results

    Path("weights").mkdir(exist_ok=True)
    lines = [
        f"A slice of {length:g} s; PSNR in dB / SSIM of the luma on {', '.join(VALIDATION)}, frames 11 to 25.",
        "",
        "| network | steps | ms of a step alone | validation | |",
        "| --- | ---: | ---: | ---: | --- |",
    ]
    for network in networks:
        kept, score = Path("weights", f"{network.row}.pth"), "-"
        if network.newest is not None:
            weights = torch.load(network.newest, map_location="cpu", weights_only=True)
            torch.save({"params": weights.get("params_ema", weights["params"])}, kept)
        elif network.start is not None:
            shutil.copyfile(network.start, kept)
        results = Path("results", network.name, "validation.json")
        if results.is_file():
            found = load_results(results).scores.summary()
            score = f"{found['nturain_y/psnr']:.2f} / {found['nturain_y/ssim']:.4f}"
        steps = int(network.states[-1].stem) if network.states else 0
        alone = f"{1e3 * network.step:.1f}"
        lines.append(f"| {network.row} | {steps:,} | {alone} | {score} | {network.note} |")
    text = "\n".join(lines)
    Path("table.md").write_text(text + "\n", encoding="utf-8")
    return text


if __name__ == "__main__":
    sys.exit(main())
