"""`csd link --hook`: what its line does at the start of Python, and to `import basicsr`."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from csd_plugin.cli import main
from csd_plugin.link import hook, trees

ROOT = Path(__file__).resolve().parents[2]


def python(code: str, *, before: str = hook.LINE, path: tuple[Path, ...] = (ROOT,), **environment: str):
    """What a Python without site-packages prints that has run the hook's line first."""
    start = f"import sys; sys.path[:0] = {[str(folder) for folder in path]!r}\n"
    return subprocess.run(
        [sys.executable, "-ISc", start + before + code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def toolbox(tmp_path):
    """A folder with a basicsr that says when it is imported."""
    (tmp_path / "basicsr").mkdir()
    (tmp_path / "basicsr" / "__init__.py").write_text("print('toolbox')\n")
    return tmp_path


SPEAKING = """
from csd_plugin.link import linked
linked.prepare_imports = lambda: print("before")
linked.activate = lambda: print("after")
"""


def test_the_toolbox_is_repaired_before_and_extended_after_its_import(toolbox):
    code = SPEAKING + "import basicsr, basicsr\nprint(type(basicsr.__loader__).__name__, basicsr.__spec__.loader.name)"
    run = python(code, path=(ROOT, toolbox))
    assert run.stdout.split() == ["before", "toolbox", "after", "SourceFileLoader", "basicsr"], run.stderr


def test_to_look_for_the_toolbox_is_not_to_import_it(toolbox):
    code = SPEAKING + "import importlib.util\nprint(importlib.util.find_spec('basicsr').origin)"
    assert python(code, path=(ROOT, toolbox)).stdout.strip() == str(toolbox / "basicsr" / "__init__.py")
    code = SPEAKING + "import importlib.util\nprint(importlib.util.find_spec('basicsr'))"
    assert python(code).stdout.strip() == "None"


def test_an_error_of_the_toolbox_is_its_own(toolbox):
    (toolbox / "basicsr" / "__init__.py").write_text("raise ValueError('theirs')\n")
    run = python(SPEAKING + "import basicsr", path=(ROOT, toolbox))
    assert run.stdout.split() == ["before"] and run.stderr.strip().endswith("ValueError: theirs")


def test_what_uninstalling_the_toolbox_leaves_is_no_toolbox(toolbox):
    (toolbox / "basicsr" / "__init__.py").unlink()
    assert python(SPEAKING + "import basicsr", path=(ROOT, toolbox)).stdout == ""


def test_the_variable_switches_it_off(toolbox):
    assert python(SPEAKING + "import basicsr", path=(ROOT, toolbox), CSD_NO_HOOK="1").stdout == "toolbox\n"


def test_other_programs_pay_for_three_small_files():
    loaded = "print(*sorted(sys.modules))"  # `os` is there in every Python that reads .pth files
    more = set(python(loaded).stdout.split()) - set(python(loaded, before="import os\n").stdout.split())
    assert more == {"csd_plugin", "csd_plugin.link", "csd_plugin.link.startup"}


@pytest.mark.parametrize("left", [None, "", "raise PermissionError(13, 'Permission denied')"])
def test_without_the_plugin_nothing_happens_and_nothing_is_said(tmp_path, left):
    if left is not None:
        (tmp_path / "csd_plugin").mkdir()
        (tmp_path / "csd_plugin" / "__init__.py").write_text(left)
    run = python("print('started')", path=(tmp_path,))
    assert (run.returncode, run.stdout, run.stderr) == (0, "started\n", "")


def test_what_cannot_be_activated_is_one_line_and_the_program_goes_on(toolbox):
    """Here there are no site-packages: torch is missing."""
    run = python("import basicsr\nprint('goes on')", path=(ROOT, toolbox))
    assert run.returncode == 0 and run.stdout.split() == ["toolbox", "goes", "on"]
    assert "csd-plugin is not active: " in run.stderr and "Traceback" not in run.stderr


@pytest.fixture
def link(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(trees, "import_fault", lambda *_: "")
    monkeypatch.setattr(hook, "hook_file", lambda: tmp_path / hook.NAME)

    def run(*flags):
        status = main(["link", "--hook", *flags])
        return status, *capsys.readouterr()

    return run


def test_set_looked_at_and_removed(link, tmp_path):
    file = tmp_path / hook.NAME
    assert link("--check")[0] == 1
    status, out, _ = link()
    assert (status, out.splitlines()[0]) == (0, f"wrote {file}")
    assert "is there already" in link()[1] and link("--check")[0] == 0
    file.write_text("import csd_plugin_of_old\n")
    assert link("--check")[0] == 1 and "wrote" in link()[1] and link("--check")[0] == 0
    assert link("--undo")[:2] == (0, f"removed {file}\n") and not file.exists()
    assert "nothing to remove" in link("--undo")[1]


def test_site_packages_that_cannot_be_written(link, monkeypatch):
    def refuse(path, text):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr("csd_plugin.atomic.write_text", refuse)
    status, _, error = link()
    assert status == 2 and "cannot be changed (Permission denied); use a virtual environment" in error


def test_python_itself_reads_the_line_at_its_start(tmp_path):
    venv.create(tmp_path / "env", symlinks=os.name != "nt")
    interpreter = tmp_path / "env" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")

    def run(*command):
        return subprocess.run([interpreter, *command], cwd=ROOT, capture_output=True, text=True, check=False)

    # no numpy, no torch: it is set all the same, and says that it cannot work
    said = run("-m", "csd_plugin", "link", "--hook")
    assert said.returncode == 1 and "linked, but does not work yet" in said.stderr and "wrote" in said.stdout
    (file,) = (tmp_path / "env").rglob(hook.NAME)
    file.with_name("a_paths.pth").write_text(f"{ROOT}\n")
    assert run("-c", "import sys; print('csd_plugin.link.startup' in sys.modules)").stdout == "True\n"
    assert run("-m", "csd_plugin", "link", "--hook", "--undo").returncode == 0
    assert run("-c", "import sys; print('csd_plugin.link.startup' in sys.modules)").stdout == "False\n"
