"""Write the tables of keys in options/README.md, from the classes that read these keys; `--check` only compares.

A table is between `<!-- table: NAME, by tools/option_tables.py -->` and `<!-- end of table -->`. Names,
meanings and defaults are those of the option dataclasses, of `csd_plugin.options.sections`, and of the constructors of
networks, losses and objectives, whose docstrings describe them under Args.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from csd_plugin.archs import NETWORKS, presets_of
from csd_plugin.atomic import write_text
from csd_plugin.data.datasets import DATASETS
from csd_plugin.data.datasets.options import TestOptions, TrainingOptions
from csd_plugin.distill import OBJECTIVES
from csd_plugin.losses.ssim import PyramidSSIMLoss
from csd_plugin.options.sections import TrainSection, ValSection

README = Path(__file__).resolve().parents[1] / "options" / "README.md"
_TABLE = re.compile(r"(<!-- table: (\w+), by tools/option_tables\.py -->\n\n).*?(\n\n<!-- end of table -->)", re.DOTALL)
_ARGUMENT = re.compile(r"    (\w[\w, ]*): (.*)")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="exit with 1 if the file is out of date")
    check = parser.parse_args().check
    before = README.read_text(encoding="utf-8")
    after = with_tables(before)
    if check and after != before:
        print(f"{README} is out of date: run python tools/option_tables.py", file=sys.stderr)
        return 1
    write_text(README, after)
    return 0


def with_tables(text: str) -> str:
    """A Markdown text with all of its tables made anew."""
    return _TABLE.sub(lambda found: found[1] + TABLES[found[2]]() + found[3], text)


def dataset_table() -> str:
    """One row for each key and meaning, with the kinds of data sets that have it."""
    classes = [cls.options_class for cls in DATASETS.values()]  # type: ignore[attr-defined]
    names = {cls.options_class: name for name, cls in DATASETS.items()}  # type: ignore[attr-defined]
    rows: dict[tuple[str, str, str], list[type]] = {}
    for cls in sorted(dict.fromkeys(classes), key=lambda cls: (not issubclass(cls, TrainingOptions), len(cls.__mro__))):
        for field in fields(cls):
            default = "required" if field.metadata["required"] else _shown(field.default)
            rows.setdefault((field.name, field.metadata["description"], default), []).append(cls)
    order = list(dict.fromkeys(key for key, _, _ in rows))
    return _table(
        ["key", "for", "meaning", "default"],
        [
            [f"`{key}`", _kind(having, classes, names), meaning, default]
            for (key, meaning, default), having in sorted(rows.items(), key=lambda row: order.index(row[0][0]))
        ],
    )


def _kind(having: Sequence[type], classes: Sequence[type], names: dict[type, str]) -> str:
    """Whose an option is: of all data sets, of those for training or tests, or of single ones by name."""
    for kind, base in (("all", object), ("training", TrainingOptions), ("test", TestOptions)):
        if set(having) == {cls for cls in classes if issubclass(cls, base)}:
            return kind
    return ", ".join(f"`{names[cls]}`" for cls in having)


def section_table(section: type[BaseModel]) -> str:
    """The keys of a section that have a description."""
    described = {name: field for name, field in section.model_fields.items() if field.description}
    return _table(
        ["key", "meaning", "default"],
        [
            [f"`{name}`", str(field.description), "required" if field.is_required() else _shown(field.default)]
            for name, field in described.items()
        ],
    )


def keyword_table(classes: Mapping[str, type]) -> str:
    """The keywords of several classes' constructors."""
    return _table(
        ["`type`", "key", "meaning", "default"], [row for name, cls in classes.items() for row in _keywords(name, cls)]
    )


def keywords_of(cls: type) -> str:
    """The keywords of one class's constructor."""
    return _table(["key", "meaning", "default"], [row[1:] for row in _keywords("", cls)])


def _keywords(name: str, cls: type) -> Iterable[list[str]]:
    """A row for each keyword of a constructor; the name is in the first."""
    meanings, presets = arguments(cls), presets_of(cls)  # type: ignore[arg-type]
    for number, (key, parameter) in enumerate(inspect.signature(cls).parameters.items()):
        default = _shown(MISSING if parameter.default is parameter.empty else parameter.default)
        meaning = meanings[key]
        if key == "preset":
            meaning = f"{', '.join(f'`{preset}`' for preset in presets)}; the keys below replace single numbers of it"
        elif presets and parameter.default is None:
            default = "the preset's"
        yield ["" if number else f"`{name}`", f"`{key}`", meaning, default]


def arguments(cls: type) -> dict[str, str]:
    """Keyword -> what the class's docstring says of it under Args. Raises ValueError for a class without Args."""
    found: dict[str, str] = {}
    names: list[str] = []
    lines = (inspect.getdoc(cls) or "").splitlines()
    if not inspect.signature(cls).parameters:
        return found
    for line in lines[lines.index("Args:") + 1 :]:
        if not line.startswith("    "):
            break
        if start := _ARGUMENT.fullmatch(line):
            names = [name.strip() for name in start[1].split(",")]
            found |= dict.fromkeys(names, start[2])
        else:
            found |= {name: f"{found[name]} {line.strip()}" for name in names}
    return {name: text.removesuffix(".") for name, text in found.items()}


def _shown(default: Any) -> str:
    """A default as an option file would give it."""
    if default is MISSING:
        return "required"
    if default is None:
        return "-"
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, tuple | list):
        return f"[{', '.join(map(_shown, default))}]"
    return f"{default:g}" if isinstance(default, float) else str(default)


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    cells = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in cells)


TABLES: dict[str, Callable[[], str]] = {
    "datasets": dataset_table,
    "networks": lambda: keyword_table(NETWORKS),
    "train": lambda: section_table(TrainSection),
    "loss": lambda: keywords_of(PyramidSSIMLoss),
    "csd": lambda: keywords_of(OBJECTIVES["CSD"]),
    "objectives": lambda: keyword_table({name: cls for name, cls in OBJECTIVES.items() if name != "CSD"}),
    "val": lambda: section_table(ValSection),
}

if __name__ == "__main__":
    sys.exit(main())
