"""Image files: one, a folder of them, and the numbered files that a pattern means."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np

from csd_plugin.atomic import replacing
from csd_plugin.data.layout import IMAGE_SUFFIXES, is_frame_name, natural_key
from csd_plugin.data.store import decode_image
from csd_plugin.errors import CSDError

NUMBER = re.compile(r"%0?\d?d")
"""What stands for the number in a pattern such as frames_%05d.png."""


def images_in(folder: Path) -> list[Path]:
    """The images of a folder in their natural order; other files are not looked at. Raises CSDError for none."""
    files = [file for file in folder.iterdir() if is_frame_name(file.name) and file.is_file()]
    if not files:
        raise CSDError(f"{folder} holds no images ({' '.join(IMAGE_SUFFIXES)}); give the folder that holds the frames")
    return sorted(files, key=lambda file: natural_key(file.name))


def numbered(pattern: Path) -> list[Path]:
    """The files that a pattern such as frames_%05d.png means, by number. Raises CSDError for none, or a gap."""
    if not pattern.parent.is_dir():
        raise CSDError(f"{pattern}: the folder {pattern.parent} does not exist; check the path")
    shape = shape_of(pattern.name)
    found = ((shape.fullmatch(file.name), file) for file in pattern.parent.iterdir())
    files = {int(match[1]): file for match, file in found if match}
    # %d and %05d write a number in one way only: file_7 is not file_00007's place.
    files = {n: f for n, f in files.items() if nth_name(pattern.name, n) == f.name}
    if not files:
        raise CSDError(f"{pattern}: no file is named so; check the folder and the number of digits")
    missing = next((n for n in range(min(files), max(files)) if n not in files), None)
    if missing is not None:
        raise CSDError(f"{pattern}: number {missing} of {min(files)} to {max(files)} is missing; restore the file")
    return [files[n] for n in sorted(files)]


def shape_of(pattern: str) -> re.Pattern[str]:
    """What names of a pattern such as frames_%05d.png look like; the number is the first group."""
    before, after = (re.escape(part) for part in NUMBER.split(pattern, maxsplit=1))
    return re.compile(f"{before}(\\d+){after}")


def nth_name(pattern: str, number: int) -> str:
    """The name that a pattern gives to a number."""
    return NUMBER.sub(lambda found: found[0] % number, pattern, count=1)


def read_image(path: Path) -> np.ndarray:
    """uint8 RGB (H, W, 3); see `decode_image` for what it makes of other kinds. Raises CSDError."""
    try:
        return decode_image(path.read_bytes(), str(path))
    except OSError as error:
        raise CSDError(f"{path}: cannot be read ({error.strerror or error}): restore the file") from error


def eight_bits(frame: np.ndarray) -> np.ndarray:
    """uint8 as it is, uint16 (full range) rounded."""
    return frame if frame.dtype == np.uint8 else ((frame.astype(np.uint32) + 128) // 257).astype(np.uint8)


def write_png(path: Path, frame: np.ndarray) -> None:
    """Write RGB (H, W, 3), uint8 or uint16, so that the file appears whole or not at all. Raises CSDError."""
    _, data = cv2.imencode(".png", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, 3])
    try:
        with replacing(path) as draft:
            draft.write_bytes(data.tobytes())
    except OSError as error:
        raise CSDError(f"{path}: cannot be written ({error.strerror})") from error
