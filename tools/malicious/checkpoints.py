"""Checkpoints and states of trainings: pickles and zip files of torch.save, safetensors."""

from __future__ import annotations

import functools
import io
import json
import os
import pickle
import random
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from malicious.ground import Case, Ground, adapting


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


def spoiled(good: bytes, content: dict[str, Any], ground: Ground, rng: random.Random) -> dict[str, Callable[[], bytes]]:
    """What a file of torch.save can be made into, whatever is in it."""
    evil = payload(ground, rng)
    return {
        "pickle": lambda: pickle.dumps({**content, next(iter(content)): evil}),
        "saved": lambda: saved({**content, next(iter(content)): evil}),
        "beside": lambda: saved({**content, "meta": evil}),
        "legacy": lambda: saved({**content, "x": evil}, _use_new_zipfile_serialization=False),
        "deflated": lambda: repacked(good, zipfile.ZIP_DEFLATED),
        "bomb": lambda: repacked(good, zipfile.ZIP_DEFLATED, extra={"archive/data/9": bytes(300 * 2**20)}),
        "overlap": lambda: overlapping(good),
        "list": lambda: saved([content] * 3),
        "text": lambda: b"weights\n" * 100,
        "flipped": lambda: flipped(good, rng),
        "cut": lambda: good[: rng.randrange(len(good))],
        "safetensors": lambda: struct.pack("<Q", 2**40) + b"{}",
        "safetensors length": lambda: struct.pack("<Q", 8) + b'{"a":[]}' + bytes(9),
        "safetensors size": lambda: safetensors([0, 2**50]),
        "safetensors shape": lambda: safetensors([0, 4]),
        "deep pickle": lambda: b"\x80\x02" + b"]" * 10**6 + b"a" * (10**6 - 1) + b".",
    }


def saved(content: Any, **how: Any) -> bytes:
    import torch

    stream = io.BytesIO()
    torch.save(content, stream, **how)
    return stream.getvalue()


def safetensors(place: list[int]) -> bytes:
    header = json.dumps({"x": {"dtype": "F32", "shape": [2**24, 2**24], "data_offsets": place}}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(4)


def checkpoints(ground: Ground, rng: random.Random) -> Case:
    """Wherever a command takes a network's weights."""
    import torch

    evil = payload(ground, rng)
    first = next(iter(ground.state))
    makers = spoiled(ground.network.read_bytes(), {"params": ground.state}, ground, rng) | {
        "among weights": lambda: saved({"params": {**ground.state, "x": evil}}),
        "many keys": lambda: saved({"params": evil, "params_ema": ground.state}),
        "shape": lambda: saved({"params": {**ground.state, first: torch.zeros(1).expand(10**5, 10**5, 3, 3)}}),
        "meta": lambda: saved({"params": {**ground.state, first: torch.zeros(10**9, 99, device="meta")}}),
        "sparse": lambda: saved({"params": {**ground.state, first: torch.eye(9).to_sparse()}}),
        "complex": lambda: saved({"params": {k: v.to(torch.complex64) for k, v in ground.state.items()}}),
        "nan": lambda: saved({"params": {k: v * float("nan") for k, v in ground.state.items()}}),
    }
    name = rng.choice(list(makers))
    file = ground.fresh() / rng.choice(("net.pth", "net.pt", "net.ckpt", "net.safetensors"))
    file.write_bytes(makers[name]())
    commands = {
        "derain": ["derain", str(ground.frames), str(ground.bad / "out"), "--model", str(file)],
        "export": ["export", str(file), str(ground.bad / "net.pt2")],
        "teacher": ["adapt", str(ground.frames), "--teacher", str(file), *STUDENT, str(ground.bad / "out.pth")],
        "figure": [
            "figure",
            "errors",
            *clip_and_truth(ground),
            "--models",
            str(file),
            "--out",
            str(ground.bad / "f.png"),
        ],
        "bench": ["bench", "infer", "--networks", str(file), "--sizes", "32x24", "--rounds", "1"],
    }
    job = rng.choice(["derain", *commands])
    return Case(f"checkpoint: {name}, {job}", commands[job], ground.bad)


STUDENT = ("--student", "realtime", "--minutes", "0.01", "--out")


def clip_and_truth(ground: Ground) -> list[str]:
    return ["--clip", str(ground.frames), "--truth", str(ground.frames)]


def states(ground: Ground, rng: random.Random) -> Case:
    """What a training or `csd adapt` resumes from, and what a training starts from."""
    if rng.random() < 0.2:
        return adapt_state(ground, rng)
    trained = ground.trained
    folder = ground.fresh() / "run"
    shutil.copytree(trained, folder)
    experiment = folder / "experiments" / "run"
    places = {
        "state": experiment / "training_states" / "2.state",
        "network": experiment / "models" / "net_g_2.pth",
        "objective": experiment / "models" / "objective_2.pth",
        "teacher": folder / "teacher.pth",
    }
    kind = rng.choice(["state", *places])
    makers = changed_file(places[kind], ground, rng)
    if kind == "state":
        makers |= strange_states(places[kind])
    name = rng.choice(list(makers))
    places[kind].write_bytes(makers[name]())
    options = yaml.safe_load((trained / "options.yml").read_text())
    options["path"]["pretrain_network_t"] = str(places["teacher"])
    flags = ["--auto_resume"]
    if kind in ("state", "objective") and rng.random() < 0.5:
        options["path"]["resume_state"], flags = str(places["state"]), []
    file = folder / "options.yml"
    file.write_text(yaml.safe_dump(options))
    return Case(f"state: {name}, {kind}", ["csd_plugin.train", "-opt", str(file), *flags], ground.bad)


def changed_file(file: Path, ground: Ground, rng: random.Random) -> dict[str, Callable[[], bytes]]:
    import torch

    return spoiled(file.read_bytes(), torch.load(file, weights_only=True), ground, rng)


def strange_states(file: Path) -> dict[str, Callable[[], bytes]]:
    """States of the right form whose values no run has."""
    import torch

    state = torch.load(file, weights_only=True)

    def other(**values: Any) -> Callable[[], bytes]:
        return lambda: saved({**state, **values})

    optimizer = state["optimizers"][0]
    shapeless = {key: {**value, "exp_avg": torch.zeros(1)} for key, value in optimizer["state"].items()}
    return {
        "iter text": other(iter="2"),
        "iter none": other(iter=None),
        "iter negative": other(iter=-2),
        "iter huge": other(iter=10**18),
        "epoch text": other(epoch="x"),
        "samples": other(samples="many"),
        "samples huge": other(samples=10**18),
        "seed": other(manual_seed=[1]),
        "no optimizers": other(optimizers=[]),
        "optimizers text": other(optimizers="x"),
        "optimizers odd": other(optimizers=[{"state": 3, "param_groups": 4}]),
        "optimizer shapes": other(optimizers=[{**optimizer, "state": shapeless}]),
        "schedulers": other(schedulers=[7]),
        "best": other(best=[1]),
        "scaler": other(scaler=[1]),
    }  # fmt: skip


def adapt_state(ground: Ground, rng: random.Random) -> Case:
    folder = ground.adapted
    ground.fresh()
    target = ground.bad / "adapt"
    shutil.copytree(folder, target)
    state = target / "garden.state"
    makers = changed_file(state, ground, rng)
    name = rng.choice(list(makers))
    state.write_bytes(makers[name]())
    return Case(f"state: {name}, adapt", [*adapting(target), "--resume"], ground.bad)


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
