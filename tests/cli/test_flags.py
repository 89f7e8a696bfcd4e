"""Numbers on the command line: what is outside its bounds is one line and exit status 2, never a traceback."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from synthetic import write_image

from csd_plugin.cli import JOBS, main
from csd_plugin.cli.flags import LARGEST, frame_size, number, rate, whole
from csd_plugin.lifeline import ENDING, endings_interrupt

NONSENSE = ("", "abc", "nan", "inf", "-inf", "1e999999999", "9" * 5000, "--", "1/0", "0x10")


@pytest.mark.parametrize("flag", [whole(0), whole(1, 8), number(0), number(0.5, 3), rate, frame_size])
@pytest.mark.parametrize("text", NONSENSE)
def test_what_is_no_finite_number_is_refused(flag, text):
    with pytest.raises(argparse.ArgumentTypeError) as error:
        flag(text)
    assert "\n" not in str(error.value)


def test_bounds_belong_to_what_is_taken():
    assert [whole(1, 8)("1"), whole(1, 8)("8"), whole(0)(str(LARGEST))] == [1, 8, LARGEST]
    assert [number(0.5, 3)("0.5"), number(0.5, 3)("3"), number(0)("1e30")] == [0.5, 3, 1e30]
    for flag, text in ((whole(1, 8), "0"), (whole(1, 8), "9"), (whole(0), str(LARGEST + 1)), (whole(1), "2.5")):
        with pytest.raises(argparse.ArgumentTypeError, match=r"is not a whole number from [01] to"):
            flag(text)
    for text in ("0.49", "3.01", "-1"):
        with pytest.raises(argparse.ArgumentTypeError, match=r"is not a number from 0\.5 to 3"):
            number(0.5, 3)(text)


def test_rates_are_exact_and_fit_a_container():
    assert [rate("25"), rate("23.976"), rate("30000/1001")] == [25, Fraction(2997, 125), Fraction(30000, 1001)]
    assert rate("29.97002997002997") == Fraction(30000, 1001)  # more digits than a container's two C ints hold
    assert [rate("1/1000"), rate(".5"), rate("1000")] == [Fraction(1, 1000), Fraction(1, 2), 1000]
    for text in ("0", "0/1", "-25", "1001", "0.0009", "1/1001"):
        with pytest.raises(argparse.ArgumentTypeError, match="is not a frame rate from 1/1000 to 1000"):
            rate(text)


def test_sizes_have_two_sides_that_a_memory_may_hold():
    assert [frame_size("640x480"), frame_size("1x16384")] == [(640, 480), (1, 16384)]
    for text in (
        "640",
        "0x480",
        "640x0480",
        "640x480x3",
        "640 x 480",
        "-640x480",
        "16385x1",
        "99999x1",
        "640x4\N{ARABIC-INDIC DIGIT EIGHT}",
    ):
        with pytest.raises(argparse.ArgumentTypeError, match="expected WIDTHxHEIGHT"):
            frame_size(text)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes")])
def test_memory_that_runs_out_is_one_line(monkeypatch, capsys, error):
    def run(args):
        raise error

    monkeypatch.setattr("csd_plugin.cli.models.run", run)
    assert main(["models"]) == 2
    line = capsys.readouterr().err
    assert line.startswith("csd models: error: not enough memory (") and line.count("\n") == 1


def test_a_name_that_a_library_does_not_take_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr("csd_plugin.cli.models.run", lambda args: "clips/\udcff.mp4".encode())
    assert main(["models"]) == 2
    line = "csd models: error: clips/\\udcff.mp4: the name is not valid UTF-8"
    assert capsys.readouterr().err.startswith(line)


def test_libraries_that_do_not_fit_into_memory_are_one_line(monkeypatch, capsys):
    def run(args):
        raise ImportError("libtorch_cpu.so: failed to map segment from shared object")

    monkeypatch.setattr("csd_plugin.cli.models.run", run)
    assert main(["models"]) == 2
    line = capsys.readouterr().err
    assert "not enough memory to load the libraries" in line and "ulimit -v" in line and line.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["-rain.mp4", "clean.mp4"], "write ./-rain.mp4"),
        (["rain.mp4", "-clean.mp4"], "write ./-clean.mp4"),
        (["rain.mp4", "clean.mp4", "--encoding=x.y"], ""),
        (["rain.mp4", "--fsat"], ""),
    ],
)
def test_a_name_that_looks_like_a_flag_is_said_to_be_one(words, hint, capsys):
    with pytest.raises(SystemExit):
        main(["derain", *words])
    last = capsys.readouterr().err.splitlines()[-1]
    assert hint in last and ("was read as a flag" in last) == bool(hint)


def test_ctrl_c_while_a_job_is_imported_is_one_line(monkeypatch, capsys):
    def interrupted(name):
        raise KeyboardInterrupt

    monkeypatch.setattr("csd_plugin.cli.importlib.import_module", interrupted)
    assert main(["models"]) == 130
    assert capsys.readouterr().err == "csd: interrupted\n"


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_a_job_as_ctrl_c_does(monkeypatch, capsys, number, status):
    """The SIGHUP that comes after it, from the shell, the system or a service manager, does not disturb that."""
    put_away = []

    def run(args):
        try:
            with endings_interrupt():  # as jobs that others call have it
                signal.raise_signal(number)
        finally:
            signal.raise_signal(signal.SIGHUP)
            put_away.append(True)

    monkeypatch.setattr("csd_plugin.cli.models.run", run)
    before = [signal.getsignal(one) for one in ENDING]
    assert main(["models"]) == status
    assert put_away and [signal.getsignal(one) for one in ENDING] == before
    assert capsys.readouterr().err == f"csd models: stopped by {number.name}\n"


def test_a_hangup_that_is_ignored_ends_nothing(monkeypatch):
    """`nohup csd ..`."""
    monkeypatch.setattr("csd_plugin.cli.models.run", lambda args: signal.raise_signal(signal.SIGHUP))
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert main(["models"]) == 0
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_other_errors_are_not_taken_for_it(monkeypatch):
    def run(args):
        raise RuntimeError("a bug")

    monkeypatch.setattr("csd_plugin.cli.models.run", run)
    with pytest.raises(RuntimeError, match="a bug"):
        main(["models"])


MUCH = """
import sys
from csd_plugin.cli import main, models
models.run = lambda args: print("x" * 100_000)
sys.exit(main(["models"]))
"""


@pytest.mark.parametrize(
    "words",
    [["-m", "csd_plugin", "models", "--path", "tiny"], ["-c", MUCH]]
    + [["-m", "csd_plugin", *words, "--help"] for words in ([], ["derain"])],
    ids=["little", "more than a buffer holds", "help", "help of a job"],
)
def test_a_reader_that_closes_its_end_ends_a_job_silently(words):
    """As `csd models | head -1`."""
    reading, writing = os.pipe()
    os.close(reading)
    # argparse drops the error of an unbuffered help text
    environment = os.environ | ({"PYTHONUNBUFFERED": ""} if "--help" in words else {})
    command = [sys.executable, *words]
    done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, text=True, env=environment)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


WITH_A_FULL_DISK = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
NO_ROOM = "error: standard output: no space left on device; make room there, and run again"


def on_a_full_disk(*command, **environment):
    """A command of Python's with a full disk behind standard output: (status, lines of error)."""
    with Path("/dev/full").open("w") as full:
        run = [sys.executable, *command]
        done = subprocess.run(run, stdout=full, stderr=subprocess.PIPE, text=True, env=os.environ | environment)
    assert "Traceback" not in done.stderr
    return done.returncode, [line for line in done.stderr.splitlines() if "error: " in line]


@WITH_A_FULL_DISK
@pytest.mark.parametrize("words", [["models", "--path", "tiny"], ["derain", "--help"]], ids=" ".join)
@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
def test_a_full_disk_behind_standard_output_is_a_line(words, unbuffered):
    """As `csd models > FILE`."""
    status, [line] = on_a_full_disk("-m", "csd_plugin", *words, PYTHONUNBUFFERED=unbuffered)
    assert status == 2 and line.removeprefix("csd models: ") == NO_ROOM


@WITH_A_FULL_DISK
def test_frames_for_a_full_disk_are_a_line(tmp_path):
    for name in "ab":
        write_image(tmp_path / "rain" / f"{name}.png", np.full((24, 32, 3), 90, np.uint8))
    words = ["derain", str(tmp_path / "rain"), "-", "--model", "tiny"]
    assert on_a_full_disk("-m", "csd_plugin", *words) == (2, [f"csd derain: {NO_ROOM}"])


@WITH_A_FULL_DISK
@pytest.mark.parametrize(
    ("ends", "line"),
    [
        ("print('x' * 100_000)", f"csd models: {NO_ROOM}"),
        ("print(1); raise CSDError('its own mistake')", "csd models: error: its own mistake"),
        ("print(1); return 1", NO_ROOM),
    ],
)
def test_a_job_on_a_full_disk_gives_one_line(ends, line):
    code = f"""
import sys
from csd_plugin.cli import main, models
from csd_plugin.errors import CSDError
def run(args):
    {ends}
models.run = run
sys.exit(main(["models"]))
"""
    assert on_a_full_disk("-c", code, PYTHONUNBUFFERED="") == (2, [line])


def parsers(parser):
    """It, and those of its kinds."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for kind in action.choices.values():
                yield from parsers(kind)


@pytest.mark.parametrize("job", JOBS)
def test_an_empty_path_is_refused_wherever_a_path_is_taken(job):
    """As of a shell's variable that is not set: pathlib takes it for the current folder."""
    parser = argparse.ArgumentParser()
    importlib.import_module(f"csd_plugin.cli.{job}").add_arguments(parser)
    for action in (action for own in parsers(parser) for action in own._actions):
        try:
            taken = action.type("")  # type: ignore[misc]
        except (TypeError, ValueError, argparse.ArgumentTypeError):  # no type, a number, or refused
            continue
        assert not isinstance(taken, Path), action


@pytest.mark.parametrize(
    "words", [["derain", "IN", ""], ["rain", "IN", ""], ["prepare", "IN", ""], ["score", "IN", "--out", ""]]
)
def test_an_empty_output_is_not_the_current_folder(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2 and not list(tmp_path.iterdir())
    assert "the path is empty: give a name, or . for the current folder" in capsys.readouterr().err


def test_without_a_job_all_are_listed_and_the_nearest_to_a_mistyped_one_is_named(capsys):
    assert main([]) == 2
    shown = capsys.readouterr()
    assert not shown.out and all(f"  {job} " in shown.err for job in JOBS)
    with pytest.raises(SystemExit) as ended:
        main(["dearin", "a", "b"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.endswith("'dearin' is unknown; did you mean derain? see csd --help\n")


@pytest.mark.parametrize(
    ("words", "prog", "wrong"),
    [
        (["derain", "in.mp4"], "csd derain", "the following arguments are required: OUT"),
        (["derain", "in.mp4", "out.mp4", "--no-such"], "csd derain", "unrecognized arguments: --no-such"),
        (["bench"], "csd bench", "the following arguments are required: NAME"),
        (["bench", "infer", "--rounds", "0"], "csd bench infer", "'0' is not a whole number from 1 to 10000"),
    ],
)
def test_a_mistake_in_a_command_is_one_line_that_names_its_help(words, prog, wrong, capsys):
    with pytest.raises(SystemExit) as ended:
        main(words)
    line = capsys.readouterr().err
    assert ended.value.code == 2 and line.count("\n") == 1
    assert line.startswith(f"{prog}: error: ") and line.endswith(f"{wrong}; see {prog} --help\n")
