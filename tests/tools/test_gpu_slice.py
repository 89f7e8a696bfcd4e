"""A slice of training: what starts from which weights, what fits into a GPU, and what is left of it."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import warm
import yaml

from csd_plugin.archs import halfnet, sldnet
from csd_plugin.archs.checkpoint import load_weights, read_state_dict

if not hasattr(os, "fork"):
    pytest.skip("its processes are forked", allow_module_level=True)

import gpu_slice
from slicing import training
from slicing.clips import VALIDATION, pack_clips
from slicing.deadlines import SAVED_EVERY, Deadlines
from slicing.networks import MATRIX, Network, plan, start_of
from slicing.processes import PRELOADED
from slicing.rain import complete
from slicing.results import keep_weights, write_table
from slicing.telling import SliceError
from slicing.training import fitting, how_it_ended, seconds_before, train

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ("realtime", "tiny", "causal", "wide")


@pytest.fixture
def slice_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def network(row, **facts):
    return Network(row, row, {}, {}, **facts)


def test_the_matrix_has_the_networks_of_today():
    rows = yaml.safe_load(MATRIX.read_text())["rows"]
    presets = {row: content["set"]["network_g"]["preset"] for row, content in rows.items()}
    assert set(presets) == {*sldnet.PRESETS, *halfnet.PRESETS} and all(row == name for row, name in presets.items())


@pytest.mark.parametrize("row", SHIPPED)
def test_networks_go_on_from_the_weights_that_ship(tmp_path, row):
    start = start_of(row, tmp_path, cpu=False)
    assert start == ROOT / f"csd_plugin/weights/{row}.pth"
    network = halfnet.HalfNet(preset=row)
    assert load_weights(network, read_state_dict(start, "params"), source=str(start)) == []


def test_weights_of_the_slice_before_come_first(tmp_path):
    (tmp_path / "wide.pth").touch()
    assert start_of("wide", tmp_path, cpu=False) == start_of("wide", tmp_path, cpu=True)
    assert start_of("wide", tmp_path, cpu=False) == tmp_path / "wide.pth"
    assert start_of("teacher", tmp_path, cpu=False) is None
    assert start_of("tiny", tmp_path, cpu=True) is None  # narrow networks cannot take what ships


@pytest.mark.parametrize(("room", "fit"), [(100, "abcd"), (47, "abd"), (36, "ad"), (16, "a"), (15.9, "d"), (4, "")])
def test_networks_for_which_the_gpu_has_no_room_are_left_out(capsys, room, fit):
    """Each needs 1.2 times what its step does, 2 GiB for its clips and 1 for itself: 16, 21, 27 and 4.2 GiB, beside
    the one before."""
    facts = {"a": 13 / 1.2, "b": 18 / 1.2, "c": 24 / 1.2, "d": 1.0}
    networks = [network(row, memory=memory) for row, memory in facts.items()]
    assert "".join(one.row for one in fitting(networks, room, 2.0)) == fit
    left_out = [one.row for one in networks if one.note.startswith("left out: needs")]
    assert "".join(left_out) == "".join(row for row in facts if row not in fit)
    assert all(f"{row} left out" in capsys.readouterr().out for row in left_out[:1])


@pytest.mark.parametrize(("text", "share"), [("teacher", 1.0), ("teacher=2.5", 2.5)])
def test_shares_of_the_time(text, share):
    assert gpu_slice.row_and_share(text) == ("teacher", share)


@pytest.mark.parametrize("text", ["teacher=", "teacher=0", "teacher=-1", "teacher=inf", "teacher=much", "teacher=nan"])
def test_shares_that_are_none_are_refused(text, capsys):
    with pytest.raises(SystemExit):
        gpu_slice.main(["run", "--networks", text])
    assert f"--networks: {text!r}: give ROW or ROW=SHARE, a share above 0" in capsys.readouterr().err.replace("\n", " ")


def test_a_row_twice_is_refused(tmp_path):
    with pytest.raises(SliceError, match="names a row twice"):
        plan([("tiny", 1.0), ("tiny", 2.0)], tmp_path, cpu=True)


def test_each_network_has_its_turn(slice_folder, monkeypatch):
    """By its share of the time; one that ends early leaves the rest to those that come."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(
        training, "elsewhere", lambda function, *_: {"resident_memory": 1.0}.get(function.__name__, spent)
    )
    monkeypatch.setattr(training, "how_it_ended", lambda *_: "")
    lasts = {"a": 1000.0, "b": 5.0, "c": 1000.0}
    spent, begun = dict.fromkeys(lasts, 7.0), {}

    class Child:
        exitcode = 0

        def __init__(self, row, seconds):
            self.ends = now[0] + min(seconds, lasts[row])

        def join(self, seconds):
            now[0] = min(self.ends, now[0] + max(seconds, 0)) if self.is_alive() else now[0]

        def is_alive(self):
            return now[0] < self.ends

    def launch(job, one, options):
        begun[one.row] = (now[0], options["train"]["max_seconds"] - 7)
        return Child(one.row, options["train"]["max_seconds"] - 7)

    monkeypatch.setattr(training, "launch", launch)
    monkeypatch.setattr(training, "START_UP", 8.0)
    networks = [network(row, step=0.5, share=2.0 if row == "a" else 1.0) for row in lasts]
    for one in networks:
        one.options |= {"train": {}, "logger": {}}
    train(networks, 80.0, Deadlines(ready=100.0, end=245.0))  # trained at 216 s
    assert begun["a"] == (100, 58)  # half of the time
    assert begun["b"] == (158 - training.START_UP, 29 + training.START_UP)  # and a start beside the one before
    assert begun["c"] == (155, 216 - 155)  # b was over before its turn had begun
    assert now[0] == 216


def test_the_room_is_what_the_gpu_says(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (3 * 2**30, 80 * 2**30))
    monkeypatch.setattr(torch.backends.cudnn, "version", lambda: None)  # asks the GPU, where torch was built with it
    facts = SimpleNamespace(name="a GPU", total_memory=80 * 2**30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: facts)
    assert gpu_slice.check_machine(cpu=False) == 3


def test_weights_come_back_of_what_trained_and_of_what_did_not(slice_folder):
    trained, waited, new = network("trained", before=4), network("waited"), network("new")
    waited.start = slice_folder / "before.pth"
    torch.save({"params": {"a": torch.tensor(1.0)}}, waited.start)
    models, states = trained.folder / "models", trained.folder / "training_states"
    models.mkdir(parents=True), states.mkdir()
    for name, value in (("latest", 2.0), ("7", 3.0)):  # stopped, in a slice that resumed one that had ended
        torch.save(
            {"params": {"a": torch.tensor(0.0)}, "params_ema": {"a": torch.tensor(value)}}, models / f"net_g_{name}.pth"
        )
    os.utime(models / "net_g_latest.pth", (0, 0))  # the clock of files may not tell the two apart
    torch.save({"seconds": 12.5}, states / "7.state")
    networks = [trained, waited, new]
    keep_weights(networks)
    table = write_table(networks, 60, "not begun")
    kept = {file.stem: torch.load(file)["params"]["a"].item() for file in (slice_folder / "weights").iterdir()}
    assert kept == {"trained": 3.0, "waited": 1.0}
    assert "| trained | 7 | 3 |" in table and "| new | 0 | 0 | - | - | not begun |" in table
    assert seconds_before(networks) == {"trained": 12.5, "waited": 0, "new": 0}


def test_what_a_disk_has_no_room_for_leaves_what_was_there(slice_folder, monkeypatch):
    def half(*given):
        Path(given[1]).write_bytes(b"half")  # of either: what, where to
        raise OSError(errno.ENOSPC, "No space left on device")

    trained, waited = network("trained"), network("waited", start=slice_folder / "before.pth")
    torch.save({"params": {}}, waited.start)
    (trained.folder / "models").mkdir(parents=True)
    torch.save({"params": {}}, trained.folder / "models/net_g_7.pth")
    keep_weights([trained, waited])
    write_table([trained], 60)
    files = [Path("weights/trained.pth"), Path("weights/waited.pth"), Path("table.md")]
    before = [file.read_bytes() for file in files]
    Path("weights/.trained.4711.part.pth").touch()
    monkeypatch.setattr(torch, "save", half)
    monkeypatch.setattr(shutil, "copyfile", half)
    monkeypatch.setattr(Path, "write_text", lambda path, *_, **__: half(None, path))
    for function, *given in ((keep_weights, [trained]), (keep_weights, [waited]), (write_table, [], 90)):
        with pytest.raises(OSError, match="No space"):
            function(*given)
    assert [file.read_bytes() for file in files] == before
    assert sorted(Path("weights").iterdir()) == files[:2] and not list(Path().glob(".table*"))


def test_parts_of_a_slice_end_in_order_within_it_whatever_start_up_took():
    for ready in (3.0, 50.0, 60.0, 75.0):
        deadlines = Deadlines(ready=ready, end=60.0)
        ends = [getattr(deadlines, part) for part in ("rendered", "measured", "trained", "saved", "tested")]
        assert ends == sorted(ends) and ready <= ends[0] and ends[-1] <= max(ready, 60)
        assert deadlines.saves_every <= SAVED_EVERY


@pytest.mark.parametrize(
    ("status", "steps", "late", "note"),
    [
        (0, 9, False, ""),
        (143, 9, True, "stopped: "),
        (-9, 9, True, "killed: it took longer to end; weights of its last save, step 9"),
        (-15, 4, True, "not begun: its first step was not done in time"),
        (-9, 9, False, "training failed with status -9"),
        (2, 9, False, "training failed with status 2: error: no such clip"),
    ],
)
def test_how_a_training_ended_is_said(slice_folder, status, steps, late, note):
    one = network("row", before=4)
    (one.folder / "training_states").mkdir(parents=True)
    (one.folder / f"training_states/{steps}.state").touch()
    Path("logs").mkdir()
    Path("logs/row.log").write_text("error: no such clip\n")
    found = how_it_ended(one, status, late)
    assert found.startswith(note) and bool(found) == bool(note)


def test_half_rendered_clips_are_removed(slice_folder):
    for folder in ("a_GT", "a_Rain_01", ".a_Rain_02", "b_GT", ".c_GT"):
        (slice_folder / "rain" / folder).mkdir(parents=True)
    assert complete(slice_folder / "rain") == ["a"]
    assert sorted(folder.name for folder in (slice_folder / "rain").iterdir()) == ["a_GT", "a_Rain_01"]


def test_clips_are_packed_into_the_room_there_is(tmp_path):
    for name in (*VALIDATION, "x", "y"):
        (tmp_path / "clips" / name).mkdir(parents=True)
        for number in range(30):
            (tmp_path / "clips" / name / f"{number:02d}.jpg").write_bytes(bytes(1000 + number))
    room = 300_000
    assert "2 clips" in pack_clips(tmp_path / "clips", tmp_path / "packed", room)
    with tarfile.open(tmp_path / "all.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        tar.add(tmp_path / "packed", "clips")
    assert 0.8 * room < (tmp_path / "all.tar").stat().st_size <= room
    with pytest.raises(SliceError, match="do not fit"):
        pack_clips(tmp_path / "clips", tmp_path / "less", 150_000)
    for name in "xy":
        shutil.rmtree(tmp_path / "clips" / name)
    with pytest.raises(SliceError, match="has no clips to train on"):
        pack_clips(tmp_path / "clips", tmp_path / "none", room)


#: A slice whose trainings and tests do what no machine does in time.
STUCK = """
import sys, time
sys.path.insert(0, sys.argv[1])
import gpu_slice
from slicing import measuring, processes
from slicing.networks import Network

def stuck(*_):
    time.sleep(600)

def planned(*_):
    return [Network("row", "row", {}, {})]

def checked(*_):
    return 0.0

if __name__ == "__main__":
    processes.PRELOADED = ()
    if sys.argv[2] == "start-up":
        gpu_slice.plan, gpu_slice.MARGIN = stuck, 1.0
    else:
        gpu_slice.plan, gpu_slice.check_machine, gpu_slice.MARGIN = planned, checked, 90.0
        gpu_slice.render_rain = lambda *_: None
        measuring.measure_all = stuck
    sys.exit(gpu_slice.main(["run", "--cpu", "--seconds", "3"]))
"""


@pytest.mark.parametrize(("what", "status"), [("start-up", 3), ("measuring", 0)])
def test_a_slice_ends_whatever_hangs(tmp_path, what, status):
    """Its own clock ends what hangs in another process, and in the end itself."""
    (tmp_path / "stuck.py").write_text(STUCK)
    command = [sys.executable, str(tmp_path / "stuck.py"), str(ROOT / "tools"), what]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == status, done.stdout + done.stderr
    if what == "start-up":
        assert "error: not done 1 s after --seconds" in done.stderr
    else:
        assert "left out: not measured in time" in (tmp_path / "slice/table.md").read_text()


def test_what_is_imported_before_trainings_fork_touches_no_gpu():
    """A process that has asked CUDA for anything cannot be forked. PyAV does not travel with a slice."""
    program = """
import importlib, sys, torch
sys.modules["av"] = None  # what imports it fails
def refuse(*_, **__):
    raise SystemExit("asked for a GPU")
for name in ("is_available", "_lazy_init", "device_count", "current_device", "get_device_capability"):
    setattr(torch.cuda, name, refuse)
for name in sys.argv[1:]:
    importlib.import_module(name)
assert torch.get_num_threads() and "csd_plugin.train" in sys.modules
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", program, *PRELOADED], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_tests_run_where_no_video_can_be_read(tmp_path):
    """Those of `check`, on a machine without PyAV."""
    (tmp_path / "test_nothing.py").write_text("def test_nothing():\n    pass\n")
    program = """
import sys, pytest
sys.modules["av"] = None  # what imports it fails
sys.exit(pytest.main(["-q", "-p", "conftest", "-p", "no:cacheprovider", sys.argv[1]]))
"""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests")))}
    done = warm.python("-c", program, str(tmp_path), environment=environment)
    assert done.returncode == 0 and "1 passed" in done.stdout, done.stdout + done.stderr


def test_the_script_says_how_it_is_called(tmp_path):
    done = subprocess.run(["bash", ROOT / "tools/gpu_slice.sh", "--help"], capture_output=True, text=True)
    assert done.returncode == 0 and all(f"gpu_slice.sh {job} " in done.stdout for job in ("pack", "check", "run"))
    assert "set -euo" not in done.stdout and "#" not in done.stdout


#: Instead of Python: does nothing, and runs tests that never end.
ENDLESS = """#!/usr/bin/env bash
case "$*" in "-m pytest "*) trap "echo FAILED one; exit 1" INT; while sleep 0.1; do :; done ;; esac
"""


def test_tests_that_take_too_long_are_interrupted_and_say_what_failed(tmp_path):
    (tmp_path / "python").write_text(ENDLESS)
    (tmp_path / "python").chmod(0o755)
    command = ["bash", ROOT / "tools/gpu_slice.sh", "check", "--seconds", "4", "--out", tmp_path / "check"]
    environment = {**os.environ, "PYTHON": str(tmp_path / "python"), "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "== tests: status 124 after" in done.stdout and "FAILED one" in done.stdout
    assert all(f"== {part}: status 0 after" in done.stdout for part in ("step", "ways", "infer"))
