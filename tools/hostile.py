"""Give malicious files to the commands that read them, and count the outcomes.

    python tools/hostile.py --count 500 --seed 0

Every case makes one file (or folder) of some kind, from the seed and its number, and runs a real command line on it in
a separate process. A file must be refused: status 2, and one or more lines that begin with the command's name, without
a traceback. Failures are: a traceback, status 0 (silent acceptance), code from the file that was run, a file outside
that was written or read, more than 2 GB of memory, or more than half a minute of processor time. The exit status is 1
if there is a failure.
"""

from __future__ import annotations

import argparse
import functools
import gzip
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
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from forks import end_with  # noqa: E402
from rar_files import RarEntry, rar4, rar5  # noqa: E402

REFUSED, TRACEBACK, ACCEPTED, RAN, ESCAPED, MEMORY, SLOW = OUTCOMES = (
    "refused", "traceback", "accepted", "ran code", "got out", "memory", "slow"
)  # fmt: skip
MOST_MEMORY = 2**31
SECONDS, PATIENCE = 30, 180
"""Of a processor, and by the clock: the machine may be busy, and who waits for a pipe uses no processor."""
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

    @functools.cached_property
    def trained(self) -> Path:
        """A folder in which a small distillation was stopped half way, with its options."""
        from synthetic import TEST, TRAIN, write_ntu_rain
        from toolbox import distill_options

        folder = self.good / "trained"
        clips = {f"{TRAIN}/t1": ("GT", "Rain_01"), f"{TEST}/a1": ("GT", "Rain")}
        data = write_ntu_rain(folder / "data", frames=9, height=30, width=40, clips=clips)
        teacher = folder / "teacher.pth"
        options = distill_options(data, teacher, **{"network_t": {"type": "PReNet", "num_feat": 4}})
        shutil.copy(self.network, teacher)
        (folder / "options.yml").write_text(yaml.safe_dump(options))
        self._succeed("csd_plugin.train", "-opt", str(folder / "options.yml"))
        options["train"]["total_iter"] = 4
        (folder / "options.yml").write_text(yaml.safe_dump(options))
        return folder

    @functools.cached_property
    def adapted(self) -> Path:
        """A folder in which `csd adapt` was run: garden.pth, and its cache with the state to resume from."""
        import torch
        from synthetic import moving_scene, rain_on, write_image

        from csd_plugin.archs.halfnet import HalfNet

        folder = self.good / "adapted"
        for number, frame in enumerate(rain_on(moving_scene(12, 48, 56, 0), 1), start=1):
            write_image(folder / "garden" / f"{number:05d}.png", frame)
        torch.save({"params": HalfNet(preset="tiny", num_feat=4).state_dict()}, folder / "half.pth")
        self._succeed(*adapting(folder))
        return folder

    @functools.cached_property
    def graph(self) -> bytes:
        """An ONNX model that `csd derain` takes."""
        self._succeed("export", str(self.network), str(self.good / "net.onnx"))
        return (self.good / "net.onnx").read_bytes()

    def _succeed(self, *command: str) -> None:
        outcome, said, _ = judge(self, Case("good", list(command), self.good), self.good)
        if outcome != ACCEPTED:
            raise RuntimeError(f"{command} was to succeed: {outcome}: {said}")

    def fresh(self) -> Path:
        shutil.rmtree(self.bad, ignore_errors=True)
        self.bad.mkdir()
        return self.bad


def adapting(folder: Path) -> list[str]:
    files = ("--teacher", "half.pth", "--student", "half.pth", "--out", "garden.pth")
    paths = [str(folder / word) if "." in word else word for word in files]
    return [
        "adapt",
        str(folder / "garden"),
        *paths,
        "--minutes",
        "0.01",
        "--frames",
        "12",
        "--features",
        "--device",
        "cpu",
    ]


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
    state = target / "garden.cache" / "garden.state"
    makers = changed_file(state, ground, rng)
    name = rng.choice(list(makers))
    state.write_bytes(makers[name]())
    return Case(f"state: {name}, adapt", [*adapting(target), "--resume"], ground.bad)


def caches(ground: Ground, rng: random.Random) -> Case:
    """What `csd adapt` has kept, and reads back: its manifest, features and their facts."""
    folder = ground.adapted
    target = ground.fresh() / "adapt"
    shutil.copytree(folder, target)
    cache = target / "garden.cache"
    features = cache / "features"
    array = next(features.glob("*.npy"))
    odd = rng.choice((None, True, 1.5, -1, 10**30, "../../../out", "a\0b", "", [], {}, float("nan"), float("inf")))
    deep = rng.choice(("(" * 9000, "-" * 9000 + "1", "{'shape': (True, 1, 1, 1)}"))

    def changed_json(file: Path, change: Callable[[Any], object]) -> None:
        content = json.loads(file.read_text())
        change(content)
        file.write_text(json.dumps(content))

    def in_manifest(change: Callable[[Any], object]) -> Callable[[], object]:
        return lambda: changed_json(cache / "manifest.json", change)

    def in_facts(change: Callable[[Any], object]) -> Callable[[], object]:
        return lambda: changed_json(features / "features.json", change)

    def renamed(content: Any) -> None:
        content["clips"][rng.choice(("../../../out", "/out", "a\0", ".."))] = next(iter(content["clips"].values()))

    def header() -> None:
        array.write_bytes(b"\x93NUMPY\1\0" + struct.pack("<H", len(deep)) + deep.encode() + array.read_bytes()[128:])

    keys = ("name", "source", "start", "length", "held")
    makers: dict[str, Callable[[], object]] = {
        **{f"shot's {key}": in_manifest(lambda m, key=key: m["shots"][0].update({key: odd})) for key in keys},
        "shots": in_manifest(lambda content: content.update(shots=odd)),
        "bytes": lambda: (cache / "manifest.json").write_bytes(rng.randbytes(999)),
        "clip": in_facts(renamed),
        "clips": in_facts(lambda content: content.update(clips=odd if odd != {} else [])),
        "shape": in_facts(lambda content: next(iter(content["clips"].values()))[0]["shape"].__setitem__(1, odd)),
        "crc": in_facts(lambda content: next(iter(content["clips"].values()))[0].update(crc=odd)),
        "header": header,
        "cut": lambda: array.write_bytes(array.read_bytes()[: rng.randrange(999)]),
        "link": lambda: (array.unlink(), array.symlink_to(ground.secret)),
        "pipe": lambda: (array.unlink(), os.mkfifo(array)),
    }
    name = rng.choice(list(makers))
    makers[name]()
    return Case(f"cache: {name}, {odd!r}", [*adapting(target), "--overwrite"], ground.bad)


# --- exported networks, results -----------------------------------------------------------------------------------


def graphs(ground: Ground, rng: random.Random) -> Case:
    """ONNX models and OpenVINO's files, which others' libraries read."""
    import onnx
    from onnx import TensorProto, helper

    good = ground.graph

    def model(change: Callable[[Any], object]) -> bytes:
        loaded = onnx.load_from_string(good)
        change(loaded)
        return loaded.SerializeToString()

    def outside(location: str) -> Callable[[Any], object]:
        def change(loaded: Any) -> None:
            weight = loaded.graph.initializer[0]
            weight.ClearField("raw_data")
            weight.data_location = TensorProto.EXTERNAL
            weight.external_data.add(key="location", value=location)

        return change

    def says(**facts: str) -> Callable[[Any], object]:
        def change(loaded: Any) -> None:
            for entry in loaded.metadata_props:
                entry.value = facts.get(entry.key, entry.value)

        return change

    def huge(loaded: Any) -> None:
        shape = helper.make_tensor("size", TensorProto.INT64, [2], [10**6, 10**6])
        made = helper.make_node("ConstantOfShape", ["size"], ["made"])
        summed = helper.make_node("ReduceSum", ["made"], ["sum"], keepdims=0)
        last = loaded.graph.node[-1]
        result, last.output[0] = last.output[0], "before"
        loaded.graph.initializer.append(shape)
        loaded.graph.node.extend([made, summed, helper.make_node("Add", ["before", "sum"], [result])])

    entity = '<!DOCTYPE net [<!ENTITY a "aaaaaaaaaa">' + "".join(
        f'<!ENTITY {chr(98 + i)} "{f"&{chr(97 + i)};" * 10}">' for i in range(9)
    )
    makers: dict[str, Callable[[], bytes]] = {
        "outside": lambda: model(outside(os.path.relpath(ground.secret))),
        "absolute": lambda: model(outside(str(ground.secret))),
        "huge": lambda: model(huge),
        "many frames": lambda: model(says(num_frame="999999")),
        "reach": lambda: model(says(reach="999999")),
        "floats": lambda: model(says(floats="0")),
        "layout": lambda: model(says(layout="../x")),
        "no facts": lambda: model(lambda loaded: loaded.ClearField("metadata_props")),
        "own operator": lambda: model(lambda loaded: setattr(loaded.graph.node[0], "domain", "evil")),
        "input": lambda: model(lambda loaded: setattr(loaded.graph.input[0], "name", "x")),
        "cut": lambda: good[: rng.randrange(len(good) * 3 // 4)],
        "noise": lambda: rng.randbytes(5000),
        "entities": lambda: f"<?xml version='1.0'?>{entity}]><net>&j;</net>".encode(),
        "xml outside": lambda: (
            f"<!DOCTYPE net [<!ENTITY x SYSTEM 'file://{ground.secret}'>]><net version='11'>&x;</net>".encode()
        ),
    }
    name = rng.choice(list(makers))
    is_xml = name in ("entities", "xml outside")
    file = ground.fresh() / ("net.xml" if is_xml else "net.onnx")
    file.write_bytes(makers[name]())
    if is_xml:
        file.with_suffix(".bin").symlink_to(ground.secret)
    out = str(ground.bad / "out")
    return Case(f"graph: {name}", ["derain", str(ground.frames), out, "--model", str(file)], ground.bad)


def results(ground: Ground, rng: random.Random) -> Case:
    """Scores that another command reads."""
    frame = {protocol: {"psnr": 30.0, "ssim": 0.9} for protocol in ("nturain_y", "rgb")}
    good: dict[str, Any] = {
        "format": "csd-results", "version": 1, "network": "x", "dataset": "d", "skip": [0, 0], "facts": {},
        "average": frame, "clips": {"a": {"average": frame, "frames": {"1": frame}}},
    }  # fmt: skip
    text = json.dumps(good)
    makers: dict[str, Callable[[], str]] = {
        "deep": lambda: "[" * 10**5,
        "deep inside": lambda: text.replace('"facts": {}', '"facts": ' + '{"a":' * 10**5 + "1" + "}" * 10**5),
        "number": lambda: text.replace("30.0", "9" * 9999),
        "nan": lambda: text.replace("30.0", "NaN"),
        "text": lambda: text.replace("30.0", '"x"'),
        "list": lambda: f"[{text}]",
        "version": lambda: text.replace('"version": 1', '"version": "1"'),
        "clips": lambda: json.dumps(good | {"clips": [1]}),
        "no frames": lambda: json.dumps(good | {"clips": {"a": {"frames": {}}}}),
        "skip": lambda: json.dumps(good | {"skip": [0]}),
        "bytes": lambda: text.replace("csd", "\udcff\0"),
        "cut": lambda: text[: rng.randrange(len(text))],
        "huge": lambda: text + " " * 2**26,
    }
    name = rng.choice(list(makers))
    file = ground.fresh() / "scores.json"
    file.write_bytes(makers[name]().encode(errors="surrogateescape"))
    command = ["score", str(ground.frames), "--truth", str(ground.frames), "--baseline", str(file), "--jobs", "1"]
    return Case(f"result: {name}", command, ground.bad)


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


# --- archives, folders, stores, lists -----------------------------------------------------------------------------

CLIP = "Dataset_Testing_Synthetic/a1_Rain"


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


def scoring(ground: Ground, data: Path, **more: Any) -> list[str]:
    """A run of the test launcher over a data set in the folder of the case."""
    dataset = {"name": "rain", "type": "PairedVideoTestDataset", "dataroot": str(data), "num_frame": 1}
    options = {
        "name": "row", "model_type": "VideoDerainModel", "num_gpu": 0, "manual_seed": 0,
        "datasets": {"test_1": dataset | more},
        "network_g": {"type": "PReNet", "num_feat": 4},
        "path": {"pretrain_network_g": str(ground.network)},
        "val": {"save_img": False},
    }  # fmt: skip
    file = ground.bad / "options.yml"
    file.write_text(yaml.safe_dump(options))
    return ["csd_plugin.test", "-opt", str(file)]


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


MAKERS: dict[str, Maker] = {
    "YAML": option_files,
    "matrix": matrices,
    "checkpoint": checkpoints,
    "state": states,
    "cache": caches,
    "graph": graphs,
    "result": results,
    "image": images,
    "video": videos,
    "archive": archives,
    "other archive": other_archives,
    "folder": folders,
    "LMDB": stores,
    "list": lists,
}

# --- running ------------------------------------------------------------------------------------------------------


def judge(ground: Ground, case: Case, written_to: Path | None = None) -> tuple[str, str, int]:
    """(outcome, what was printed, bytes of memory at most). The command may write to this folder: the case's."""
    ground.marker.unlink(missing_ok=True)
    own = written_to or ground.bad
    before = tree(ground.folder, own)
    log = ground.folder / "log"
    pid = os.fork()
    if pid == 0:
        end_with(lambda: limited(case.command), log)
    _, status, usage = os.wait4(pid, 0)
    said = log.read_text(errors="replace")
    log.unlink()
    memory = usage.ru_maxrss * 1024
    if ground.marker.exists():
        outcome = RAN
    elif tree(ground.folder, own) != before or ground.secret.read_bytes() in written(ground, case):
        outcome = ESCAPED
    elif os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGALRM, signal.SIGXCPU):
        outcome = SLOW
    elif memory > MOST_MEMORY or "not enough memory" in said:
        outcome = MEMORY
    elif "Traceback" in said or os.WIFSIGNALED(status):
        outcome = TRACEBACK
    elif (os.WEXITSTATUS(status) == 2 and "error: " in said) or reported(case, said):
        outcome = REFUSED
    else:
        outcome = ACCEPTED if os.WEXITSTATUS(status) == 0 else TRACEBACK
    return outcome, said, memory


def reported(case: Case, said: str) -> bool:
    """Whether a command that lists problems, and whose status is 0 then too, has listed a file of the case."""
    _, found, listed = said.partition(" found:\n")
    return case.command[0] == "data" and bool(found) and f"  {case.out}/" in listed


def written(ground: Ground, case: Case) -> set[bytes]:
    """What lies in the folder of results; what a case itself has brought is elsewhere."""
    folders = (ground.bad / "data", ground.bad / "out")
    if case.command[0] not in ("prepare", "derain"):
        return set()
    return {path.read_bytes() for folder in folders for path in folder.rglob("3.png") if path.is_file()}


def tree(folder: Path, without: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if without not in (path, *path.parents)}


def limited(command: Sequence[str]) -> int:
    """In a child process: the command, with bounds of time and memory."""
    signal.alarm(PATIENCE)
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS + 5))
    # what is asked for beyond this fails, before the machine suffers
    used = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (used + 2 * MOST_MEMORY, used + 2 * MOST_MEMORY))
    return start(command)


def start(command: Sequence[str]) -> int:
    from csd_plugin import test, train
    from csd_plugin.cli import main as csd

    launchers = {"csd_plugin.test": test, "csd_plugin.train": train}
    if command[0] in launchers:
        os.chdir(Path(command[2]).parent)
        sys.argv = list(command)
        return launchers[command[0]].main()
    return csd(command)


def warm_up() -> None:
    """Import what the commands do, once for all the processes."""
    import importlib

    import torch

    from csd_plugin import compat, registration

    torch.set_num_threads(1)
    registration.install()
    compat.repair_launch()
    for module in ("csd_plugin.test", "csd_plugin.train", "basicsr.test", "basicsr.train", "onnxruntime"):
        importlib.import_module(module)
    for job in ("adapt", "bench", "inspect", "table", "derain", "export", "figure", "prepare", "data", "rain", "score"):
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
    print(f"{'':<14}" + "".join(f"{outcome:>11}" for outcome in OUTCOMES))
    for kind, found in [*counts.items(), ("all", sum(counts.values(), Counter()))]:
        print(f"{kind:<14}" + "".join(f"{found[outcome]:>11}" for outcome in OUTCOMES))
    print(f"largest memory of a process: {largest / 2**20:.0f} MB")
    return 0 if all(set(found) <= {REFUSED} for found in counts.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
