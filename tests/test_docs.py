"""What the README and the documentation show exists: links, commands with their flags, option files, the version."""

from __future__ import annotations

import argparse
import ast
import importlib
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import yaml
from synthetic import TRAIN, write_ntu_rain
from videos import make_video

from csd_plugin import __version__, registration
from csd_plugin.bench import BENCHMARKS
from csd_plugin.cli import JOBS
from csd_plugin.data.toolbox import build_for_toolbox
from csd_plugin.data.video import open_reader
from csd_plugin.report.inspection import inspect

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    *sorted(ROOT.glob("*.md")),
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "options" / "README.md",
    ROOT / "csd_plugin" / "weights" / "MODEL_CARD.md",
]


def anchor(heading: str) -> str:
    """As GitHub makes it of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")


def snippets(page: Path) -> list[str]:
    """Code: lines of fenced and indented blocks, and what stands between backquotes elsewhere."""
    text = page.read_text(encoding="utf-8")
    fenced = re.findall(r"^ *```\w*\n(.*?)^ *```", text, re.MULTILINE | re.DOTALL)
    rest = re.sub(r"^ *```.*?^ *```", "", text, flags=re.MULTILINE | re.DOTALL)
    lines = "\n".join(fenced).replace("\\\n", " ").splitlines()
    return [line.strip() for line in (*lines, *re.findall(r"^ {4}(.*)$", rest, re.MULTILINE))] + re.findall(
        r"`([^`]+)`", rest
    )


def commands() -> list[str]:
    """Every `csd JOB ..` with arguments that is shown, without comments; `..` leaves something out."""
    shown = [part.partition(" #")[0].strip() for page in PAGES for code in snippets(page) for part in code.split("&&")]
    shown += [
        line.partition("   ")[0] for text in help_texts() for line in re.findall(r"^  (csd .*)$", text, re.MULTILINE)
    ]
    return sorted({c for c in shown if re.match(r"csd \w+ ", c) and not re.search(r" (\.\.|\|)|JOB", c)})


def help_texts() -> list[str]:
    """The docstrings of jobs and benchmarks, with their examples."""
    modules = [*(f"csd_plugin.cli.{job}" for job in JOBS), *BENCHMARKS.values()]
    return [re.sub(r"\\\n\s+", "", importlib.import_module(module).__doc__ or "") for module in modules]


def parser_of(job: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"csd {job}")
    importlib.import_module(f"csd_plugin.cli.{job}").add_arguments(parser)
    return parser


def links(page: Path) -> list[str]:
    """What a page links to, but for other sites."""
    targets = re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8"))
    return [target for target in targets if not target.startswith("http")]


def python_code(page: Path) -> list[str]:
    """The blocks of Python that a page shows."""
    return re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def test_links_and_code_are_found():
    readme = ROOT / "README.md"
    assert {"docs/distillation.md", "docs/results.md"} <= {target.partition("#")[0] for target in links(readme)}
    assert any("#" in target for page in PAGES for target in links(page))
    assert any("import Distiller" in code for code in python_code(ROOT / "docs" / "plain_pytorch.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target in links(page):
        path, _, fragment = target.partition("#")
        linked = (page.parent / path) if path else page
        assert linked.exists(), target
        if fragment:
            headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), re.MULTILINE)
            assert fragment in map(anchor, headings), target


def test_commands_are_found():
    assert {command.split()[1] for command in commands()} == JOBS.keys()
    assert all(text.count("\nexample") == 1 for text in help_texts() if "csd bench NAME" not in text)


@pytest.mark.parametrize("command", commands())
def test_commands_have_flags_that_exist(command, capsys):
    _, job, *arguments = shlex.split(command)
    parser = parser_of(job)
    if arguments[0].startswith("--"):  # `csd prepare --lmdb`: the text speaks of flags, not of a whole command
        assert [word for word in arguments if word.startswith("--") and word not in parser.format_help()] == []
        return
    try:
        parser.parse_args(arguments)
    except SystemExit:
        pytest.fail(f"{command}: {capsys.readouterr().err}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_python_that_is_shown_compiles_and_finds_what_it_imports(page):
    for code in python_code(page):
        for node in ast.walk(ast.parse(code)):
            if isinstance(node, ast.ImportFrom) and str(node.module).startswith("csd_plugin"):
                module = importlib.import_module(str(node.module))
                assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []


def test_frames_of_opencv_are_derained_and_written_as_shown(tmp_path, monkeypatch):
    make_video(tmp_path / "rain.mp4")
    monkeypatch.chdir(tmp_path)
    [shown] = [code for code in python_code(ROOT / "docs" / "recipes.md") if "open_writer" in code]
    exec(shown, {})
    with open_reader("rain.mp4") as rainy, open_reader("clean.mp4") as clean:
        pairs = zip(rainy, clean, strict=True)
        assert clean.size == rainy.size and all(np.abs(a.astype(int) - b).mean() < 10 for a, b in pairs)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_option_files_that_are_named_exist(page):
    named = re.findall(r"(?<![\w/])((?:options|tools)/[\w/]+\.(?:yml|py|sh|md))", page.read_text(encoding="utf-8"))
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_a_training_set_of_the_toolbox_that_is_shown_is_complete(tmp_path):
    """All that REDSDataset, read by its own code, and the toolbox's loader look up."""
    registration.install()
    from basicsr.data import build_dataloader, build_dataset

    root = write_ntu_rain(tmp_path / "data/NTURain", 100, 30, 40, ".png", {f"{TRAIN}/t1": ("GT", "Rain_01")})
    build_for_toolbox(root, "png")
    text = (ROOT / "docs" / "toolboxes.md").read_text(encoding="utf-8")
    [shown] = [code for code in re.findall(r"^```yaml\n(.*?)^```", text, re.M | re.S) if "type: REDSDataset" in code]
    content = yaml.safe_load(shown.replace("data/NTURain", str(root)))["datasets"]["train"]
    content |= {"phase": "train", "scale": 1, "gt_size": 24}
    batch = next(iter(build_dataloader(build_dataset(content), content | {"num_worker_per_gpu": 0}, num_gpu=0)))
    assert batch["lq"].shape == (content["batch_size_per_gpu"], content["num_frame"], 3, 24, 24)


def test_the_option_file_of_super_resolution_is_sound(tmp_path):
    text = (ROOT / "docs" / "toolboxes.md").read_text(encoding="utf-8")
    [shown] = [code for code in re.findall(r"^```yaml\n(.*?)^```", text, re.M | re.S) if "scale: 4" in code]
    shallow = re.sub(r"num_block: \d+", "num_block: 1", shown)  # soon run through
    assert shallow.count("num_block: 1") == 2
    (tmp_path / "x.yml").write_text(shallow)
    registration.install()
    report = inspect(tmp_path / "x.yml")
    assert "9 frames, 64x64; 7 targets in the middle of each, 4 times as high and wide" in report
    assert "warning" not in report


def test_the_version_is_the_same_everywhere():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert (str(citation["version"]), newest and newest[1]) == (__version__, __version__)


def test_the_set_up_by_hand_has_the_versions_of_the_script():
    by_hand = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    wanted = re.findall(r"\b[a-z]+==[\d.]+", (ROOT / "tools" / "environment.sh").read_text(encoding="utf-8"))
    assert {version.partition("==")[0] for version in wanted} == {"torch", "torchvision"}
    assert [version for version in wanted if version not in by_hand] == []


def test_the_readme_stays_short_and_its_picture_light():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 700
    assert (ROOT / "docs" / "before_after.webp").stat().st_size < 1.5e6
    assert (ROOT / "docs" / "adapt.webp").stat().st_size < 0.3e6


def test_the_tree_in_contributing_is_the_tree_on_disk():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    _, _, rest = text.partition("```\ncsd_plugin/\n")
    tree = rest.partition("```")[0]
    drawn, above = [], ""
    for indent, name in re.findall(r"^( +)(\w+)/ +\S", tree, re.MULTILINE):
        above = above if len(indent) > 2 else name
        drawn.append(name if len(indent) == 2 else f"{above}/{name}")
    package = ROOT / "csd_plugin"
    rooms = sorted(path.parent.relative_to(package).as_posix() for path in package.rglob("__init__.py"))
    assert drawn == [room for room in rooms if room != "."]
    files = sorted(re.findall(r"\w+\.py(?=,|  )", tree))
    assert files == sorted(path.name for path in package.glob("*.py") if path.name != "__init__.py")
