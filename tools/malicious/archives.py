"""Archives of frames, of all formats that `csd prepare` unpacks."""

from __future__ import annotations

import gzip
import io
import random
import shutil
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable

from rar_files import RarEntry, rar4, rar5

from malicious.checkpoints import STUDENT, overlapping
from malicious.frames import png
from malicious.ground import CLIP, Case, Ground, scoring


def archives(ground: Ground, rng: random.Random) -> Case:
    """What `csd prepare` unpacks; its content decides what it is, whatever its name says."""
    frame = (ground.frames / "1.png").read_bytes()
    first = (f"{CLIP}/1.png", frame)
    out = rng.choice(("../../../", "/", "..\\..\\", "C:\\")) + first[0]
    whole = zipped(first, (f"{CLIP}/2.png", frame))
    bomb = bytes(400 * 2**20)
    link = str(ground.secret).encode()
    special = rng.choice((tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE))
    squeeze = rng.choice(("gz", "bz2", "xz"))
    makers: dict[str, Callable[[], bytes]] = {
        "zip climbs": lambda: zipped((out, frame)),
        "tar climbs": lambda: tarred((out, tarfile.REGTYPE, frame)),
        "zip link": lambda: zipped((of_kind(0o120777), link)),
        "zip device": lambda: zipped(first, (of_kind(rng.choice((0o020666, 0o060666, 0o010666, 0o140666))), b"")),
        "tar link": lambda: tarred((first[0], tarfile.SYMTYPE, link)),
        "tar hard link": lambda: tarred((first[0], tarfile.LNKTYPE, link)),
        "tar folder link": lambda: tarred((CLIP, tarfile.SYMTYPE, link), (first[0], tarfile.REGTYPE, frame)),
        "tar device": lambda: tarred((first[0], tarfile.REGTYPE, frame), (f"{CLIP}/2.png", special, b"")),
        "zip bomb": lambda: zipped((first[0], bomb)),
        "tar bomb": lambda: tarred((first[0], tarfile.REGTYPE, bomb), squeeze=squeeze),
        "zip64 bomb": lambda: zip64(whole, 2**40),
        "quoted": lambda: quoted(rng.choice((2**10, 2**25)), rng.choice((50, 200))),
        "many": lambda: zipped(*((f"{CLIP}/{i}/{i}/1.txt", b"") for i in range(3000))),
        "million": lambda: listed_again(whole, 10**6),
        "long list": lambda: listed_again(whole, 2 * 10**6),
        "million in tar": lambda: million_folders(),
        "nested": lambda: zipped((f"{CLIP}.{rng.choice(('zip', '7z', 'tar.zst', 'rar'))}", whole)),
        "no image": lambda: zipped((first[0], b"#!/bin/sh\n")),
        "huge image": lambda: zipped((first[0], png(100_000, 100_000))),
        "cut": lambda: cut(whole, rng),
        "tar cut": lambda: cut(tarred((first[0], tarfile.REGTYPE, rng.randbytes(9999)), squeeze=squeeze), rng),
        "encrypted": lambda: encrypted(whole),
        "twice": lambda: zipped(first, (f"{CLIP}/01.png", frame)),
        "same name": lambda: zipped(first, first),
        "same name in tar": lambda: tarred(*[(first[0], tarfile.REGTYPE, frame)] * 2),
        "case": lambda: zipped(first, (first[0].replace("Rain", "RAIN"), frame)),
        "case of frames": lambda: zipped(first, (f"{CLIP}/1.PNG", frame)),
        "control": lambda: zipped((f"{CLIP}/\x1b[2J1.png", frame)),
        "right to left": lambda: zipped((f"{CLIP}/1\u202egnp.png", frame)),
        "nul": lambda: zipped((f"{CLIP}/1.png?.exe", frame)).replace(b"?.exe", b"\0.exe"),
        "nul in tar": lambda: tarred((f"{CLIP}/1.png\0.exe", tarfile.REGTYPE, frame)),
        "long name": lambda: zipped((f"{CLIP}/{'1' * 60_000}.png", frame)),
        "long clip": lambda: zipped((f"{CLIP.replace('a1', 'a' * rng.choice((252, 5000)))}/1.png", frame)),
        "long name in tar": lambda: tarred((f"{CLIP}/{'x' * 10**6}/1.png", tarfile.REGTYPE, frame)),
        "overlap": lambda: overlapping(whole),
        **rars(frame, out, link, rng),
    }
    name = rng.choice(list(makers))
    file = ground.fresh() / rng.choice(("frames.zip", "frames.zip", "frames.tar", "frames.tar.xz", "frames.rar"))
    file.write_bytes(makers[name]())
    return Case(f"archive: {name}", ["prepare", str(file), str(ground.bad / "data"), "--jobs", "1"], ground.bad)


def rars(frame: bytes, out: str, link: bytes, rng: random.Random) -> dict[str, Callable[[], bytes]]:
    entry, name = RarEntry(f"{CLIP}/1.png", frame), f"{CLIP}/2.png"
    form = rng.choice((rar4, rar5))
    return {
        "rar climbs": lambda: form([RarEntry(out, frame)]),
        "rar link": lambda: form([entry, RarEntry(name, link, link=True)]),
        "rar encrypted": lambda: form([entry, RarEntry(name, frame, encrypted=True)]),
        "rar twice": lambda: form([entry, entry]),
        "rar case": lambda: form([entry, RarEntry(entry.name.replace("Rain", "RAIN"), frame)]),
        "rar control": lambda: form([RarEntry(f"{CLIP}/1\u202e\x1b[2J.png", frame)]),
        "rar cut": lambda: cut(form([entry, RarEntry(name, frame)]), rng),
        "rar flipped": lambda: form([entry]).replace(frame[-40:], frame[-40:-1] + b"\1"),
        "rar noise": lambda: form([])[:8] + rng.randbytes(999),
    }


def other_archives(ground: Ground, rng: random.Random) -> Case:
    """Archives of kinds that nobody reads, and archives where none is taken."""
    starts = {
        "7z": b"7z\xbc\xaf\x27\x1c\0\4", "zst": b"\x28\xb5\x2f\xfd", "lz4": b"\x04\x22\x4d\x18", "lz": b"LZIP",
        "rar": b"Rar!\x1a\x07\0", "rar5": b"Rar!\x1a\x07\1\0", "cab": b"MSCF", "xz": b"\xfd7zXZ\0",
        "zip": zipped((f"{CLIP}/1.png", b"x")),
    }  # fmt: skip
    kind = rng.choice(list(starts))
    folder = ground.fresh() / "in"
    shutil.copytree(ground.frames, folder / CLIP)
    file = folder / f"a1_GT.{rng.choice(('7z', 'rar', 'zip', 'tar', 'tar.zst', 'tzst', 'tar.xz', 'lz4', 'cab'))}"
    file.write_bytes(starts[kind] + rng.randbytes(500))
    frames, network, out = str(folder / CLIP), str(ground.network), str(ground.bad / "out")
    commands = {
        "prepare": ["prepare", str(file), str(ground.bad / "data"), "--jobs", "1"],
        "folder": ["prepare", str(folder), str(ground.bad / "data"), "--jobs", "1"],
        "derain": ["derain", str(file), f"{out}.mp4", "--model", network],
        "model": ["derain", frames, out, "--model", str(file)],
        "rain": ["rain", str(file), out],
        "score": ["score", frames, "--truth", str(file), "--jobs", "1"],
        "data": ["data", str(file), "--jobs", "1"],
        "adapt": ["adapt", str(file), "--teacher", network, *STUDENT, f"{out}.pth"],
        "figure": [
            "figure",
            "crops",
            "--clip",
            str(file),
            "--truth",
            frames,
            "--models",
            network,
            "--out",
            f"{out}.png",
        ],
        "export": ["export", network, f"{out}.onnx", "--int8", "--calibrate", str(file)],
        "test": scoring(ground, file),
    }
    job = rng.choice(list(commands))
    return Case(f"other archive: {kind} as {file.name}, {job}", commands[job], ground.bad)


def tarred(*entries: tuple[str, bytes, bytes], squeeze: str = "gz") -> bytes:
    """Of (name, type, content); the content of a link is where it leads."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=f"w:{squeeze}") as archive:  # type: ignore[call-overload]
        for name, kind, content in entries:
            entry = tarfile.TarInfo(name)
            entry.type, entry.size = kind, len(content) if kind == tarfile.REGTYPE else 0
            entry.linkname = "" if kind == tarfile.REGTYPE else content.decode()
            if "\0" in name:
                entry.name, entry.pax_headers = CLIP, {"path": name}
            archive.addfile(entry, io.BytesIO(content))
    return stream.getvalue()


def million_folders() -> bytes:
    header = tarred((f"{CLIP}/", tarfile.DIRTYPE, b""), squeeze="")[: tarfile.BLOCKSIZE]
    return gzip.compress(header * 1000) * 1000


def zipped(*entries: tuple[str | zipfile.ZipInfo, bytes]) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of names that are there already
        for name, content in entries:
            archive.writestr(name, content)
    return stream.getvalue()


def of_kind(mode: int) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(f"{CLIP}/2.png")
    entry.external_attr = mode << 16
    return entry


def encrypted(data: bytes) -> bytes:
    """The same, as far as its flags say."""
    changed = bytearray(data)
    for magic, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        at = data.find(magic)
        while at >= 0:
            changed[at + flags] |= 1
            at = data.find(magic, at + 1)
    return bytes(changed)


def cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(8, len(data) - 1)]


def ending(data: bytes) -> tuple[int, int]:
    """Where the list of a ZIP begins, and where it ends."""
    end = data.rindex(b"PK\5\6")
    return struct.unpack("<I", data[end + 16 : end + 20])[0], end


def listed_again(data: bytes, count: int) -> bytes:
    """A ZIP whose list has its first entry so many times."""
    start, _ = ending(data)
    one = data[start : start + 46 + sum(struct.unpack("<HHH", data[start + 28 : start + 34]))]
    return data[:start] + one * count + zip64_end(start, len(one) * count, count)


def zip64(data: bytes, size: int) -> bytes:
    """A ZIP whose one file is said to be so large, in a field of ZIP64."""
    start, _ = ending(data)
    name = struct.unpack("<H", data[start + 28 : start + 30])[0]
    header = bytearray(data[start : start + 46 + name])
    header[24:28], header[30:32] = b"\xff" * 4, struct.pack("<H", 12)
    listed = bytes(header) + struct.pack("<HHQ", 1, 8, size)
    return data[:start] + listed + zip64_end(start, len(listed), 1)


def zip64_end(start: int, size: int, count: int) -> bytes:
    record = struct.pack("<4sQHHIIQQQQ", b"PK\6\6", 44, 45, 45, 0, 0, count, count, size, start)
    place = struct.pack("<4sIQI", b"PK\6\7", 0, start + size, 1)
    return record + place + b"PK\5\6" + bytes(4) + b"\xff" * 12 + bytes(2)


def quoted(size: int, count: int) -> bytes:
    """A ZIP of files that share one body: each has the headers of those behind it as plain blocks of its stream."""
    plain = bytes(size)
    press = zlib.compressobj(9, zlib.DEFLATED, -15)
    data = press.compress(plain) + press.flush()
    listed: list[tuple[bytes, bytes, int]] = []
    body = b""
    for number in reversed(range(count)):
        name = f"{CLIP}/{number}.png".encode()
        fields = struct.pack("<HHHHHIIIHH", 20, 0, 8, 0, 33, zlib.crc32(plain), len(data), len(plain), len(name), 0)
        header = b"PK\3\4" + fields + name
        body = header + data
        listed.append((fields, name, len(body)))
        data = struct.pack("<BHH", 0, len(header), len(header) ^ 0xFFFF) + body
        plain = header + plain
    entries = b"".join(
        b"PK\1\2" + struct.pack("<H", 20) + fields + struct.pack("<HHHII", 0, 0, 0, 0, len(body) - length) + name
        for fields, name, length in listed
    )
    end = struct.pack("<HHIIH", count, count, len(entries), len(body), 0)
    return body + entries + b"PK\5\6" + bytes(4) + end
