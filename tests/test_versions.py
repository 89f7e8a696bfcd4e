"""What is too old for this code is one line, at every door; and pip knows the same numbers."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from csd_plugin import extras, versions
from csd_plugin.cli import main
from csd_plugin.errors import CSDError

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def installed(monkeypatch):
    """installed(torch="2.3.1"): as if these were the versions that are installed; None for none."""

    def pretend(**found: str | None) -> None:
        def version(name):
            if found.get(name, "99") is None:
                raise metadata.PackageNotFoundError(name)
            return found.get(name, "99")

        monkeypatch.setattr(versions.metadata, "version", version)

    return pretend


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({"torch": "2.3.1+cpu"}, "needs torch 2.4 or newer, and 2.3.1+cpu is installed: pip install 'torch>=2.4'"),
        ({"torch": "1.13.1"}, "needs torch 2.4 or newer"),
        ({"numpy": "1.9.3"}, "needs numpy 1.26 or newer, and 1.9.3 is installed"),
        ({"av": "9"}, "needs av 18.1 or newer"),
        ({"torchvision": "0.18.1a0"}, "needs torchvision 0.19 or newer"),
        ({"basicsr": "1.3.4.8"}, "needs basicsr 1.4.2 or newer"),
    ],
)
def test_what_is_too_old_is_named_with_what_to_do(installed, found, words):
    installed(**found)
    with pytest.raises(CSDError) as caught:
        versions.check_versions("csd job", toolbox=True)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_package_that_pip_has_half_installed_is_not_judged(tmp_path, monkeypatch):
    (tmp_path / "numpy-0.1.dist-info").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    versions.check_versions("csd job", toolbox=True)


def test_every_package_that_pip_brings_has_its_command():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    needed = {re.match(r"[\w-]+", line)[0].lower() for line in project["dependencies"]}
    packages = metadata.packages_distributions()
    assert needed == {packages[module][0].lower() for module in extras._ALWAYS}


@pytest.mark.parametrize(
    "found",
    [
        {**versions.OLDEST, **versions.TOOLBOX},
        {"torch": "2.10.0a0+git1234"},
        {"torch": "2.4.0rc1"},
        {"numpy": "10.0"},
        dict.fromkeys((*versions.OLDEST, *versions.TOOLBOX)),  # a checkout, or missing
    ],
)
def test_what_is_new_enough_passes(installed, found):
    installed(**found)
    versions.check_versions("csd job", toolbox=True)


def test_deraining_does_not_ask_for_the_toolbox(installed):
    installed(basicsr="1.0", torchvision="0.1")
    versions.check_versions("csd derain")


def test_commands_end_with_it(installed, capsys):
    installed(torch="2.0.1")
    assert main(["models"]) == 2
    assert capsys.readouterr().err.startswith("csd models: error: csd models needs torch 2.4 or newer, and 2.0.1 is")


OLD = "import importlib.metadata as m; v = m.version; m.version = lambda name: '0.5' if name == 'numpy' else v(name)"


@pytest.mark.parametrize(
    ("code", "status", "words"),
    [
        ("import csd_plugin; csd_plugin.activate()", 2, "error: csd_plugin.activate() needs numpy"),
        ("import csd_plugin.train", 2, "error: csd_plugin.train needs numpy"),
        ("import csd_plugin.test", 2, "error: csd_plugin.test needs numpy"),
        (
            "from csd_plugin.link import linked; linked.activate()",
            0,
            "csd-plugin is not active: it needs numpy",
        ),
    ],
)
def test_scripts_end_with_it_and_linked_toolboxes_do_not(tmp_path, code, status, words):
    (tmp_path / "sitecustomize.py").write_text(OLD)
    paths = os.pathsep.join((str(tmp_path), str(ROOT)))
    run = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert run.returncode == status
    assert run.stderr.startswith(words) and len(run.stderr.splitlines()) == 1


def test_an_older_python_is_named(monkeypatch):
    monkeypatch.setattr(versions.sys, "version", "3.10.13 (main, ..) [GCC]")
    with pytest.raises(CSDError, match=re.escape("needs Python 3.11 or newer, and this is 3.10.13")):
        versions.check_versions("csd job")


def test_the_metadata_have_the_same_numbers():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["requires-python"] == f">={versions.PYTHON}"
    lines = [*project["dependencies"], *project["optional-dependencies"]["basicsr"]]
    bounds = dict(re.match(r"([\w-]+)>=([\d.]+)", line).groups() for line in lines if ">=" in line)
    wanted = {**versions.OLDEST, **versions.TOOLBOX}
    assert {name: bounds.get(name) for name in wanted} == wanted
    assert f"Programming Language :: Python :: {versions.PYTHON}" in project["classifiers"]
