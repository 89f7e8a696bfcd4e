"""Links in folders of frames: what leads out of a folder is refused wherever folders are read, unless it is allowed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from synthetic import TEST, write_ntu_rain

from csd_plugin.archs.prenet import PReNet
from csd_plugin.cli import main
from csd_plugin.data.datasets.paired_video import PairedVideoDataset, PairedVideoTestDataset
from csd_plugin.data.links import FOLLOW
from csd_plugin.data.stores import open_store
from csd_plugin.data.stores.build import build_store
from csd_plugin.errors import CSDError

SIZES = {"num_frame": 3, "gt_size": 16}
COMMANDS = {
    "derain": "derain {clip} {out} --model {net}",
    "derain a pattern": "derain {clip}/%05d.png {out} --model {net}",
    "score": "score {clip} --truth {truth}",
    "score against the root": "score {truth} --truth {root}",
    "rain on frames": "rain {clip} {out}",
    "rain on clips": "rain {clip}/.. {out}",
    "prepare": "prepare {root} {out} --jobs 1",
    "data": "data {root} --jobs 1",
    "figure": "figure crops --clip {clip} --truth {truth} --models {net} --out {out}.png",
    "adapt": "adapt {clip} --teacher {net} --student realtime --out {out}.pth --minutes 0.01",
}


@pytest.fixture
def places(tmp_path) -> dict[str, Path]:
    """A data set, its rainy test clip and truth, a network, and an image that lies outside."""
    root = write_ntu_rain(tmp_path / "data", frames=13, height=32, width=36)
    torch.save({"params": PReNet(num_feat=4).state_dict()}, tmp_path / "net.pth")
    clip = root / TEST / "a1_Rain"
    shutil.copy(clip / "00003.png", tmp_path / "secret.png")
    return {
        "root": root, "clip": clip, "truth": clip.with_name("a1_GT"), "out": tmp_path / "out",
        "net": tmp_path / "net.pth", "secret": tmp_path / "secret.png",
    }  # fmt: skip


def link(path: Path, target: Path) -> None:
    path.unlink()
    path.symlink_to(target)


def refused(command: str, places: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(COMMANDS[command].format(**places).split()) == 2
    error = capsys.readouterr().err
    assert "00003.png: a link that leads out of" in error and str(places["secret"]) in error
    assert not places["out"].exists() or not any(path.is_file() for path in places["out"].rglob("*"))


@pytest.mark.parametrize("command", COMMANDS)
def test_a_link_out_of_a_folder_is_refused(places, capsys, command):
    link(places["clip"] / "00003.png", places["secret"])
    refused(command, places, capsys)


def test_so_it_is_in_a_data_root_and_a_store_and_for_folders(places, tmp_path, monkeypatch):
    root, clip = places["root"], places["clip"]
    outside = tmp_path / "outside"
    shutil.move(clip, outside)
    clip.symlink_to(outside)
    for dataset in (PairedVideoDataset, PairedVideoTestDataset):
        with pytest.raises(CSDError, match=r"a1_Rain: a link that leads out of .* set CSD_FOLLOW_LINKS=1"):
            dataset({"dataroot": str(root), **SIZES})

    clip.unlink()
    shutil.move(outside, clip)
    build_store(root, tmp_path / "mine.lmdb", "source", 1)
    (tmp_path / "theirs.lmdb").mkdir()
    (tmp_path / "theirs.lmdb" / "data.mdb").symlink_to(tmp_path / "mine.lmdb" / "data.mdb")
    with pytest.raises(CSDError, match=r"data\.mdb: a link that leads out of"):
        open_store(tmp_path / "theirs.lmdb")
    monkeypatch.setenv(FOLLOW, "1")
    assert open_store(tmp_path / "theirs.lmdb").keys() == open_store(tmp_path / "mine.lmdb").keys()


def test_links_within_are_followed_and_those_of_who_says_so(places, monkeypatch, capsys):
    first, clip = places["clip"] / "00001.png", places["clip"]
    link(clip / "00003.png", first)
    assert main(COMMANDS["derain"].format(**places).split()) == 0
    (places["root"].parent / "set").symlink_to(places["root"])  # the root itself may be one
    assert PairedVideoTestDataset({"dataroot": str(places["root"].parent / "set"), "num_frame": 1}).samples

    link(clip / "00003.png", places["secret"])
    monkeypatch.setenv(FOLLOW, "1")
    assert main([*COMMANDS["derain"].format(**places).split(), "--overwrite"]) == 0
    assert PairedVideoTestDataset({"dataroot": str(places["root"]), "num_frame": 1})[2]["lq_path"].endswith("00003.png")
    assert main(COMMANDS["score"].format(**places).split()) == 0
