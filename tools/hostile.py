"""Give files that were made to do harm to the commands that read them, and count what comes of it.

    python tools/hostile.py --count 500 --seed 0

Every case makes one file (or folder) of some kind, by the seed and its number, and runs a real command line on it in a
process of its own. A file must be refused: status 2, one or more lines that begin with the command's name, none of a
traceback. These are failures: a traceback, a status 0 (silent acceptance), code of the file that has run, a file that
was written or read outside, more than 2 GB of memory, more than half a minute. The exit status is 1 if there is one.
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import os
import pickle
import random
import resource
import shutil
import signal
import struct
import sys
import tarfile
import tempfile
import traceback
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

REFUSED, TRACEBACK, ACCEPTED, RAN, ESCAPED, MEMORY, SLOW = OUTCOMES = (
    "refused", "traceback", "accepted", "ran code", "got out", "memory", "slow"
)  # fmt: skip
MOST_MEMORY = 2**31
SECONDS = 30
HEIGHT, WIDTH = 24, 32


@dataclass(frozen=True)
class Case:
    """A command line, and what it reads; `secret` must not be found in what it writes."""

    name: str
    command: list[str]
    out: Path


class Ground:
    """Where cases are made: a folder that each may fill, next to files that none may touch.

    good: a folder of frames, a network, an option file: what a command needs in addition to the bad file.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bad, self.good = folder / "bad", folder / "good"
        self.marker = folder / "ran"
        self.secret = folder / "secret.png"
        self.good.mkdir(parents=True)
        self._make_good()

    def _make_good(self) -> None:
        import cv2
        import numpy as np
        import torch

        from csd_plugin.archs.prenet import PReNet

        torch.manual_seed(0)
        self.frames, self.network = self.good / "frames", self.good / "net.pth"
        self.frames.mkdir()
        rng = np.random.default_rng(0)
        for number in (1, 2):
            cv2.imwrite(str(self.frames / f"{number}.png"), rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8))
        shutil.copy(self.frames / "1.png", self.secret)
        self.state = PReNet(num_feat=4).state_dict()
        torch.save({"params": self.state}, self.network)
        self.option_file = (ROOT / "options" / "distill" / "student1_csd.yml").read_text()
        self.matrix = "name: m\nrows: {}\n"

    def fresh(self) -> Path:
        shutil.rmtree(self.bad, ignore_errors=True)
        self.bad.mkdir()
        return self.bad


Maker = Callable[[Ground, random.Random], Case]

# --- YAML ---------------------------------------------------------------------------------------------------------


def yaml_texts(ground: Ground, rng: random.Random) -> dict[str, str]:
    good = ground.option_file
    command = f"touch {ground.marker}"
    tag = rng.choice(("python/object/apply:os.system", "python/object/new:os.system", "python/name:os.system"))
    depth, wide = rng.randint(2000, 20000), rng.randint(9, 12)
    laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, wide)
    )
    return {
        "code": good + f"evil: !!{tag} ['{command}']\n",
        "module": good + "evil: !!python/module:antigravity\n",
        "laughs": laughs + good,
        "itself": "a: &a [*a]\n" + good,
        "merged": "a: &a {b: &b {<<: *a}}\n" + good,
        "deep": good + "deep: " + "[" * depth + "]" * depth + "\n",
        "deep block": good + "".join(f"{' ' * i}d:\n" for i in range(rng.randint(1100, 1400))),
        "long": good + "x: " + "9" * 2**21 + "\n",
        "number": good.replace("total_iter: ", "total_iter: " + "9" * 5000, 1),
        "date": good + "x: 2001-99-99\n",
        "binary": good + "x: !!binary '###'\n",
        "key": good + rng.choice(("1: 2\n", "[1, 2]: 3\n", "{a: b}: c\n", "~: 1\n", "2001-01-01: 2\n")),
        "name": good.replace("name: student1_csd", "name: " + rng.choice(("../../out", "/tmp/out", "a/../../b")), 1),
        "null": good.replace("name: ", 'name: "\\0" #', 1),
        "bytes": good + "\0",
        "list": "- " + good.replace("\n", "\n  "),
        "wrong": good.replace("network_g:", rng.choice(("network_g: 3\nx:", "network_g: []\nx:")), 1),
        "infinite": good.replace("lr: !!float 1e-4", "lr: .inf", 1),
        "huge": good.replace("preset: student1", "preset: student1\n  num_feat: 1000000000", 1),
    }


def option_files(ground: Ground, rng: random.Random) -> Case:
    texts = yaml_texts(ground, rng)
    name = rng.choice(list(texts))
    file = ground.fresh() / "options.yml"
    file.write_text(texts[name], encoding="utf-8")
    return Case(f"options: {name}", ["inspect", str(file)], ground.bad)


def matrices(ground: Ground, rng: random.Random) -> Case:
    texts = yaml_texts(ground, rng)
    row = {"runs": f"runs: {rng.choice(('..', '../x', '/x'))}\n", "title": "title: 3\n", "include": "include: [/etc]\n"}
    texts = {name: text.replace(ground.option_file, ground.matrix) for name, text in texts.items()} | {
        name: ground.matrix + text for name, text in row.items()
    }
    name = rng.choice([name for name in texts if texts[name] != ground.matrix])
    file = ground.fresh() / "matrix.yml"
    file.write_text(texts[name], encoding="utf-8")
    return Case(f"matrix: {name}", ["table", str(file), "--dry-run"], ground.bad)


# --- checkpoints --------------------------------------------------------------------------------------------------


class Runs:
    """A pickle of it runs a command where it is unpickled without care."""

    def __init__(self, call: Callable[..., Any], *arguments: Any) -> None:
        self.reduced = call, arguments

    def __reduce__(self) -> Any:
        return self.reduced


def payload(ground: Ground, rng: random.Random) -> Runs:
    command = f"touch {ground.marker}"
    return rng.choice(
        (
            Runs(os.system, command),
            Runs(eval, f"__import__('os').system({command!r})"),
            Runs(exec, f"open({str(ground.marker)!r}, 'w').close()"),
            Runs(functools.partial(os.system, command)),
            Runs(ground.marker.touch),
        )
    )


def checkpoints(ground: Ground, rng: random.Random) -> Case:
    import torch

    good, evil = ground.network.read_bytes(), payload(ground, rng)
    first = next(iter(ground.state))
    file = ground.fresh() / rng.choice(("net.pth", "net.pt", "net.ckpt"))

    def saved(content: Any, **how: Any) -> bytes:
        stream = io.BytesIO()
        torch.save(content, stream, **how)
        return stream.getvalue()

    makers: dict[str, Callable[[], bytes]] = {
        "pickle": lambda: pickle.dumps({"params": evil}),
        "saved": lambda: saved({"params": {**ground.state, "x": evil}}),
        "beside": lambda: saved({"params": ground.state, "meta": evil}),
        "legacy": lambda: saved({"params": evil}, _use_new_zipfile_serialization=False),
        "many keys": lambda: saved({"params": evil, "params_ema": ground.state}),
        "deflated": lambda: repacked(good, zipfile.ZIP_DEFLATED),
        "bomb": lambda: repacked(good, zipfile.ZIP_DEFLATED, extra={"archive/data/9": bytes(300 * 2**20)}),
        "overlap": lambda: overlapping(good),
        "shape": lambda: saved({"params": {**ground.state, first: torch.zeros(1).expand(10**5, 10**5, 3, 3)}}),
        "meta": lambda: saved({"params": {**ground.state, first: torch.zeros(10**9, 99, device="meta")}}),
        "sparse": lambda: saved({"params": {**ground.state, first: torch.eye(9).to_sparse()}}),
        "complex": lambda: saved({"params": {k: v.to(torch.complex64) for k, v in ground.state.items()}}),
        "nan": lambda: saved({"params": {k: v * float("nan") for k, v in ground.state.items()}}),
        "list": lambda: saved([ground.state] * 3),
        "text": lambda: b"weights\n" * 100,
        "flipped": lambda: flipped(good, rng),
        "cut": lambda: good[: rng.randrange(len(good))],
        "safetensors": lambda: struct.pack("<Q", 2**40) + b"{}",
        "safetensors length": lambda: struct.pack("<Q", 8) + b'{"a":[]}' + bytes(9),
        "deep pickle": lambda: b"\x80\x02" + b"]" * 10**6 + b"a" * (10**6 - 1) + b".",
    }
    name = rng.choice(list(makers))
    file.write_bytes(makers[name]())
    out = ground.bad / "out"
    if rng.random() < 0.3:
        return Case(f"checkpoint: {name}", ["export", str(file), str(ground.bad / "net.pt2")], ground.bad)
    return Case(f"checkpoint: {name}", ["derain", str(ground.frames), str(out), "--model", str(file)], ground.bad)


def repacked(data: bytes, compression: int, extra: dict[str, bytes] | None = None) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(data)) as before, zipfile.ZipFile(stream, "w", compression) as after:
        for entry in before.infolist():
            after.writestr(entry.filename, before.read(entry))
        for name, content in (extra or {}).items():
            after.writestr(name, content)
    return stream.getvalue()


def overlapping(data: bytes) -> bytes:
    """Many entries of the list at the end that all mean the first one's bytes."""
    end = data.rindex(b"PK\5\6")
    count, size, start = struct.unpack("<HII", data[end + 10 : end + 20])
    listed = data[start : start + size]
    many = listed * 50
    fields = struct.pack("<HHII", count * 50, count * 50, size * 50, start)
    return data[:start] + many + data[end : end + 8] + fields + b"\0\0"


def flipped(data: bytes, rng: random.Random) -> bytes:
    """A bit of what is stored in a file of torch.save, not of what lies between."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entry = rng.choice([entry for entry in archive.infolist() if entry.file_size])
    at = entry.header_offset + 30
    name, extra = struct.unpack("<HH", data[at - 4 : at])
    at += name + extra + rng.randrange(entry.file_size)
    changed = bytearray(data)
    changed[at] ^= 1 << rng.randrange(8)
    return bytes(changed)


# --- images and videos --------------------------------------------------------------------------------------------


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
    boxes = {"stsz": 8, "stts": 4, "stsc": 4, "stco": 4}
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


# --- archives, folders, stores, lists -----------------------------------------------------------------------------

CLIP = "Dataset_Testing_Synthetic/a1_Rain"


def archives(ground: Ground, rng: random.Random) -> Case:
    frame = (ground.frames / "1.png").read_bytes()
    out = rng.choice(("../../../", "/", "..\\..\\", "C:\\")) + f"{CLIP}/1.png"

    def tar(*entries: tuple[str, bytes, bytes]) -> bytes:
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w:gz") as archive:
            for name, kind, content in entries:
                entry = tarfile.TarInfo(name)
                entry.type, entry.size = kind, len(content) if kind == tarfile.REGTYPE else 0
                entry.linkname = str(ground.secret)
                archive.addfile(entry, io.BytesIO(content))
        return stream.getvalue()

    def packed(*entries: tuple[str, bytes]) -> bytes:
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in entries:
                archive.writestr(name, content)
        return stream.getvalue()

    link = zipfile.ZipInfo(f"{CLIP}/1.png")
    link.external_attr = 0o120777 << 16
    whole = packed((f"{CLIP}/1.png", frame), (f"{CLIP}/2.png", frame))
    makers: dict[str, Callable[[], bytes]] = {
        "zip climbs": lambda: packed((out, frame)),
        "tar climbs": lambda: tar((out, tarfile.REGTYPE, frame)),
        "zip link": lambda: packed((link, str(ground.secret).encode())),  # type: ignore[arg-type]
        "tar link": lambda: tar((f"{CLIP}/1.png", tarfile.SYMTYPE, b"")),
        "tar hard link": lambda: tar((f"{CLIP}/1.png", tarfile.LNKTYPE, b"")),
        "tar folder link": lambda: tar((CLIP, tarfile.SYMTYPE, b""), (f"{CLIP}/1.png", tarfile.REGTYPE, frame)),
        "zip bomb": lambda: packed((f"{CLIP}/1.png", bytes(400 * 2**20))),
        "tar bomb": lambda: tar((f"{CLIP}/1.png", tarfile.REGTYPE, bytes(400 * 2**20))),
        "many": lambda: packed(*((f"{CLIP}/{i}/{i}/1.txt", b"") for i in range(3000))),
        "nested": lambda: packed((f"{CLIP}.zip", whole)),
        "no image": lambda: packed((f"{CLIP}/1.png", b"#!/bin/sh\n")),
        "huge image": lambda: packed((f"{CLIP}/1.png", png(100_000, 100_000))),
        "cut": lambda: whole[: rng.randrange(4, len(whole) - 1)],
        "twice": lambda: packed((f"{CLIP}/1.png", frame), (f"{CLIP}/01.png", frame)),
        "control": lambda: packed((f"{CLIP}/\x1b[2J1.png", frame)),
        "overlap": lambda: overlapping(whole),
    }
    name = rng.choice(list(makers))
    file = ground.fresh() / "frames.zip"
    file.write_bytes(makers[name]())
    return Case(f"archive: {name}", ["prepare", str(file), str(ground.bad / "data"), "--jobs", "1"], ground.bad)


def folders(ground: Ground, rng: random.Random) -> Case:
    clip = ground.fresh() / "in" / CLIP
    shutil.copytree(ground.frames, clip)
    name = rng.choice(("file link", "folder link", "link to itself", "pipe", "huge image"))
    if name == "file link":
        (clip / "3.png").symlink_to(ground.secret)
    elif name == "folder link":
        (clip.parent / "b1_Rain").symlink_to(ground.good / "frames")
    elif name == "link to itself":
        (clip / "3.png").symlink_to(clip / "3.png")
    elif name == "pipe":
        os.mkfifo(clip / "3.png")
    else:
        (clip / "3.png").write_bytes(png(100_000, 100_000))
    command = ["prepare", str(ground.bad / "in"), str(ground.bad / "data"), "--jobs", "1"]
    return Case(f"folder: {name}", command, ground.bad)


def stores(ground: Ground, rng: random.Random) -> Case:
    import lmdb

    folder = ground.fresh() / "data.lmdb"
    frame = (ground.frames / "1.png").read_bytes()
    record: dict[str, Any] = {
        "suffix": ".png", "height": HEIGHT, "width": WIDTH, "size": len(frame), "source": "0" * 64, "value": "0" * 64
    }  # fmt: skip
    header: dict[str, Any] = {"format": 1, "encoding": "png", "within": "", "complete": True}
    key, value, name = (
        f"{CLIP}/1",
        frame,
        rng.choice(
            ("size", "no pixels", "pickle", "deep", "huge image", "number", "types", "cut", "noise", "encoding", "half")
        ),
    )
    text = json.dumps(record)
    if name == "size":
        header["encoding"], text = "raw", json.dumps(record | {"height": 10**9, "width": 10**9})
    elif name == "no pixels":
        value = b""
    elif name == "pickle":
        text = pickle.dumps(payload(ground, rng), 0).decode("latin1")
    elif name == "deep":
        text = "[" * 10**5
    elif name == "huge image":
        value = png(100_000, 100_000)
    elif name == "number":
        text = text.replace(str(HEIGHT), "9" * 9999, 1)
    elif name == "types":
        text = json.dumps(record | {"height": None, "suffix": 3})
    elif name == "encoding":
        header["encoding"] = "pickle"
    elif name == "half":
        header["complete"] = False
    with lmdb.open(str(folder), map_size=2**24, max_dbs=1) as env:
        with env.begin(write=True) as txn:
            txn.put(key.encode(), value)
        records = env.open_db(b"csd")
        with env.begin(write=True, db=records) as txn:
            txn.put(b"\0", json.dumps(header).encode())
            txn.put(key.encode(), text.encode())
    (folder / "meta_info.txt").write_text(f"{key}.png ({HEIGHT},{WIDTH},3) 1\n")
    data = folder / "data.mdb"
    if name == "cut":
        data.write_bytes(data.read_bytes()[:5000])
    elif name == "noise":
        data.write_bytes(rng.randbytes(8192))
    # the folder is complete: only the store is bad
    shutil.copytree(ground.frames, ground.bad / "data" / CLIP)
    command = ["prepare", str(ground.bad / "data"), str(ground.bad / "data"), "--lmdb", "png", "--verify"]
    folder.rename(ground.bad / "data_png.lmdb")
    return Case(f"LMDB: {name}", [*command, "--jobs", "1"], ground.bad)


def lists(ground: Ground, rng: random.Random) -> Case:
    """A list of clips, and meta_info.txt of a store."""
    clip = ground.fresh() / "data" / CLIP
    shutil.copytree(ground.frames, clip)
    shutil.copytree(ground.frames, clip.with_name("a1_GT"))
    texts = {
        "climbs": b"../../good/frames\n",
        "absolute": str(ground.frames).encode() + b"\n",
        "empty": b"# nothing\n",
        "bytes": bytes(range(256)),
        "nul": b"a1\0\n",
        "long": b"a1" * 2**20 + b"\n",
        "huge": b"a1\n" * (2**26 // 2),
        "escape": b"\x1b[2Ja1\n",
    }
    name = rng.choice(list(texts))
    file = ground.bad / "clips.txt"
    file.write_bytes(texts[name])
    options = {
        "name": "row", "model_type": "VideoDerainModel", "num_gpu": 0, "manual_seed": 0,
        "datasets": {
            "test_1": {
                "name": "rain", "type": "PairedVideoTestDataset", "dataroot": str(ground.bad / "data"),
                "clips": str(file), "num_frame": 1,
            }
        },
        "network_g": {"type": "PReNet", "num_feat": 4},
        "path": {"pretrain_network_g": str(ground.network)},
        "val": {"save_img": False},
    }  # fmt: skip
    opt = ground.bad / "options.yml"
    opt.write_text(yaml.safe_dump(options))
    return Case(f"list: {name}", ["csd_plugin.test", "-opt", str(opt)], ground.bad)


MAKERS: dict[str, Maker] = {
    "YAML": option_files,
    "matrix": matrices,
    "checkpoint": checkpoints,
    "image": images,
    "video": videos,
    "archive": archives,
    "folder": folders,
    "LMDB": stores,
    "list": lists,
}

# --- running ------------------------------------------------------------------------------------------------------


def judge(ground: Ground, case: Case) -> tuple[str, str, int]:
    """(outcome, what was printed, bytes of memory at most)."""
    ground.marker.unlink(missing_ok=True)
    before = tree(ground.folder, ground.bad)
    log = ground.folder / "log"
    pid = os.fork()
    if pid == 0:
        run(case.command, log)
    _, status, usage = os.wait4(pid, 0)
    said = log.read_text(errors="replace")
    log.unlink()
    memory = usage.ru_maxrss * 1024
    if ground.marker.exists():
        outcome = RAN
    elif tree(ground.folder, ground.bad) != before or ground.secret.read_bytes() in written(ground, case):
        outcome = ESCAPED
    elif os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM:
        outcome = SLOW
    elif memory > MOST_MEMORY or "not enough memory" in said:
        outcome = MEMORY
    elif "Traceback" in said or os.WIFSIGNALED(status):
        outcome = TRACEBACK
    elif os.WEXITSTATUS(status) == 2 and "error: " in said:
        outcome = REFUSED
    else:
        outcome = ACCEPTED if os.WEXITSTATUS(status) == 0 else TRACEBACK
    return outcome, said, memory


def written(ground: Ground, case: Case) -> set[bytes]:
    """What lies in the folder of results; what a case itself has brought is elsewhere."""
    folders = (ground.bad / "data", ground.bad / "out")
    if case.command[0] not in ("prepare", "derain"):
        return set()
    return {path.read_bytes() for folder in folders for path in folder.rglob("3.png") if path.is_file()}


def tree(folder: Path, without: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if without not in (path, *path.parents)}


def run(command: Sequence[str], log: Path) -> None:
    """In a child process: the command, its output in the log; never returns."""
    signal.alarm(SECONDS)
    target = os.open(log, os.O_WRONLY | os.O_CREAT)
    for stream in (1, 2):
        os.dup2(target, stream)
    sys.stdout, sys.stderr = (os.fdopen(stream, "w", buffering=1, closefd=False) for stream in (1, 2))
    # what is asked for beyond this fails, before the machine suffers
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + 2 * MOST_MEMORY, used + 2 * MOST_MEMORY))
    status = 1
    try:
        status = start(command)
    except SystemExit as left:
        status = left.code if isinstance(left.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status or 0)


def start(command: Sequence[str]) -> int:
    from csd_plugin import test
    from csd_plugin.cli import main as csd

    if command[0] == "csd_plugin.test":
        os.chdir(Path(command[-1]).parent)
        sys.argv = list(command)
        return test.main()
    return csd(command)


def warm_up() -> None:
    """Import what the commands do, once for all the processes."""
    import importlib

    import torch

    from csd_plugin import compat, registration

    torch.set_num_threads(1)
    registration.install()
    compat.repair_launch()
    importlib.import_module("csd_plugin.test")
    for job in ("inspect", "table", "derain", "export", "prepare", "data", "score"):
        importlib.import_module(f"csd_plugin.cli.{job}")


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=500, help="hostile files in all (default 500)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, help="folder for the files (default: a temporary one)")
    parser.add_argument("--kind", choices=MAKERS, help="only files of this kind")
    args = parser.parse_args(argv)
    warm_up()
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in ([args.kind] if args.kind else MAKERS)}
    largest = 0
    with tempfile.TemporaryDirectory(dir=args.work) as work:
        ground = Ground(Path(work) / "ground")
        for number in range(args.count):
            kind = list(counts)[number % len(counts)]
            case = MAKERS[kind](ground, random.Random(f"{args.seed}/{number}"))
            outcome, said, memory = judge(ground, case)
            counts[kind][outcome] += 1
            largest = max(largest, memory)
            if outcome != REFUSED:
                print(f"{number} of seed {args.seed}, {case.name}: {outcome}\n{said[-1500:]}", file=sys.stderr)
    print(f"{'':<12}" + "".join(f"{outcome:>11}" for outcome in OUTCOMES))
    for kind, found in [*counts.items(), ("all", sum(counts.values(), Counter()))]:
        print(f"{kind:<12}" + "".join(f"{found[outcome]:>11}" for outcome in OUTCOMES))
    print(f"largest memory of a process: {largest / 2**20:.0f} MB")
    return 0 if all(set(found) <= {REFUSED} for found in counts.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
