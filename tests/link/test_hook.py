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


def test_other_programs_import_nothing_for_it():
    loaded = "print(*sorted(sys.modules))"  # `os` is there in every Python that reads .pth files
    more = set(python(loaded).stdout.split()) - set(python(loaded, before="import os\n").stdout.split())
    assert more == set()


def test_environments_in_environments_have_one_hook():
    count = "print(sum(hasattr(finder, 'waits_for') for finder in sys.meta_path))"
    assert python(hook.LINE + count).stdout == "1\n"


def test_finders_that_ask_all_others_do_not_go_round(toolbox):
    """Hooks of other packages look for modules as ours does."""
    asking = """
class Asking:
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        others = [finder for finder in sys.meta_path if finder is not cls]
        return next(filter(None, (finder.find_spec(name, path, target) for finder in others)), None)
sys.meta_path.%s
"""
    for place in ("insert(0, Asking)", "append(Asking)"):
        run = python(SPEAKING + asking % place + "import basicsr", path=(ROOT, toolbox))
        assert run.stdout.split() == ["before", "toolbox", "after"], run.stderr


ONE_LINE = "csd-plugin is not active: "


@pytest.mark.parametrize("left", [(), ("csd_plugin/__pycache__/a.pyc",), ("csd_plugin/link/__pycache__/a.pyc",)])
def test_where_the_plugin_is_gone_nothing_is_said(toolbox, left):
    """Or what pip leaves: what Python has compiled, files of others."""
    for name in left:
        (toolbox / name).parent.mkdir(parents=True)
        (toolbox / name).touch()
    run = python("import basicsr\nprint('goes on')", path=(toolbox,))
    assert (run.returncode, run.stdout, run.stderr) == (0, "toolbox\ngoes on\n", "")


@pytest.mark.parametrize(
    "files",
    [
        {"csd_plugin/__init__.py": ""},  # an older version, or what is written so far
        {"csd_plugin/__init__.py": "raise PermissionError(13, 'Permission denied')"},
        {"csd_plugin/__init__.py": "cut o"},
        {"csd_plugin/__init__.py": "\0"},
        {"csd_plugin/__init__.py": "", "csd_plugin/link/__init__.py": "", "csd_plugin/link/linked.py": ""},
        {"csd_plugin/__init__.py": "", "csd_plugin/link/linked.py": "import a_package_that_is_not_there"},
        {"~sd_plugin/__init__.py": ""},  # so pip names what it is removing
        {"~sd_plugin-0.2.0.dist-info/METADATA": ""},
        {"csd_plugin-0.2.0.dist-info/METADATA": ""},
    ],
)
def test_a_plugin_in_part_is_one_line_for_those_who_use_the_toolbox(toolbox, files):
    for name, text in files.items():
        (toolbox / name).parent.mkdir(parents=True, exist_ok=True)
        (toolbox / name).write_text(text)
    run = python("import basicsr\nprint('goes on')", path=(toolbox,))
    assert (run.returncode, run.stdout) == (0, "toolbox\ngoes on\n")
    assert len(run.stderr.splitlines()) == 1
    assert run.stderr.startswith(ONE_LINE) and run.stderr.endswith("install csd-plugin again\n")
    assert python("print('started')", path=(toolbox,)).stderr == ""


@pytest.mark.parametrize(
    ("torch", "words"),
    [
        (None, "needs the package torch"),
        ("raise ImportError('cut off', name='torch')", "torch, which cannot be imported (cut off)"),
        ("import a_package_that_is_not_there", "No module named 'a_package_that_is_not_there'; if pip is running"),
        ("raise OSError('libcudart.so: cannot open shared object file')", "libcudart.so: cannot open"),
        ("cut o", "SyntaxError: invalid syntax"),
        ("raise AttributeError('a half')", "AttributeError: a half ("),
        ("raise SystemError('a half')", "torch/__init__.py, line 1); if pip is running"),
    ],
)
def test_what_cannot_be_activated_is_one_line_and_the_program_goes_on(toolbox, torch, words):
    """There are no site-packages here."""
    if torch is not None:
        (toolbox / "torch").mkdir()
        (toolbox / "torch" / "__init__.py").write_text(torch)
    run = python("import basicsr\nprint('goes on')", path=(ROOT, toolbox))
    assert (run.returncode, run.stdout) == (0, "toolbox\ngoes on\n")
    assert len(run.stderr.splitlines()) == 1 and run.stderr.startswith(ONE_LINE) and words in run.stderr


def test_a_plugin_that_pip_brings_back_in_time_is_active(toolbox):
    """It is looked for when the toolbox is imported, not when Python starts."""
    code = f"sys.path.insert(0, {str(ROOT)!r})\n" + SPEAKING + "import basicsr"
    assert python(code, path=(toolbox,)).stdout.split() == ["before", "toolbox", "after"]


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
    assert "already there" in link()[1] and link("--check")[0] == 0
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
    waits = "import sys; print(any(hasattr(finder, 'waits_for') for finder in sys.meta_path))"
    assert run("-c", waits).stdout == "True\n"
    assert run("-m", "csd_plugin", "link", "--hook", "--undo").returncode == 0
    assert run("-c", waits).stdout == "False\n"
