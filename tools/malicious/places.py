"""Folders, LMDB stores and lists of clips."""

from __future__ import annotations

import json
import os
import pickle
import random
import shutil
from collections.abc import Callable
from typing import Any

from malicious.checkpoints import STUDENT, payload
from malicious.frames import png
from malicious.ground import CLIP, HEIGHT, WIDTH, Case, Ground, scoring


def folders(ground: Ground, rng: random.Random) -> Case:
    """A data set with something in it that is none of its frames, for all that reads folders."""
    data = ground.fresh() / "in"
    clip = data / CLIP
    shutil.copytree(ground.frames, clip)
    shutil.copytree(ground.frames, clip.with_name("a1_GT"))
    out, network = str(ground.bad / "out"), str(ground.network)
    commands = {
        "prepare": ["prepare", str(data), str(ground.bad / "data"), "--jobs", "1"],
        "data": ["data", str(data), "--jobs", "1"],
        "derain": ["derain", str(clip), out, "--model", network],
        "pattern": ["derain", str(clip / "%d.png"), out, "--model", network],
        "score": ["score", str(clip), "--truth", str(clip.with_name("a1_GT")), "--jobs", "1"],
        "rain": ["rain", str(clip), out],
        "adapt": ["adapt", str(clip), "--teacher", network, *STUDENT, f"{out}.pth"],
        "figure": [
            "figure",
            "errors",
            "--clip",
            str(clip),
            "--truth",
            str(clip),
            "--models",
            network,
            "--out",
            f"{out}.png",
        ],
        "test": scoring(ground, data),
    }
    wrong: dict[str, Callable[[], object]] = {
        "file link": lambda: (clip / "3.png").symlink_to(ground.secret),
        "relative link": lambda: (clip / "3.png").symlink_to(os.path.relpath(ground.secret, clip)),
        "huge image": lambda: (clip / "1.png").write_bytes(png(100_000, 100_000)),
    }
    job = rng.choice(list(commands))
    if job in ("prepare", "data", "test"):
        wrong["folder link"] = lambda: (clip.parent / "b1_Rain").symlink_to(ground.good / "frames")
    if job == "prepare":
        wrong["link to itself"] = lambda: (clip / "3.png").symlink_to(clip / "3.png")
        wrong["pipe"] = lambda: os.mkfifo(clip / "3.png")
    name = rng.choice(list(wrong))
    wrong[name]()
    return Case(f"folder: {name}, {job}", commands[job], ground.bad)


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
    command = scoring(ground, ground.bad / "data", clips=str(file))
    return Case(f"list: {name}", command, ground.bad)
