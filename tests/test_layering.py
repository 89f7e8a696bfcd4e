"""Which package may import which, read off the source; and what must work where the toolbox is not installed."""

from __future__ import annotations

import ast
import graphlib
import os
import subprocess
import sys
from collections.abc import Collection
from functools import cache
from pathlib import Path

import pytest
import warm

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "csd_plugin"

# What each part may use of ours, besides itself and `ALWAYS`. Names are files or folders of csd_plugin; `archs` stands
# for all of it, `data.windows` for one module. A part that is not here is an error: give it its place.
MAY_IMPORT: dict[str, set[str]] = {
    "__init__": {"activation"},
    "__main__": {"cli"},
    "digests": set(),
    "install_basicsr": set(),
    "errors": set(),
    "atomic": set(),
    "extras": set(),
    "devices": set(),
    "lifeline": set(),
    "limited_yaml": set(),
    "locks": set(),
    "peers": {"distill.processes"},
    "plain": set(),
    "records": set(),
    "stopping": set(),
    "spreadsheets": set(),
    "tables": set(),
    "unread": set(),
    "versions": set(),
    "toolbox_imports": set(),
    "extensions": {"toolbox_imports"},
    "types": set(),
    "archs": {"types", "extensions", "data.windows"},
    "data": {"types", "devices"},
    "losses": {"types", "devices"},
    "metrics": {"types", "extensions", "data.layout", "data.images", "data.links"},
    "weights": {"types", "archs", "data.video", "inference", "metrics"},
    "distill": {"types", "devices", "losses", "archs", "data.batches", "data.windows"},
    "inference": {"types", "devices", "archs", "data.windows", "data.images", "data.video"},
    "export": {"types", "archs", "inference"},
    "report": {
        "types",
        "devices",
        "extensions",
        "archs",
        "inference",
        "metrics",
        "data",
        "distill",
        "options",
        "models",
        "weights",
    },
    "options": {"devices", "archs", "data.datasets", "losses", "distill"},
    # validation runs networks in their fastest form
    "models": {
        "types",
        "archs",
        "losses",
        "data",
        "distill",
        "metrics",
        "options",
        "compat",
        "devices",
        "inference.folding",
        "peers",
        "resume_states",
    },
    "compat": {"options", "data.stores", "peers", "resume_states", "toolbox_imports"},
    "resume_states": {"archs", "peers"},
    "registration": {"compat", "extensions", "options", "archs", "data", "losses", "metrics", "models"},
    "activation": {"compat", "peers", "registration", "resume_states", "models", "options", "weights"},
    "link": {"activation", "compat"},
    "launch": {
        "activation",
        "compat",
        "inference.memory",
        "peers",
        "registration",
    },
    "train": {"compat", "registration", "launch"},
    "test": {"compat", "registration", "launch"},
    # other frameworks' adapters
    "integrate": {
        "archs",
        "compat",
        "data",
        "distill",
        "extensions",
        "losses",
        "metrics",
        "options",
        "peers",
        "weights",
    },
    # the commands: what a job needs, and `cli.flags`, whose types of flags the benches take too
    "lab": {
        "archs",
        "bench.measure",
        "data",
        "devices",
        "inference",
        "metrics",
        "models",
        "options",
        "registration",
        "report",
        "weights",
    },
    "bench": {
        "cli.flags",
        "archs",
        "compat",
        "data",
        "devices",
        "distill",
        "extensions",
        "inference",
        "models",
        "registration",
        "report",
        "weights",
    },
    "adapt": {
        "types",
        "archs",
        "data",
        "devices",
        "distill.average",
        "distill.run_order",
        "distill.step_graph",
        "distill.taps",
        "inference",
        "losses",
        "metrics",
        "models",
        "options",
        "registration",
        "report",
        "weights",
    },
    "cli": {
        "adapt",
        "archs",
        "bench",
        "compat",
        "data",
        "export",
        "inference",
        "lab",
        "link",
        "metrics",
        "options",
        "registration",
        "report",
        "weights",
    },
}
ALWAYS = {
    "digests",
    "errors",
    "extras",
    "atomic",
    "lifeline",
    "limited_yaml",
    "locks",
    "plain",
    "options.problems",
    "records",
    "spreadsheets",
    "stopping",
    "tables",
    "unread",
    "versions",
    "__version__",
}
# `bench` measures the toolbox's own readers beside ours.
TOOLBOX = {"compat", "resume_states", "registration", "activation", "models", "train", "test", "bench"}


@cache
def imports() -> list[tuple[str, str, str]]:
    """(part, module that it imports, where) for every import in the package, also those inside functions."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        relative = path.relative_to(PACKAGE)
        part = relative.parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level == 0, f"{relative}:{node.lineno}: a relative import; name the package"
                # `from csd_plugin import compat` imports the module compat
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                continue
            found += [(part, name, f"{relative}:{node.lineno}") for name in names]
    assert found
    return found


def test_imports_go_one_way():
    wrong = []
    for part, name, where in imports():
        top, _, target = name.partition(".")
        if top != "csd_plugin":
            continue
        assert part in MAY_IMPORT, f"csd_plugin/{part} has no place in MAY_IMPORT yet"
        allowed = MAY_IMPORT[part] | ALWAYS | {part}
        if not any(f"{target}.".startswith(f"{module}.") for module in allowed):
            wrong.append(f"{where}: {part} imports {name}")
    assert not wrong, "\n".join(wrong)


def modules() -> dict[str, Path]:
    """Name -> file; a folder's name is its `__init__`."""
    found = {path.relative_to(ROOT).with_suffix("").parts: path for path in PACKAGE.rglob("*.py")}
    return {".".join(parts[:-1] if parts[-1] == "__init__" else parts): path for parts, path in found.items()}


def imported_by(path: Path, known: Collection[str]) -> set[str]:
    """The modules that a file imports when it runs, also inside functions; what is for type checkers alone is not."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found: set[str] = set()
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            pending += node.orelse
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in known else str(node.module) for name in names}
        pending += ast.iter_child_nodes(node)
    return found & set(known)


def test_no_modules_import_each_other_in_a_circle():
    known = modules()
    graph = {name: imported_by(path, known) - {name} for name, path in known.items()}
    assert "csd_plugin.errors" in graph["csd_plugin.options.checks"]  # the graph is not empty
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        pytest.fail(" -> ".join(reversed(error.args[1])))


def test_only_the_adapters_import_the_toolbox():
    wrong = [
        f"{where}: {name}" for part, name, where in imports() if name.split(".")[0] == "basicsr" and part not in TOOLBOX
    ]
    assert not wrong, "\n".join(wrong)


def test_only_its_bridge_figures_and_the_count_of_operations_import_mmengine():
    users = {part for part, name, _ in imports() if name.split(".")[0] == "mmengine"}
    assert users == {"integrate", "report", "archs"}


def test_a_distiller_needs_no_toolbox_and_no_other_framework():
    code = "import csd_plugin.distill.distiller, csd_plugin.distill.dry_run; print(*sys.modules)"
    loaded = {name.split(".")[0] for name in python(WITHOUT + code).split()}
    assert not {"basicsr", "mmengine", "torchvision", "cv2", "yaml"} & loaded


def test_the_package_itself_imports_nothing_but_when_it_is_activated():
    assert [name for part, name, _ in imports() if part == "__init__"] == [
        "csd_plugin.extras.or_exit",
        "csd_plugin.activation.activate",
    ]


def python(code: str, *arguments: str) -> str:
    run = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    return run.stdout


WITHOUT = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("basicsr", "torchvision"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocked())
for name in [name for name in sys.modules if name.split(".")[0] in ("basicsr", "torchvision")]:
    del sys.modules[name]
"""


def test_importing_the_package_imports_nothing_heavy():
    loaded = python("import sys, csd_plugin; print(*sys.modules)").split()
    assert not {"torch", "numpy", "basicsr", "cv2"} & {name.split(".")[0] for name in loaded}


def test_a_video_is_derained_without_the_toolbox(tmp_path):
    import torch
    from synthetic import moving_scene, rain_on, write_image

    from csd_plugin.archs.sldnet import SLDNet

    for i, frame in enumerate(rain_on(moving_scene(4, 24, 32, 0), 1), start=1):
        write_image(tmp_path / "rain" / f"{i:05d}.png", frame)
    torch.save({"params": SLDNet(preset="student2", num_feat=4).state_dict()}, tmp_path / "net.pth")
    code = WITHOUT + "import csd_plugin.metrics.scores; from csd_plugin.cli import main; sys.exit(main(sys.argv[1:]))"
    arguments = [str(tmp_path / "rain"), str(tmp_path / "clean"), "--model", str(tmp_path / "net.pth")]
    python(code, "derain", *arguments)
    assert len(list((tmp_path / "clean").glob("*.png"))) == 4


@pytest.mark.parametrize("job", ["rain", "score", "figure"])
def test_other_jobs_start_without_the_toolbox(job):
    assert "usage: csd" in python(WITHOUT + "from csd_plugin.cli import main; main(sys.argv[1:])", job, "--help")


def run_without(missing, command):
    program, *arguments = command.split()
    start = "from csd_plugin.cli import main; sys.exit(main(sys.argv[1:]))"
    if program != "csd":
        start = f"import runpy; runpy.run_module('csd_plugin.{program}', run_name='__main__')"
    code = WITHOUT.replace('("basicsr", "torchvision")', repr(missing)) + start
    run = warm.python("-c", code, *arguments, cwd=ROOT, environment=os.environ | {"PYTHONPATH": str(ROOT)})
    assert run.returncode == 2, run.stderr[-2000:]
    return run


@pytest.mark.parametrize(
    ("missing", "command"),
    [
        ("basicsr", "csd inspect options/train/student2_cpu.yml"),
        ("basicsr", "csd bench step"),
        ("basicsr", "train -opt options/train/student2_cpu.yml"),
        ("torchvision", "test -opt options/test/student2_cpu.yml"),
        ("yaml", "csd table options/matrix/table2.yml --dry-run"),
        ("yaml", "csd reproduce options/matrix/release_cpu.yml --dry-run"),
        ("mmengine", "integrate.run_mmengine options/mmengine/tiny_csd_cpu.py"),
        ("pydantic", "train -opt options/train/student2_cpu.yml"),
    ],
)
def test_a_missing_package_is_one_line_that_says_how_to_get_it(missing, command):
    run = run_without((missing,), command)
    cure = "python -m csd_plugin.install_basicsr" if missing in ("basicsr", "torchvision") else "pip install"
    assert f"needs the package {missing}: {cure}" in run.stderr
    assert len(run.stderr.strip().splitlines()) == 1


def test_all_missing_packages_are_named_at_once():
    run = run_without(("lmdb", "basicsr", "torchvision", "yaml", "scipy"), "train -opt options/train/student2_cpu.yml")
    (line,) = run.stderr.strip().splitlines()
    assert "needs the packages lmdb, torchvision, basicsr, scipy, yaml: pip install . in the folder" in line
    assert line.count("pip install") == 2 and line.count("'.[train]'") == line.count("install_basicsr") == 1
