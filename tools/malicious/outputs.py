"""What commands write and read again: the cache of `csd adapt`, exported networks, results."""

from __future__ import annotations

import json
import os
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from malicious.ground import Case, Ground, adapting


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
