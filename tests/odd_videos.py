"""Videos that people have: each is made, derained as by a user, and what came out is compared with what went in.

python tests/odd_videos.py FOLDER [WIDTHxHEIGHT]     # all of them, as a Markdown table
"""

from __future__ import annotations

import contextlib
import io
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from videos import SIZE, make_video, packets, read

from csd_plugin.cli import main
from csd_plugin.cli.flags import frame_size
from csd_plugin.data.video import open_reader

Size = tuple[int, int]


class Odd(NamedTuple):
    """A kind of file. make(path, size) writes it; error: a pattern of the one line, '' where the file works."""

    title: str
    name: str
    make: Callable[[Path, Size], object]
    error: str = ""
    options: tuple[str, ...] = ()


def _cut(**how) -> Callable[[Path, Size], object]:
    """Written whole, then four fifths of it. (The last second of Matroska is not missed: slow frames.)"""

    def make(path: Path, size: Size) -> None:
        make_video(path, size=size, times=[400 * i for i in range(16)], **how)
        data = path.read_bytes()
        path.write_bytes(data[: len(data) * 4 // 5])

    return make


def _sound_only(path: Path, _: Size) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=48000)
        silence = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), "fltp", "stereo")
        silence.rate, silence.pts = 48000, 0
        container.mux(stream.encode(silence))
        container.mux(stream.encode(None))


def _video(**how) -> Callable[[Path, Size], object]:
    return lambda path, size: make_video(path, size=size, **how)


def _odd_size(**how) -> Callable[[Path, Size], object]:
    return lambda path, size: make_video(path, size=(size[0] - 1, size[1] - 1), **how)


_UNEVEN = [0, 33, 100, 117, 400, 433]
_FIRST = {"movflags": "faststart"}

ODD_VIDEOS = (
    Odd("phone, upright", "phone.mp4", _video(rotation=-90, audio=1)),
    Odd("phone, upside down", "down.mov", _video(rotation=180, audio=1)),
    Odd("odd size, 4:4:4", "odd444.mp4", _odd_size(pix_fmt="yuv444p")),
    Odd("odd size, 4:2:0", "odd.webm", _odd_size(codec="libvpx-vp9")),
    Odd("one frame", "one.mp4", _video(times=[0], audio=1)),
    Odd("two frames", "two.mp4", _video(times=[0, 40])),
    Odd("10 bits", "deep.mp4", _video(codec="libx265", pix_fmt="yuv420p10le", audio=1)),
    Odd("variable rate", "rate.mp4", _video(times=_UNEVEN, audio=1)),
    Odd("variable rate", "rate.mkv", _video(times=_UNEVEN, audio=1)),
    Odd("no sound", "silent.mp4", _video()),
    Odd("two tracks", "two_tracks.mp4", _video(audio=2)),
    Odd("two tracks, Opus", "two_tracks.webm", _video(codec="libvpx-vp9", audio=2, sound="libopus")),
    Odd("broadcast, late clock", "late.ts", _video(audio=1)),
    Odd("old AVI", "old.avi", _video(codec="mpeg4")),
    Odd("cut off, index first", "cut.mp4", _cut(options=_FIRST), "is damaged after frame"),
    Odd("cut off, index last", "cut_index.mp4", _cut(), "is it complete|or damaged"),
    Odd("cut off", "cut.mkv", _cut(), "is damaged after frame"),
    Odd("the same, --keep-going", "cut_on.mp4", _cut(options=_FIRST), options=("--keep-going",)),
    Odd("text", "text.mp4", lambda path, _: path.write_text("no video\n" * 100), "not a video file"),
    Odd("noise", "noise.mkv", lambda path, _: path.write_bytes(random.Random(0).randbytes(5000)), "not a video file"),
    Odd("sound only", "sound.mp4", _sound_only, "no decodable video in this file"),
    Odd("0 bytes", "empty.mp4", lambda path, _: path.touch(), r"is empty \(0 bytes\)"),
    Odd("a folder named so", "folder.mp4", lambda path, _: path.mkdir(), "holds no images"),
)


class Outcome(NamedTuple):
    """What came of one file: exit status, lines on stderr, and pairs (in, out) of what must be equal."""

    status: int
    lines: list[str]
    facts: dict[str, tuple[object, object]]


def derain(odd: Odd, folder: Path, size: Size = SIZE, model: str | None = None) -> Outcome:
    """Make the file in `folder`, derain it to out_NAME there, and compare."""
    source = folder / odd.name
    odd.make(source, size)
    suffix = ".mp4" if source.suffix == ".ts" else source.suffix
    output = folder / f"out_{source.stem}{suffix}"
    arguments = [str(source), str(output), "--device", "cpu", *odd.options]
    said, shown = io.StringIO(), io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(shown):
        status = main(["derain", *arguments, *(["--model", model] if model else [])])
    facts: dict[str, tuple[object, object]] = {}
    if output.exists() and not odd.error:
        before, after = _facts(source, odd.options), _facts(output)
        facts = {key: (before[key], after[key]) for key in before}
    left = [path.name for path in folder.iterdir() if path.name.startswith(".") or path == output]
    facts["files"] = ([] if odd.error else [output.name], left)
    return Outcome(status, said.getvalue().strip().splitlines(), facts)


def _facts(path: Path, options: tuple[str, ...] = ()) -> dict[str, object]:
    with open_reader(path, keep_going="--keep-going" in options) as reader:
        look = reader.source_format.look
        facts: dict[str, object] = {"size": reader.size, "codec": look.codec, "pix_fmt": look.pix_fmt}
    frames, begins = read(path, keep_going="--keep-going" in options)
    facts |= {"frames": len(frames), "times": [float(round(begin - begins[0], 3)) for begin in begins]}
    sound = packets(path, "audio")
    # What begins after the last frame's end is left out.
    return facts | {"sound": [[_bare(packet) for packet in track[: len(begins)]] for track in sound]}


def _bare(packet: bytes) -> bytes:
    """AAC without the header that broadcasts put before each packet and other containers do not."""
    return packet[7:] if packet.startswith(b"\xff\xf1") else packet


def table(folder: Path, size: Size) -> str:
    rows = ["| input | outcome | frames | shown size | codec, pixels | times | sound |", "|---" * 7 + "|"]
    for odd in ODD_VIDEOS:
        outcome = derain(odd, folder, size)
        facts = outcome.facts
        if odd.error:
            clean = "no file left" if facts["files"][0] == facts["files"][1] else f"LEFT {facts['files'][1]}"
            line = " / ".join(outcome.lines).replace(f"{folder}/", "")
            rows.append(f"| {odd.name}: {odd.title} | status {outcome.status}, {clean}: `{line}` | | | | | |")
            continue
        cells = [f"{odd.name}: {odd.title}", f"status {outcome.status}"]
        for keys in (("frames",), ("size",), ("codec", "pix_fmt"), ("times",), ("sound",)):
            same = all(facts[key][0] == facts[key][1] for key in keys)
            what = {"times": "equal", "sound": f"{len(facts['sound'][1])} tracks, equal"}.get(keys[0])  # type: ignore[arg-type]
            shown = what or ", ".join(str(facts[key][1]) for key in keys)
            cells.append(shown if same else " ".join(f"{facts[key][0]} -> {facts[key][1]}" for key in keys)[:80])
        rows.append("| " + " | ".join(cells) + " |")
    return "\n".join(rows)


if __name__ == "__main__":
    target = Path(sys.argv[1])
    target.mkdir(parents=True)
    print(table(target, frame_size(sys.argv[2]) if len(sys.argv) > 2 else SIZE))
