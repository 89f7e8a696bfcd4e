"""Videos that ffmpeg makes, and what ffprobe sees in a file; tests that use them are skipped where there are none."""

from __future__ import annotations

import json
import shutil
import subprocess
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest

needs_ffmpeg = pytest.mark.skipif(
    shutil.which("ffmpeg") is None or shutil.which("ffprobe") is None,
    reason="ffmpeg and ffprobe make and read the videos; there are none here",
)
SMOOTH = (
    "nullsrc=s=96x64:r=25:d={seconds},format=gbrp,geq=r='40+3*N+60*X/W':g='200-100*Y/H':b='90+2*N+40*X*Y/W/H',setsar=1"
)
"""A picture that codecs keep, brighter with every frame."""


def make(path: Path, *options: object, seconds: float = 0.2, picture: str = SMOOTH) -> Path:
    """A video of a test picture, encoded as the options say; they may begin with more inputs."""
    shown = picture.format(seconds=seconds)
    command = ["ffmpeg", "-v", "error", "-y", "-f", "lavfi", "-i", shown, *map(str, options)]
    subprocess.run([*command, str(path)], check=True, capture_output=True)
    return path


def probe(path: Path, *more: str) -> dict[str, Any]:
    """Streams, format and chapters, and what `more` options of ffprobe show."""
    shown = ("-show_streams", "-show_format", "-show_chapters", *more)
    return json.loads(_run("ffprobe", "-v", "error", *shown, "-of", "json", path))


def stream(path: Path, kind: str = "video", number: int = 0) -> dict[str, Any]:
    """The number-th stream of a kind."""
    return [one for one in probe(path)["streams"] if one["codec_type"] == kind][number]


def times(path: Path) -> list[float]:
    """Seconds at which pictures are shown."""
    entries = ("-select_streams", "V:0", "-show_entries", "frame=pts_time", "-of", "csv=p=0")
    return [float(line.strip(",")) for line in _run("ffprobe", "-v", "error", *entries, path).decode().split()]


def packets(path: Path, which: str) -> list[str]:
    """Hashes of a track's packets, as ffprobe names the track: a:0."""
    entries = ("-show_entries", "packet=data_hash", "-show_data_hash", "md5", "-select_streams", which)
    return [
        line.strip(",") for line in _run("ffprobe", "-v", "error", *entries, "-of", "csv=p=0", path).decode().split()
    ]


def pixels(path: Path, pix_fmt: str = "rgb24") -> np.ndarray:
    """(T, H, W, 3), in levels of 8 bits; of a planar format, (T, planes * H, W)."""
    facts = stream(path)
    flags = "scale=flags=bicubic+accurate_rnd+full_chroma_int"
    command = ["ffmpeg", "-v", "error", "-noautorotate", "-i", path, "-map", "0:V:0", "-fps_mode", "passthrough"]
    data = _run(*command, "-vf", flags, "-pix_fmt", pix_fmt, "-f", "rawvideo", "-")
    deep = pix_fmt.endswith("le")
    numbers = np.frombuffer(data, "<u2" if deep else np.uint8).astype(float) / (257 if deep else 1)
    return numbers.reshape(-1, facts["height"], facts["width"], 3)


def seconds(path: Path) -> float:
    return float(probe(path)["format"]["duration"])


def aspect(path: Path) -> Fraction:
    return Fraction(stream(path)["sample_aspect_ratio"].replace(":", "/"))


def _run(*command: object) -> bytes:
    return subprocess.run([str(part) for part in command], check=True, capture_output=True).stdout
