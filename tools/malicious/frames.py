"""Images and videos."""

from __future__ import annotations

import functools
import io
import random
import shutil
import struct
import zlib
from collections.abc import Callable

from malicious.ground import WIDTH, Case, Ground


def png(width: int, height: int, *, rows: int = 0, depth: int = 8) -> bytes:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    pixels = zlib.compress(bytes(min(rows * (1 + 3 * width), 2**26)), 9)
    header = struct.pack(">IIBBBBB", width, height, depth, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def images(ground: Ground, rng: random.Random) -> Case:
    good = (ground.frames / "1.png").read_bytes()
    size = rng.choice((100_000, 65_535, 30_000, 2**31 - 1))
    pairs = {
        "huge png": ("1.png", png(size, size)),
        "wide png": ("1.png", png(2**30, 1)),
        "bomb png": ("1.png", png(20_000, 20_000, rows=20_000)),
        "empty png": ("1.png", png(WIDTH, 0)),
        "cut png": ("1.png", good[: rng.randint(0, len(good) // 2)]),
        "huge bmp": ("1.bmp", b"BM" + struct.pack("<IHHIIiiHHIIIIII", 99, 0, 0, 54, 40, size, size, 1, 24, *[0] * 6)),
        "negative bmp": ("1.bmp", b"BM" + struct.pack("<IHHIIiiHHIIIIII", 99, 0, 0, 54, 40, -9, 9, 1, 24, *[0] * 6)),
        "huge ppm": ("1.ppm", f"P6 {size} {size} 255\n".encode()),
        "huge jpeg": (
            "1.jpg",
            b"\xff\xd8\xff\xc0\x00\x11\x08\xff\xff\xff\xff\x03\x01\x22\0\x02\x11\x01\x03\x11\x01\xff\xd9",
        ),
        "huge webp": ("1.webp", b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\xff" * 6 + bytes(20)),
        "huge tiff": ("1.tif", tiff(size, size)),
        "html": ("1.png", b"<html>not found</html>"),
        "noise": ("1.png", good[:8] + rng.randbytes(200)),
    }
    name = rng.choice(list(pairs))
    file, content = pairs[name]
    folder = ground.fresh() / "frames"
    folder.mkdir()
    (folder / file).write_bytes(content)
    if rng.random() < 0.3:
        shutil.copytree(ground.frames, ground.bad / "truth")
        return Case(f"image: {name}", ["score", str(folder), str(ground.bad / "truth")], ground.bad)
    out = str(ground.bad / "out")
    return Case(f"image: {name}", ["derain", str(folder), out, "--model", str(ground.network)], ground.bad)


def tiff(width: int, height: int) -> bytes:
    tags = {256: width, 257: height, 258: 8, 259: 1, 262: 2, 273: 8, 277: 3, 278: height, 279: 9}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value % 2**32) for tag, value in tags.items())
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4)


def videos(ground: Ground, rng: random.Random) -> Case:
    good = video()
    boxes = {"stsz": 8, "stts": 4, "stsc": 4}  # of chunks, FFmpeg takes the box's own length, and has all frames
    box = rng.choice(list(boxes))
    side = rng.choice((20_000, 65_535))
    makers: dict[str, Callable[[], bytes]] = {
        f"10^9 in {box}": lambda: counted(good, box.encode(), boxes[box]),
        "playlist": lambda: f"#EXTM3U\n#EXTINF:1,\nfile://{ground.secret}\n".encode(),
        "concat": lambda: f"ffconcat version 1.0\nfile {ground.secret}\n".encode(),
        "huge y4m": lambda: f"YUV4MPEG2 W{side} H{side} F25:1 C420\nFRAME\n".encode() + bytes(999),
        "huge gif": lambda: b"GIF89a" + struct.pack("<HH", 65535, 65535) + b"\xf0\0\0" + bytes(6) + b";",
        "cut": lambda: good[: rng.randrange(len(good) * 2 // 3)],
        "noise": lambda: rng.randbytes(5000),
        "no video": lambda: b"RIFF$\0\0\0WAVEfmt \x10\0\0\0\1\0\1\0\x44\xac\0\0\x88\x58\1\0\2\0\x10\0data\0\0\0\0",
    }
    name = rng.choice(list(makers))
    file = ground.fresh() / ("clip." + rng.choice(("mp4", "mkv", "avi", "mov")))
    file.write_bytes(makers[name]())
    out = str(ground.bad / "out.mp4")
    return Case(f"video: {name}", ["derain", str(file), out, "--model", str(ground.network)], ground.bad)


@functools.cache
def video() -> bytes:
    import av
    import numpy as np

    stream = io.BytesIO()
    with av.open(stream, "w", format="mp4") as container:
        track = container.add_stream("mpeg4", rate=25)
        track.width, track.height, track.pix_fmt = 64, 48, "yuv420p"
        for number in range(5):
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), 40 * number, np.uint8), format="rgb24")
            container.mux(track.encode(frame))
        container.mux(track.encode())
    return stream.getvalue()


def counted(data: bytes, box: bytes, at: int) -> bytes:
    place = data.index(box) + 4 + at
    return data[:place] + struct.pack(">I", 10**9) + data[place + 4 :]
