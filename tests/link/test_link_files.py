"""`csd link PATH`: which tree it finds, what it writes there, and that nothing of it is left after --undo."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from csd_plugin import atomic
from csd_plugin.cli import main
from csd_plugin.link import files, trees

ROOT = Path(__file__).resolve().parents[2]
SCAN = "import importlib\n[importlib.import_module(f'{__name__}.{n}') for n in names if n.endswith('%s.py')]\n"


def write_tree(folder: Path, *, toolbox: bool = True, old_torchvision: bool = True) -> Path:
    """What `csd link` looks at of a package."""
    for room, ending in (("models", "_model"), ("archs", "_arch")):
        (folder / room).mkdir(parents=True)
        (folder / room / "__init__.py").write_text(SCAN % ending)
    (folder / "__init__.py").touch()
    if toolbox:
        (folder / "utils").mkdir()
        (folder / "utils" / "registry.py").touch()
        (folder / "utils" / "options.py").write_text("def ordered_yaml(): ...\ndef _postprocess_yml_value(): ...\n")
        (folder / "version.py").write_text("__version__ = '1.4.2'\n")
        (folder / "data").mkdir()
        where = "functional_tensor" if old_torchvision else "functional"
        (folder / "data" / "degradations.py").write_text(f"from torchvision.transforms.{where} import rgb_to_grayscale")
    return folder


def bytes_below(folder: Path) -> dict[str, bytes]:
    """Every file, but git's index, which `git status` refreshes."""
    found = (path for path in folder.rglob("*") if path.is_file() and path.name != "index")
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


@pytest.fixture
def link(capsys, monkeypatch):
    """link(*arguments) -> (exit status, stdout, stderr); whether trees can be imported is another test's."""
    monkeypatch.setattr(trees, "import_fault", lambda *_: "")

    def run(*arguments):
        status = main(["link", *map(str, arguments)])
        return status, *capsys.readouterr()

    return run


def git(folder: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "protocol.file.allow=always"]
    run = subprocess.run(["git", *identity, *arguments], cwd=folder, capture_output=True, text=True, check=True)
    return run.stdout


@pytest.fixture
def clone(tmp_path):
    """A repository with a toolbox in it, committed, in a folder whose name git would take for a pattern."""
    if shutil.which("git") is None:
        pytest.skip("git is not installed")
    root = tmp_path / "clone"
    write_tree(root / "my [fork]" / "basicsr")
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-qm", "all")
    return root


def test_a_toolbox_is_named_linked_once_and_left_without_a_trace(link, tmp_path):
    package = write_tree(tmp_path / "clone" / "basicsr")
    before = bytes_below(tmp_path)
    assert link(tmp_path / "clone", "--check")[0] == 1

    status, out, _ = link(tmp_path / "clone")
    assert status == 0
    assert out.startswith(f"BasicSR 1.4.2 in {package}\nwrote {package / 'models/csd_model.py'}\nwrote ")
    assert set(bytes_below(tmp_path)) - set(before) == {
        "clone/basicsr/models/csd_model.py",
        "clone/basicsr/archs/csd_arch.py",
    }
    linked = bytes_below(tmp_path)
    status, out, _ = link(package)
    assert status == 0 and "already there" in out and "wrote" not in out and bytes_below(tmp_path) == linked
    assert link(package, "--check")[0] == 0

    (package / "models" / "__pycache__").mkdir()
    compiled = Path(importlib.util.cache_from_source(str(package / "models" / "csd_model.py")))
    compiled.write_bytes(b"of Python")
    assert link(package, "--undo")[0] == 0
    assert bytes_below(tmp_path) == before
    assert "nothing to remove" in link(package, "--undo")[1]


@pytest.mark.parametrize(
    ("options", "written"),
    [
        ({"old_torchvision": False}, ["models/csd_model.py"]),
        ({"toolbox": False}, ["models/csd_model.py"]),
        ({}, ["archs/csd_arch.py", "models/csd_model.py"]),
    ],
)
def test_each_tree_gets_what_it_needs(link, tmp_path, options, written):
    package = write_tree(tmp_path / "restorer", **options)
    before = set(bytes_below(package))
    assert link(tmp_path)[0] == 0
    assert sorted(set(bytes_below(package)) - before) == written


def test_a_project_may_have_utils_of_its_own(link, tmp_path):
    package = write_tree(tmp_path / "restorer", toolbox=False)
    (package / "utils").mkdir()
    (package / "utils" / "options.py").write_text("import argparse\n")
    assert link(tmp_path)[1].startswith("the project restorer in ")


def test_without_a_path_it_is_what_import_basicsr_finds(link, tmp_path, monkeypatch):
    package = write_tree(tmp_path / "basicsr")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: importlib.machinery.ModuleSpec(name, None))
    status, _, error = link()
    assert status == 2 and "no BasicSR is installed" in error
    spec = importlib.util.spec_from_file_location("basicsr", package / "__init__.py")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    assert str(package) in link()[1]


def write_text(text):
    return lambda package: (package / "models" / "csd_model.py").write_text(text)


def edit(package):
    file = package / "models" / "csd_model.py"
    file.write_text(files.content_of("models/csd_model.py") + "print('mine')\n")


def lay_link(package):
    (package / "models" / "csd_model.py").symlink_to(package / "version.py")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (write_text("class Mine: ...\n"), "csd_model.py: not written by `csd link`"),
        (write_text(""), "csd_model.py: not written by `csd link`"),
        (lay_link, "csd_model.py: not written by `csd link`"),
        (lambda package: (package / "models" / "csd_model.py").mkdir(), "csd_model.py: not written by `csd link`"),
        (edit, "csd_model.py: changed after"),
        (lambda package: (package / "utils" / "registry.py").unlink(), "this BasicSR is too old (no registries"),
        (
            lambda package: (package / "utils" / "options.py").write_text("def parse(): ..."),
            "; use 1.4.2 or newer",
        ),
        (lambda package: (package / "models" / "__init__.py").unlink(), "no BasicSR, and no project"),
        (lambda package: write_tree(package.with_name("other")), "more than one package"),
    ],
)
@pytest.mark.parametrize("flags", [(), ("--check",), ("--undo",)])
def test_what_is_not_ours_stays_as_it_is(link, tmp_path, make, words, flags):
    package = write_tree(tmp_path / "basicsr")
    make(package)
    before = bytes_below(tmp_path)
    status, _, error = link(tmp_path, *flags)
    assert status == 2 and words in error and error.count("\n") == 1
    assert bytes_below(tmp_path) == before


def test_a_path_that_is_none(link, tmp_path):
    assert "does not exist; give your clone" in link(tmp_path / "nowhere")[2]
    (tmp_path / "file").touch()
    assert "not a folder; give your clone" in link(tmp_path / "file")[2]
    assert "leave one of the two out" in link(tmp_path, "--hook")[2]


def test_what_cannot_be_written_leaves_nothing_half_done(link, clone, monkeypatch):
    before = bytes_below(clone)
    write = atomic.write_text

    def refuse(path, text):
        if path.name == "csd_arch.py":
            raise PermissionError(13, "Permission denied", str(path))
        write(path, text)

    monkeypatch.setattr(atomic, "write_text", refuse)
    status, _, error = link(clone / "my [fork]")
    assert status == 2 and "csd_arch.py: cannot be changed (Permission denied); fix its permissions, or" in error
    assert bytes_below(clone) == before


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), KeyboardInterrupt()])
@pytest.mark.parametrize("listed", [True, False])
def test_a_renewal_that_fails_leaves_the_version_before(link, clone, monkeypatch, error, listed):
    content_of = files.content_of
    old = content_of("models/csd_model.py").partition("\n")[2] + "# of an earlier version\n"
    older = f"{files._MARK}{files._checksum(old)}\n{old}"
    monkeypatch.setattr(files, "content_of", lambda name: older)
    assert link(clone / "my [fork]")[0] == 0
    (clone / "my [fork]/basicsr/archs/csd_arch.py").unlink()
    if not listed:
        (clone / ".git/info/exclude").write_text("*.log\n")
    before = bytes_below(clone)
    write = atomic.write_text

    def refuse(path, text):
        if path.name == "csd_arch.py":
            raise error
        write(path, text)

    monkeypatch.setattr(files, "content_of", content_of)
    monkeypatch.setattr(atomic, "write_text", refuse)
    assert link(clone / "my [fork]")[0] in (2, 130)
    assert bytes_below(clone) == before
    monkeypatch.setattr(atomic, "write_text", write)
    assert link(clone / "my [fork]")[0] == 0
    assert bytes_below(clone)["my [fork]/basicsr/models/csd_model.py"].decode() == content_of("models/csd_model.py")


@pytest.mark.parametrize("exclude", [None, b"", b"*.log\n", b"no newline", b"\xff\n"])
def test_git_lists_nothing_of_it(link, clone, exclude):
    file = clone / ".git" / "info" / "exclude"
    file.unlink(missing_ok=True)
    if exclude is not None:
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(exclude)
    before = bytes_below(clone)
    assert f"hidden from git by {file}" in link(clone / "my [fork]")[1]
    assert git(clone, "status", "--porcelain") == ""
    assert "hidden" not in link(clone / "my [fork]")[1]
    link(clone / "my [fork]", "--undo")
    after = bytes_below(clone)
    if exclude == b"":  # a list of nothing is removed
        del before[".git/info/exclude"]
    assert after == before


def test_worktrees_share_the_list_and_submodules_have_their_own(link, clone, tmp_path):
    git(clone, "worktree", "add", "-q", "../tree")
    trees_of_it = [clone / "my [fork]", tmp_path / "tree" / "my [fork]"]
    for tree in trees_of_it:
        link(tree)
    link(trees_of_it[0], "--undo")
    assert [git(tree, "status", "--porcelain") for tree in trees_of_it] == ["", ""]
    link(trees_of_it[1], "--undo")
    assert "csd" not in (clone / ".git" / "info" / "exclude").read_text()

    (tmp_path / "project").mkdir()
    git(tmp_path / "project", "init", "-q")
    git(tmp_path / "project", "submodule", "add", "-q", str(clone), "toolbox")
    link(tmp_path / "project" / "toolbox" / "my [fork]")
    assert git(tmp_path / "project" / "toolbox", "status", "--porcelain") == ""
    assert "toolbox" in git(tmp_path / "project", "status", "--porcelain")  # only that it was added
    assert "??" not in git(tmp_path / "project", "status", "--porcelain")


@pytest.mark.parametrize(
    "leads",
    [
        b"gitdir: ../clone/.git",  # of somebody else
        b"gitdir: ../clone/.git/worktrees/tree",  # of another worktree
        b"gitdir: own",  # made up, which says that it belongs to the other clone
        b"gitdir: nowhere",
        b"gitdir: a\0b",
        b"\xff\xfe no text",
        None,  # a link
    ],
)
def test_a_git_file_that_leads_elsewhere_is_not_followed(link, clone, tmp_path, caplog, leads):
    git(clone, "worktree", "add", "-q", "../tree")
    before = bytes_below(clone)
    package = write_tree(tmp_path / "theirs" / "basicsr")
    root = package.parent
    (root / "own").mkdir()
    (root / "own" / "HEAD").write_text("ref: refs/heads/main\n")
    (root / "own" / "gitdir").write_text(str(root / ".git"))
    (root / "own" / "commondir").write_text(str(clone / ".git"))
    if leads is None:
        (root / ".git").symlink_to(clone / ".git")
    else:
        (root / ".git").write_bytes(leads)
    for words in ((), ("--undo",)):
        caplog.clear()
        status, said, error = link(package, *words)
        assert (status, error) == (0, "") and "hidden" not in said
        [record] = caplog.records
        assert f"{root / '.git'}: does not lead to a git folder of this working tree" in record.getMessage()
        assert bytes_below(clone) == before
    assert not (package / "models" / "csd_model.py").exists() and not (root / "own" / "info").exists()


@pytest.fixture(params=["models/csd_model.py", "archs/csd_arch.py"])
def imported(request, tmp_path):
    """imported() -> (exit status, stdout, stderr) of a program that imports a file of `csd link` and goes on."""

    def run():
        (tmp_path / "file.py").write_text(files.content_of(request.param))
        code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}]; import file; print('goes on')"
        process = subprocess.run([sys.executable, "-ISc", code], capture_output=True, text=True, check=False)
        return process.returncode, process.stdout, process.stderr

    return run


@pytest.mark.parametrize("left", [None, "csd_plugin", "csd_plugin/link"])
def test_the_files_do_nothing_once_the_plugin_is_gone(imported, tmp_path, left):
    if left:  # an uninstallation may leave folders
        (tmp_path / left).mkdir(parents=True)
    assert imported() == (0, "goes on\n", "")


@pytest.mark.parametrize(
    ("linked", "words"),
    [
        (None, "No module named 'csd_plugin.link'"),  # a version that knew no `link`, or half of one that does
        ("import a_package_that_is_not_there\n", "No module named 'a_package_that_is_not_there'"),
        ("cut o", "SyntaxError"),
    ],
)
def test_a_broken_plugin_is_one_line_and_the_program_goes_on(imported, tmp_path, linked, words):
    (tmp_path / "csd_plugin").mkdir()
    (tmp_path / "csd_plugin" / "__init__.py").touch()
    if linked is not None:
        (tmp_path / "csd_plugin" / "link").mkdir()
        (tmp_path / "csd_plugin" / "link" / "linked.py").write_text(linked)
    status, said, error = imported()
    assert (status, said) == (0, "goes on\n")
    assert error.startswith("csd-plugin is not active: ") and words in error and error.count("\n") == 1


def test_the_tool_is_the_command(tmp_path):
    write_tree(tmp_path / "basicsr")
    run = subprocess.run(
        [sys.executable, ROOT / "tools" / "link_basicsr.py", tmp_path, "--check"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": ""},
    )
    assert run.returncode == 1 and "not linked" in run.stderr


def test_a_clone_that_was_not_set_up_is_told_what_to_do(tmp_path):
    (tmp_path / "basicsr").mkdir()
    (tmp_path / "basicsr" / "__init__.py").write_text("from .version import __version__\n")
    assert trees.import_fault("basicsr", tmp_path).endswith("run `python setup.py --version` there")
