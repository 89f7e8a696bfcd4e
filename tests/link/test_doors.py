"""The doors on trees made from the released BasicSR: trained, validated, resumed, tested, and given faulty files.

`tools/doors.py` does all pairs, on a clone too; here is each door and each tree.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version

import doors
import pytest

FAULTS = ("a mistyped key", "a mistyped model", "an epoch that ends early", "YAML that runs code")
# What the compiled part of torchvision would have done; the files of `csd link` cannot, as they come too late.
WHOLE = """
import sys

class Whole:
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name == "torchvision" and not hasattr(cls, "library"):
            import torch
            cls.library = torch.library.Library("torchvision", "DEF")
            for operator in ("nms", "qnms"):
                cls.library.define(operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

sys.meta_path.insert(0, Whole)
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    if not hasattr(os, "fork"):
        pytest.skip("tools/doors.py forks")
    return doors.make_python(tmp_path_factory.mktemp("python"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return doors.write_clips(tmp_path_factory.mktemp("clips"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The environment of commands that need a torchvision with its compiled part."""
    folder = tmp_path_factory.mktemp("whole")
    command = [sys.executable, "-c", "import torchvision"]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        (folder / "sitecustomize.py").write_text(WHOLE)
    return {**os.environ, "PYTHONPATH": str(folder)}


# Each tree by one door; `csd link` of a project in one package is in `test_check_says_what_a_tree_still_needs`.
PAIRS = [
    ("released", ["csd link --hook"]),
    ("example_project", ["csd link"]),
    ("checked_out", ["activate()"]),
    # two doors at once: `activate()` begins, the toolbox is imported by it, and its files call it again
    ("released", ["csd link", "activate()"]),
]


@pytest.mark.parametrize(("kind", "opened"), PAIRS)
def test_a_tree_trains_validates_resumes_tests_and_refuses(python, data, whole, tmp_path, kind, opened):
    if kind == "checked_out":  # of a project like Real-ESRGAN
        project = doors.packaged_project(tmp_path / "project", python).root
        tree = doors.checked_out(tmp_path / "tree", python, project)
    else:
        tree = getattr(doors, kind)(tmp_path / "tree", python)
    if "csd link" in opened:
        tree.environment = whole
    before = doors.sources(tree)
    assert before
    for door in opened:
        doors.open_door(tree, door)
    (tmp_path / "faults").mkdir()
    faults = doors.faulty_files(tmp_path / "faults", data)
    came = doors.run_pair(tree, data, {fault: faults[fault] for fault in FAULTS})
    assert {what: problem for what, problem in came.items() if problem} == {}
    assert all("removed" in said for said in doors.close_door(tree, opened[0]))
    after = doors.sources(tree)
    edited = set(tree.scripts.values()) if "activate()" in opened else set()
    assert after.keys() == before.keys() and {path for path in after if after[path] != before[path]} == edited


@pytest.mark.skipif(
    tuple(map(int, version("torchvision").split(".")[:2])) < (0, 17), reason="this torchvision has functional_tensor"
)
def test_check_says_what_a_tree_still_needs(python, whole, tmp_path):
    tree = doors.packaged_project(tmp_path / "tree", python)
    tree.environment = whole
    said = tree.run("-m", "csd_plugin", "link", tree.root)  # its BasicSR 1.4.2 cannot be imported yet
    assert said.returncode == 1 and "functional_tensor" in said.stderr and "(`csd link`)" in said.stderr
    assert tree.run("-m", "csd_plugin", "link").returncode == 0  # what `import basicsr` finds
    assert tree.run("-m", "csd_plugin", "link", tree.root, "--check").returncode == 0
