"""Every module of the package can be the first one that a process imports, whatever else it needs."""

from __future__ import annotations

import json
import os
import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import warm

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "csd_plugin").rglob("*.py")
    if path.stem != "__main__"
)

# Children of a process that has all that is heavy and not ours.
FIRST = """
import json, os, sys, traceback
assert not {"csd_plugin", "basicsr"} & set(sys.modules)
failed = {}
for name in json.loads(sys.argv[1]):
    read, write = os.pipe()
    if os.fork() == 0:
        try:
            __import__(name)
        except BaseException:
            os.write(write, traceback.format_exc()[-3000:].encode())
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as pipe:
        text = pipe.read()
    os.wait()
    if text:
        failed[name] = text
print(json.dumps(failed))
"""


def python(code: str, *arguments: str, paths: tuple[Path, ...] = (ROOT,)) -> str:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))}
    run = warm.python("-c", code, *arguments, environment=environment)
    assert run.returncode == 0, run.stderr[-3000:]
    return run.stdout


@pytest.fixture(scope="module")
def failed() -> dict[str, str]:
    """Module -> traceback, of those that cannot be the first."""
    if not hasattr(os, "fork"):
        pytest.skip("processes cannot be forked here")
    return json.loads(python(FIRST, json.dumps(MODULES)).splitlines()[-1])


@pytest.mark.parametrize("module", MODULES)
def test_a_module_can_be_the_first(failed, module):
    assert module not in failed, failed.get(module)


@pytest.mark.parametrize(
    "first",
    [
        "import basicsr",
        "from csd_plugin.models.distill_model import DistillModel",
        "from csd_plugin import registration; registration.install()",
    ],
)
def test_a_toolbox_that_imports_us_while_it_is_imported(tmp_path, first):
    """One file in BasicSR's folder of models registers ours; another subclasses one of them."""
    [package] = find_spec("basicsr").submodule_search_locations
    toolbox = Path(shutil.copytree(package, tmp_path / "basicsr", ignore=shutil.ignore_patterns("__pycache__")))
    (toolbox / "models" / "csd_model.py").write_text("from csd_plugin.registration import install\ninstall()\n")
    (toolbox / "models" / "aaa_model.py").write_text(
        "from csd_plugin.models.distill_model import DistillModel\n"
        "from basicsr.utils.registry import MODEL_REGISTRY\n\n\n"
        "@MODEL_REGISTRY.register()\nclass MyModel(DistillModel):\n    pass\n"
    )
    # an `import basicsr` of one's own needs torchvision as the toolbox expects it
    before = "from csd_plugin.compat import prepare_imports; prepare_imports(); " if first == "import basicsr" else ""
    code = f"""
{before}{first}
from basicsr.utils.registry import MODEL_REGISTRY
import basicsr
assert basicsr.__file__.startswith({str(tmp_path)!r})
from csd_plugin.models.distill_model import DistillModel
assert MODEL_REGISTRY.get("DistillModel") is DistillModel
assert issubclass(MODEL_REGISTRY.get("MyModel"), DistillModel)
"""
    python(code, paths=(tmp_path, ROOT))
