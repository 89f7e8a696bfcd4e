"""`python -m csd_plugin.install_basicsr`: what it asks of pip, and the start of the build."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from csd_plugin import install_basicsr

# As the setup.py of BasicSR 1.4.2 reads its version, which fails on Python 3.13 without help.
_READS_A_VERSION = """
def version():
    text = "__version__ = '1.2.3'"
    exec(compile(text, "version.py", "exec"))
    return locals()["__version__"]


outside = 1
exec("outside += 1")
given = {}
exec("inside = 3", given)
exec("inside += 1", globals=given) if {newer} else exec("inside += 1", given)
print(version(), outside, given["inside"])
"""


@pytest.fixture
def runs(monkeypatch):
    """The calls of pip, each with its environment; the list to fill with their exit statuses."""
    calls, statuses = [], []

    def run(command, env, stdin):
        start = {Path(folder, "sitecustomize.py") for folder in env.get("PYTHONPATH", "").split(os.pathsep)}
        calls.append((command, [file.read_text(encoding="utf-8") for file in start if file.is_file()]))
        return SimpleNamespace(returncode=statuses.pop(0) if statuses else 0)

    monkeypatch.setattr(install_basicsr.subprocess, "run", run)
    return SimpleNamespace(calls=calls, statuses=statuses)


def lacking(monkeypatch, *names):
    found = install_basicsr.importlib.util.find_spec
    there = dict.fromkeys(("pip", "setuptools", "wheel"), True) | dict.fromkeys(names)
    monkeypatch.setattr(
        install_basicsr.importlib.util, "find_spec", lambda name: there[name] if name in there else found(name)
    )


def test_a_variable_set_by_exec_is_seen_as_on_older_pythons(tmp_path):
    (tmp_path / "sitecustomize.py").write_text(install_basicsr._START_OF_BUILD)
    (tmp_path / "reads.py").write_text(_READS_A_VERSION.replace("{newer}", str(sys.version_info >= (3, 13))))
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    run = subprocess.run(
        [sys.executable, tmp_path / "reads.py"], env=environment, capture_output=True, text=True, check=False
    )
    assert (run.stdout, run.stderr) == ("1.2.3 2 4\n", "")


def test_torch_stays_and_setup_py_gets_its_help(runs, monkeypatch):
    lacking(monkeypatch)
    monkeypatch.setattr(install_basicsr.metadata, "version", {"torch": "2.13.0+cu130"}.__getitem__)
    assert install_basicsr.main(["--quiet"]) == 0
    pip = [sys.executable, "-m", "pip", "install", "--quiet"]
    wanted = ["--no-build-isolation", "torch==2.13.0", "torchvision", "basicsr==1.4.2"]
    assert runs.calls == [(pip + wanted, [install_basicsr._START_OF_BUILD])]


def test_what_builds_it_comes_first(runs, monkeypatch):
    lacking(monkeypatch, "setuptools")
    runs.statuses[:] = [0, 7]
    assert install_basicsr.main([]) == 7
    assert len(runs.calls) == 2 and runs.calls[0][0][4:] == ["setuptools"]
    runs.calls.clear()
    runs.statuses[:] = [3]
    assert install_basicsr.main([]) == 3
    assert len(runs.calls) == 1


def test_a_missing_pip_or_torch_is_one_line(runs, monkeypatch, capsys):
    lacking(monkeypatch, "pip")
    assert install_basicsr.main([]) == 2
    assert "lacks: run python -m ensurepip first" in capsys.readouterr().err
    lacking(monkeypatch)

    def missing(name):
        raise install_basicsr.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(install_basicsr.metadata, "version", missing)
    assert install_basicsr.main([]) == 2
    assert "needs torch, which is not installed" in capsys.readouterr().err
    assert runs.calls == []


def test_help_installs_nothing(runs, capsys):
    assert install_basicsr.main(["--help"]) == 0
    assert "python -m csd_plugin.install_basicsr [pip's options]" in capsys.readouterr().out
    assert runs.calls == []
