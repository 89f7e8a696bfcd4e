"""Rainy/clean pairs on disk, in NTURain's folder layout, from clean clips."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from csd_plugin.data.rain.params import RainParams, random_params
from csd_plugin.data.rain.renderer import RainRenderer, ambient_light
from csd_plugin.errors import CSDError

FRAME_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}
_COPIED_SUFFIXES = {".jpg", ".jpeg", ".png"}


@dataclass(frozen=True)
class PairOptions:
    """How pairs are written.

    layout:   'training' (`Dataset_Training_Synthetic/<clip>_GT`, `<clip>_Rain_01` ..) or 'testing'
              (`Dataset_Testing_Synthetic/<clip>_GT`, `<clip>_Rain`).
    variants: rainy versions of every clip, at least 1; exactly 1 in the testing layout.
    vary:     every version gets a rain of its own about `params`; otherwise all have `params` and differ by seed.
    suffix:   '.jpg' or '.png' of rainy frames; quality: of JPEG, 1 to 100. fps: of the clips.
    """

    params: RainParams
    seed: int = 0
    layout: str = "training"
    variants: int = 1
    vary: bool = True
    suffix: str = ".jpg"
    quality: int = 95
    fps: float = 25.0

    def __post_init__(self) -> None:
        if self.layout == "testing" and self.variants != 1:
            raise CSDError(
                f"rain: the testing layout holds one rainy version of a clip, not variants = {self.variants}"
            )
        if self.variants < 1:
            raise CSDError(f"rain: variants = {self.variants} must be at least 1")
        if not 1 <= self.quality <= 100:
            raise CSDError(f"rain: quality = {self.quality} is not in 1..100")

    @property
    def root(self) -> str:
        return f"Dataset_{self.layout.capitalize()}_Synthetic"

    def rainy_name(self, clip: str, variant: int) -> str:
        return f"{clip}_Rain" if self.layout == "testing" else f"{clip}_Rain_{variant:02d}"


def find_clips(source: Path, names: Sequence[str] | None = None) -> dict[str, list[Path]]:
    """Clip name -> its frames in order, from a folder of clips or one folder of frames.

    names: only these clips. Raises CSDError for a missing or empty folder and for names that are not there.
    """
    if not source.is_dir():
        raise CSDError(f"rain: there is no folder {source}")
    folders = [folder for folder in sorted(source.iterdir()) if folder.is_dir() and not folder.name.startswith(".")]
    clips = {folder.name: frames for folder in [source, *folders] if (frames := _frames(folder))}
    if not clips:
        raise CSDError(
            f"rain: {source} holds neither frames nor folders of frames ({', '.join(sorted(FRAME_SUFFIXES))})"
        )
    if names is None:
        return clips
    missing = [name for name in names if name not in clips]
    if missing:
        raise CSDError(f"rain: {source} has no clip {', '.join(missing)}; it has {', '.join(clips)}")
    return {name: clips[name] for name in names}


def _frames(folder: Path) -> list[Path]:
    frames = [path for path in folder.iterdir() if path.suffix.lower() in FRAME_SUFFIXES and path.name[0] != "."]
    return sorted(frames, key=lambda path: [int(s) if s.isdigit() else s for s in re.split(r"(\d+)", path.name)])


def read_frame(path: Path) -> np.ndarray:
    """(H, W, 3) uint8 RGB; CSDError where the file does not decode."""
    image = cv2.imdecode(np.fromfile(path, np.uint8), cv2.IMREAD_COLOR) if path.stat().st_size else None
    if image is None:
        raise CSDError(f"rain: {path} does not decode as an image; replace or remove it")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB)


def write_pairs(
    source: Path, out: Path, options: PairOptions, clips: Sequence[str] | None = None, jobs: int = 1
) -> int:
    """Write clean and rainy folders for every clip below `out`, and return how many folders were new.

    A folder appears under its name only when it is whole; those that are there already are left as they are.
    Raises CSDError as `find_clips` does, and for frames that do not decode or change their size.
    """
    found = find_clips(source, clips)
    root = out / options.root
    tasks = []
    for clip, frames in found.items():
        tasks.append((root / f"{clip}_GT", frames, clip, 0))
        for variant in range(1, options.variants + 1):
            tasks.append((root / options.rainy_name(clip, variant), frames, clip, variant))
    tasks = [task for task in tasks if not task[0].exists()]
    root.mkdir(parents=True, exist_ok=True)
    with tqdm(total=sum(len(task[1]) for task in tasks), desc="rain", unit="frame", disable=None) as progress:
        if jobs <= 1:
            for target, frames, clip, variant in tasks:
                progress.update(_write_folder(target, frames, clip, variant, options))
        else:
            with ProcessPoolExecutor(jobs, get_context("spawn")) as pool:
                futures = [pool.submit(_write_folder, *task, options) for task in tasks]
                try:
                    for future in as_completed(futures):
                        progress.update(future.result())
                except BaseException:
                    pool.shutdown(cancel_futures=True)
                    raise
    return len(tasks)


def _write_folder(target: Path, frames: list[Path], clip: str, variant: int, options: PairOptions) -> int:
    """Fill a folder beside the target, then give it its name; variant 0 is the clean clip. Returns how many frames."""
    scratch = target.with_name(f".{target.name}.part")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        if variant == 0:
            _write_clean(scratch, frames)
        else:
            _write_rainy(scratch, frames, clip, variant, options)
        scratch.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return len(frames)


def _write_clean(folder: Path, frames: list[Path]) -> None:
    for number, path in enumerate(frames, 1):
        suffix = path.suffix.lower()
        if suffix in _COPIED_SUFFIXES:
            shutil.copyfile(path, folder / f"{number:05d}{suffix}")
        else:
            _write_frame(folder / f"{number:05d}.png", read_frame(path), 100)


def _write_rainy(folder: Path, frames: list[Path], clip: str, variant: int, options: PairOptions) -> None:
    first = read_frame(frames[0])
    rain = clip_renderer(options.params, options.seed, clip, variant, first, fps=options.fps, vary=options.vary)
    for number, path in enumerate(frames, 1):
        frame = read_frame(path)
        if frame.shape != first.shape:
            raise CSDError(
                f"rain: {path} is {frame.shape[1]}x{frame.shape[0]} where the clip's first frame is "
                f"{first.shape[1]}x{first.shape[0]}; a clip needs one size"
            )
        _write_frame(folder / f"{number:05d}{options.suffix}", rain.render(frame, number - 1), options.quality)


def clip_renderer(
    params: RainParams, seed: int, clip: str, variant: int, first: np.ndarray, *, fps: float = 25.0, vary: bool = True
) -> RainRenderer:
    """The rain of one version of a clip, whichever other clips are rendered with it.

    first: the clip's first whole frame (H, W, 3) uint8, for its size and light.
    vary:  draw the rain about `params` instead of taking them as they are.
    """
    digest = hashlib.sha256(f"{seed}/{clip}/{variant}".encode()).digest()
    own_seed = int.from_bytes(digest[:8], "little")
    if vary:
        params = random_params(params, np.random.default_rng(own_seed))
    height, width = first.shape[:2]
    return RainRenderer(params, own_seed, height, width, fps, ambient_light(first))


def _write_frame(path: Path, frame: np.ndarray, quality: int) -> None:
    settings = [cv2.IMWRITE_JPEG_QUALITY, quality] if path.suffix == ".jpg" else []
    _, data = cv2.imencode(path.suffix, cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), settings)
    data.tofile(path)
