"""The clips of a slice: which travel, and where they lie once they have rain."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from slicing.telling import SliceError

VALIDATION = ("davis_bmx-trees", "davis_cows", "udacity_solidWhiteRight")
VALIDATION_FRAMES = 28  # the test looks at frames 11 to 25, in windows of 7
LEAST_FRAMES = 9  # of a training clip, which `num_frame` asks for
DATA = Path("datasets/rain_clips")
TRAINING, VALIDATING = "Dataset_Training_Synthetic", "Dataset_Testing_Synthetic"
TAR_ENTRY, TAR_END = 512, 20480  # bytes: of a header, and to which contents are filled up; at a tar's end


def pack_clips(source: Path, target: Path, room: int) -> str:
    """Copy the first frames of each clip: for validation, those that the test needs; of others, as many as fit."""
    clips = {folder.name: sorted(folder.iterdir()) for folder in sorted(source.iterdir()) if folder.is_dir()}
    missing = [name for name in VALIDATION if name not in clips]
    if missing:
        raise SliceError(f"{source} lacks the validation clip {missing[0]}")
    left = room - TAR_END - TAR_ENTRY * (len(clips) + 3)  # folders
    for name in VALIDATION:
        frames = clips.pop(name)[:VALIDATION_FRAMES]
        left -= packed_size(frames)
        copy_frames(frames, target / "validation" / name)
    if not clips:
        raise SliceError(f"{source} has no clips to train on, beside those for validation")
    count = max(map(len, clips.values()))
    while count >= LEAST_FRAMES and sum(packed_size(clip[:count]) for clip in clips.values()) > left:
        count -= 1
    if count < LEAST_FRAMES:
        raise SliceError(f"{source}: {LEAST_FRAMES} frames of every clip do not fit into {max(left, 0) // 1000} KB")
    for name, frames in clips.items():
        copy_frames(frames[:count], target / "train" / name)
    return f"{len(clips)} clips to train on, their first {count} frames; {len(VALIDATION)} to validate on"


def packed_size(frames: Iterable[Path]) -> int:
    """Bytes in a tar file."""
    return sum(TAR_ENTRY * (1 - -frame.stat().st_size // TAR_ENTRY) for frame in frames)


def copy_frames(frames: Sequence[Path], folder: Path) -> None:
    folder.mkdir(parents=True)
    for frame in frames:
        shutil.copyfile(frame, folder / frame.name)
