"""The networks that come with the package, and what is said of them."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import re
import subprocess
import sys
import zipfile
from dataclasses import asdict, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from csd_plugin import weights
from csd_plugin.archs.checkpoint import load_network
from csd_plugin.archs.complexity import complexity
from csd_plugin.data.rain import PRESETS, RainRenderer, ambient_light
from csd_plugin.data.scenes import moving_scene
from csd_plugin.errors import CSDError
from csd_plugin.inference.backends import open_backend
from csd_plugin.metrics.protocols import PROTOCOLS, score_frame, to_uint8
from csd_plugin.weights import (
    DEFAULT,
    FASTEST,
    FOLDER,
    NETWORKS,
    RAINY,
    SETS,
    best_of,
    fastest_of,
    find_checkpoint,
    for_cameras_of,
    under_todays_keys,
)

ROOT = Path(__file__).resolve().parents[2]


def test_the_default_is_one_of_them():
    assert find_checkpoint(None) == find_checkpoint(DEFAULT)
    assert {DEFAULT, FASTEST} <= set(NETWORKS)


def test_what_is_not_there_is_told_with_what_is():
    with pytest.raises(CSDError, match=rf"no checkpoint nowhere.pth.*{DEFAULT}"):
        find_checkpoint("nowhere.pth")


def test_the_best_validation_is_the_default_and_the_best_in_real_time_is_fast():
    def network(name, work, psnr):
        scores = {} if psnr is None else {"validation": {"nturain_y": {"psnr": psnr, "ssim": 0.9}}}
        return replace(NETWORKS[DEFAULT], name=name, multiply_adds=work, scores=scores)

    rows = [("best", 9e5, 40.0), ("slow", 7e5, 36.0), ("fast", 3e4, 35.5), ("faster", 1e4, 35.0), ("new", 1e3, None)]
    networks = {row[0]: network(*row) for row in rows}
    assert (best_of(networks), fastest_of(networks)) == ("best", "fast")
    assert fastest_of({name: networks[name] for name in ("best", "slow")}) == "slow"


def test_the_network_for_cameras_needs_no_later_frames():
    rows = [("fast", 3e4, False), ("live", 3e4, True), ("slow", 1e5, True)]
    networks = {
        name: replace(NETWORKS[DEFAULT], name=name, multiply_adds=work, numbers={"causal": causal})
        for name, work, causal in rows
    }
    assert for_cameras_of(networks) == "live"
    assert for_cameras_of({"fast": networks["fast"]}) == "fast"


def test_a_file_of_its_name_does_not_hide_a_network(tmp_path, monkeypatch):
    (tmp_path / DEFAULT).touch()
    monkeypatch.chdir(tmp_path)
    assert find_checkpoint(DEFAULT) == NETWORKS[DEFAULT].path
    assert find_checkpoint(f"./{DEFAULT}") == Path(DEFAULT)


def test_a_network_that_shipped_once_is_named_with_what_replaces_it(monkeypatch):
    monkeypatch.setitem(weights.LEFT, "student9", NETWORKS[DEFAULT])
    with pytest.raises(CSDError, match=f"student9 no longer comes with this package: {FASTEST} is better"):
        find_checkpoint("student9")
    assert not set(weights.LEFT) & set(NETWORKS)


def test_every_file_has_its_entry():
    assert {path.stem for path in FOLDER.glob("*.pth")} == set(NETWORKS)


@pytest.mark.parametrize("name", NETWORKS)
def test_the_catalogue_is_right(name):
    """Its hash, the facts in the file, and what the network itself tells; `tools/pack_network.py` makes it so."""
    network = NETWORKS[name]
    assert hashlib.sha256(network.path.read_bytes()).hexdigest() == network.sha256
    facts = under_todays_keys(torch.load(network.path, weights_only=True)["facts"])
    assert facts == {key: value for key, value in asdict(network).items() if key != "sha256"}
    assert network.license == "Apache-2.0"

    loaded = load_network(network.path)
    built = type(loaded)(**network.numbers)
    built.load_state_dict(loaded.state_dict())
    assert built.state_dict().keys() == type(loaded)(preset=network.preset, num_feat=built.num_feat).state_dict().keys()
    cost = complexity(built, (built.num_frame, 3, 16, 16))
    assert (cost.parameters, cost.operations) == (network.parameters, 256 * network.multiply_adds)


@pytest.mark.parametrize("which", SETS)
def test_scores_are_of_the_same_frames_and_above_the_rain(which):
    scored = [network.scores[which] for network in NETWORKS.values() if which in network.scores]
    for score in scored:
        assert [score[key] for key in ("clips", "frames", "skip")] == [
            RAINY[which][key] for key in ("clips", "frames", "skip")
        ]
        assert all(score[protocol]["psnr"] > RAINY[which][protocol]["psnr"] for protocol in PROTOCOLS)
    assert scored


def test_the_model_card_has_these_scores():
    card = (FOLDER / "MODEL_CARD.md").read_text(encoding="utf-8")
    for network in NETWORKS.values():
        assert network.name in card and f"{network.parameters:,}" in card
    for scores in (RAINY, *(network.scores for network in NETWORKS.values())):
        for score in scores.values():
            for protocol in PROTOCOLS:
                assert f"{score[protocol]['psnr']:.2f} / {score[protocol]['ssim']:.4f}" in card


def test_every_line_of_the_log_of_a1_has_the_fields_of_its_head():
    with (FOLDER / "a1_log.csv").open(encoding="utf-8", newline="") as file:
        head, *rows = csv.reader(file)
    assert len(head) == 8 and rows
    assert [row for row in rows if len(row) != len(head)] == []
    frames = [row[head.index("frames")] for row in rows]
    assert [text for text in frames if not re.fullmatch(r"\d+-\d+", text)] == []


@pytest.mark.parametrize("name", NETWORKS)
def test_they_remove_rain_from_a_scene_they_have_not_seen(name):
    skimage_data = pytest.importorskip("skimage.data")
    photo = cv2.imread(str(Path(skimage_data.__file__).parent / "astronaut.png"))[..., ::-1].copy()
    clean = list(moving_scene(photo, 7, (96, 128), seed=0))
    renderer = RainRenderer(PRESETS["nturain"], seed=3, height=96, width=128, ambient=ambient_light(clean[0]))
    rainy = [renderer.render(frame, t) for t, frame in enumerate(clean)]
    backend = open_backend(find_checkpoint(name))
    reach = backend.facts.num_frame // 2
    window = torch.from_numpy(np.stack(rainy[3 - reach : 4 + reach])).permute(0, 3, 1, 2)[None].float() / 255
    derained = to_uint8(backend(window.to(backend.device)))[0]
    before, after = score_frame(rainy[3], clean[3])["nturain_y"], score_frame(derained, clean[3])["nturain_y"]
    assert after.psnr > before.psnr + 1
    assert after.ssim > before.ssim


# Each command of argv[1], where nothing is that a plain `pip install .` lacks.
WITHOUT = """
import json, sys
for name in ("basicsr", "torchvision", "mmengine", "pydantic", "scipy", "yaml", "onnx", "skimage"):
    sys.modules[name] = None
from csd_plugin.cli import main
sys.exit(any([main(command) for command in json.loads(sys.argv[1])]))
"""


@pytest.fixture
def wheel(tmp_path):
    """The wheel that this checkout makes, unpacked."""
    copy = tmp_path / "checkout"  # setuptools writes into the folder that it builds
    copy.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "csd_plugin"):
        (copy / name).symlink_to(ROOT / name)
    make = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    made = subprocess.run([*make, str(copy)], capture_output=True, text=True)
    assert made.returncode == 0, made.stderr[-2000:]
    zipfile.ZipFile(next(tmp_path.glob("*.whl"))).extractall(tmp_path / "site")
    return tmp_path / "site"


def test_a_plain_install_has_them_and_derains_frames_and_videos(wheel, shared, tmp_path):
    (tmp_path / "rain").mkdir()
    for path in sorted((shared / "data/NTURain/Dataset_Testing_RealRain/ra1_Rain").glob("*.jpg"))[:3]:
        cv2.imwrite(str(tmp_path / "rain" / f"{path.stem}.png"), cv2.imread(str(path))[200:296, 300:428])
    commands = [
        ["models", "--path", DEFAULT],
        ["derain", "rain", "clean.mp4"],
        ["derain", "clean.mp4", "again", "--fast"],
    ]
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT, json.dumps(commands)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(wheel), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    file, expected, *_ = run.stdout.splitlines()
    assert Path(file).is_relative_to(wheel) and expected.startswith(f"{DEFAULT} (")
    assert len(list((tmp_path / "again").glob("*.png"))) == 3
