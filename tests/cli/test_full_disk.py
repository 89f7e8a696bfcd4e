"""Disks that are full or read-only, and outputs that another command is writing: a line, and nothing half written."""

from __future__ import annotations

import errno
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from synthetic import moving_scene, write_image
from toolbox import train_options

from csd_plugin.archs.prenet import PReNet
from csd_plugin.cli import main
from csd_plugin.locks import alone

ROOT = Path(__file__).resolve().parents[2]
KB = 1024


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> Path:
    """A network, a folder of frames, and the same frames in NTURain's layout."""
    folder = tmp_path_factory.mktemp("given")
    torch.manual_seed(0)
    torch.save({"params": PReNet(num_feat=4).state_dict()}, folder / "net.pth")
    for number, frame in enumerate(moving_scene(6, 96, 128, 0), 1):
        write_image(folder / "frames" / f"{number:05d}.png", frame)
    shutil.copytree(folder / "frames", folder / "data/Dataset_Testing_Synthetic/a1_Rain")
    shutil.copytree(folder / "frames", folder / "data/Dataset_Testing_Synthetic/a1_GT")
    return folder


@pytest.fixture
def small_disk(tmp_path):
    """small_disk(bytes, *flags) -> a folder that is a file system of its own. Skips where none can be mounted."""
    mounted = []

    def mount(size, *flags):
        folder = tmp_path / "small"
        folder.mkdir(exist_ok=True)
        options = ",".join([f"size={size}", *flags])
        try:
            run = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], capture_output=True)
        except FileNotFoundError:
            pytest.skip("there is no mount here")
        if run.returncode:
            pytest.skip("no file system can be mounted here")
        mounted.append(folder)
        return folder

    yield mount
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def commands(given: Path, out: Path) -> dict[str, list[str]]:
    frames, network = str(given / "frames"), str(given / "net.pth")
    return {
        "derain to a folder": ["derain", frames, str(out / "clean"), "--model", network],
        "derain to a video": ["derain", frames, str(out / "clean.mkv"), "--model", network],
        "prepare": ["prepare", str(given / "data"), str(out / "data"), "--jobs", "1"],
        "export": ["export", network, str(out / "net.pt2")],
        "rain": ["rain", frames, str(out / "rainy"), "--jobs", "1"],
    }


NAMES = list(commands(Path(), Path()))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("disk", ["full", "read-only"])
def test_a_disk_that_takes_nothing_is_a_line(given, small_disk, capfd, name, disk):
    out = small_disk(4 * KB) if disk == "full" else small_disk(4 * KB * KB, "ro")
    assert main(commands(given, out)[name]) == 2
    error = capfd.readouterr().err
    assert "Traceback" not in error
    [line] = [line for line in error.splitlines() if "error: " in line]
    assert str(out) in line or "space" in line or "room" in line
    assert ".part" not in line  # nobody knows the names of drafts
    left = [path for path in out.rglob("*") if path.is_file()]
    assert not [path for path in left if ".part" in path.name or path.suffix in (".mkv", ".pt2")], left
    assert all(path.stat().st_size for path in left)


STORE = """
import sys
from pathlib import Path
import numpy as np
from csd_plugin.data.features import write_features

frame = np.zeros((64, 64, 4), np.float16)
try:
    write_features(Path(sys.argv[1], "f"), "clip", ([frame] for _ in range(64)), 64, network="abc", layers=["tail"])
except OSError as error:
    sys.exit(error.strerror)
"""


def test_features_on_a_disk_that_fills_up_are_an_error(small_disk):
    """In a process of its own: written through a map they would end it."""
    out = small_disk(256 * KB)
    done = subprocess.run([sys.executable, "-c", STORE, str(out)], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr.strip()) == (1, "No space left on device")
    assert not list((out / "f").iterdir())


@pytest.mark.parametrize("name", NAMES)
def test_two_commands_with_one_output_are_refused_by_name(given, tmp_path, capfd, name):
    command = commands(given, tmp_path)[name]
    output = Path(command[2])
    with alone(output):
        assert main(command) == 2
    assert f"{output}: another command is writing there now" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_two_trainings_of_one_name_are_refused(launcher, tiny_rain, capfd):
    with alone(launcher.folder / "experiments" / "run"):
        assert launcher.train(train_options(tiny_rain)) == 2
    assert "experiments/run: another command is writing there now" in capfd.readouterr().err
    assert launcher.written() == []


@pytest.mark.parametrize("error", ["EEXIST", "ENOTEMPTY", "EINVAL", "ENOTSUP", "EBUSY", "EXDEV", "EMLINK"])
def test_any_error_of_a_file_is_a_line_that_names_it(monkeypatch, capfd, error):
    def run(args):
        raise OSError(getattr(errno, error), "The Reason", "a/file")

    monkeypatch.setattr("csd_plugin.cli.models.run", run)
    assert main(["models"]) == 2
    assert capfd.readouterr().err.startswith("csd models: error: a/file: the reason; ")


def test_an_error_of_the_system_that_names_no_file_is_not_hidden(monkeypatch):
    def run(args):
        raise OSError(errno.EINVAL, "a bug")

    monkeypatch.setattr("csd_plugin.cli.models.run", run)
    with pytest.raises(OSError, match="a bug"):
        main(["models"])
