"""Small video files with smooth pictures, and what is in a file."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from csd_plugin.data.video import open_reader

SIZE = (64, 48)


def picture(number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A smooth picture that codecs keep, its corner brighter on the left, its level telling its number."""
    x, y = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]))
    return np.stack([40 + 10 * number + 60 * x, 200 - 100 * y, 90 + 40 * x * y], axis=2).astype(np.uint8)


def make_video(
    path: Path,
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    size: tuple[int, int] = SIZE,
    times: list[int] | None = None,
    rotation: int = 0,
    audio: int = 0,
    sound: str = "aac",
    options: dict[str, str] | None = None,
    noisy: bool = False,
) -> Path:
    """A small file; `times` in milliseconds. noisy: no two packets of sound are the same."""
    times = [40 * i for i in range(8)] if times is None else times
    with av.open(str(path), "w", container_options=options or {}) as container:
        video = container.add_stream(codec, rate=25)
        video.width, video.height = size
        video.pix_fmt = pix_fmt
        video.codec_context.time_base = Fraction(1, 1000)
        video.codec_context.options = {"crf": "10", "x265-params": "log-level=error"} if "26" in codec else {}
        if rotation:
            video.set_display_rotation(rotation)
        sounds = [container.add_stream(sound, rate=48000) for _ in range(audio)]
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(picture(number, size), "rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        for track, stream in enumerate(sounds):
            for block in range(len(times) * 2):
                tone = np.sin(np.arange(1024) * (0.1 + 0.1 * track), dtype=np.float32) * 0.2
                if noisy:
                    tone = np.random.default_rng(block).normal(0, 0.1, 1024).astype(np.float32)
                frame = av.AudioFrame.from_ndarray(np.stack([tone, tone]), "fltp", "stereo")
                frame.rate, frame.pts = 48000, block * 1024
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
    return path


def read(path: Path, **how) -> tuple[list[np.ndarray], list[Fraction]]:
    """Frames, and seconds at which they begin."""
    with open_reader(path, **how) as reader:
        frames = list(reader)
        begins = [reader.stamp(i)[0] * reader.time_base for i in range(len(frames))]
    return frames, begins


def packets(path: Path, kind: str) -> list[list[bytes]]:
    """Each track's packets."""
    with av.open(str(path)) as container:
        indices = [stream.index for stream in container.streams if stream.type == kind]
    found = []
    for index in indices:
        with av.open(str(path)) as container:
            found.append([bytes(p) for p in container.demux(container.streams[index]) if p.size])
    return found


def differ(a: list[np.ndarray], b: list[np.ndarray]) -> float:
    """The largest mean difference of two frames of one number, in grey levels."""
    assert len(a) == len(b)
    return max(float(np.abs(x.astype(float) - y.astype(float)).mean()) for x, y in zip(a, b, strict=True))
