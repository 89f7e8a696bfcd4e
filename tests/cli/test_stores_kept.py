"""LMDB stores where a command reads or writes folders of images: nothing is put into them, and a line says so."""

from __future__ import annotations

import pytest
import torch
from synthetic import TEST, moving_scene, write_image

from csd_plugin.archs.sldnet import SLDNet
from csd_plugin.cli import main
from csd_plugin.data.stores import open_store
from csd_plugin.data.stores.build import build_store


@pytest.fixture
def work(tiny_rain, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").symlink_to(tiny_rain)
    build_store(tiny_rain, tmp_path / "data.lmdb")
    for number, frame in enumerate(moving_scene(12, 32, 40, 0)):
        write_image(tmp_path / "rain" / f"{number}.png", frame)
    torch.manual_seed(0)
    torch.save({"params": SLDNet(preset="student2", num_feat=3).state_dict()}, tmp_path / "net.pth")
    return tmp_path


@pytest.mark.parametrize("out", ["data.lmdb", "new.lmdb", "plain"])
@pytest.mark.parametrize(
    "command",
    [
        ["derain", f"data/{TEST}/a1_Rain", "OUT/%05d.png", "--model", "net.pth"],
        ["rain", f"data/{TEST}/a1_GT", "OUT"],
        ["prepare", "data", "OUT"],
        ["adapt", "rain", "--teacher", "net.pth", "--student", "net.pth", "--out", "my.pth", "--cache", "OUT"],
    ],
)
def test_no_images_are_written_into_a_store(work, capsys, command, out):
    """`plain` is a store by its content alone."""
    if out == "plain":
        (work / "data.lmdb").rename(work / out)
    before = sorted(work.rglob("*"))
    assert main([word.replace("OUT", out) for word in command]) == 2
    error = capsys.readouterr().err
    lines = (f"{out}: is an LMDB store, or named like one", f"{out}: cannot write '.lmdb'")
    assert any(line in error for line in lines) and error.count("\n") == 1
    assert sorted(work.rglob("*")) == before


@pytest.mark.parametrize(
    "command",
    [
        ["derain", "data.lmdb", "out.mp4", "--model", "net.pth"],
        ["score", f"data/{TEST}/a1_Rain", "--truth", "data.lmdb"],
        ["bench", "data", "data.lmdb"],
    ],
)
def test_a_store_in_place_of_images_is_called_that(work, capsys, command):
    assert main(command) == 2
    error = capsys.readouterr().err
    assert "is an LMDB store: give" in error and error.count("\n") == 1


def test_a_folder_of_images_that_is_named_like_a_store_can_be_put_into_one(work):
    (work / "data.lmdb").rename(work / "store.lmdb")
    (work / "data").rename(work / "data.lmdb")
    build_store(work / "data.lmdb", work / "other.lmdb")
    assert open_store(work / "other.lmdb").keys() == open_store(work / "store.lmdb").keys()
