"""The tables of options/README.md are those of the classes; defaults stand in one place."""

from __future__ import annotations

import inspect
from pathlib import Path

import option_tables

from csd_plugin.archs import NETWORKS
from csd_plugin.data.datasets import DATASETS
from csd_plugin.distill import OBJECTIVES
from csd_plugin.options.sections import TrainSection, dataset_section

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "options" / "README.md").read_text(encoding="utf-8")


def rows(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]


def test_the_readme_has_what_the_classes_say():
    assert option_tables.with_tables(README) == README, "run python tools/option_tables.py"
    assert all(f"<!-- table: {name}, by tools/option_tables.py -->" in README for name in option_tables.TABLES)


def test_a_default_that_somebody_changed_by_hand_comes_back():
    [line] = [line for line in README.splitlines() if line.startswith("| `use_hflip` ")]
    assert line.endswith("| true |")
    assert option_tables.with_tables(README.replace(line, line.replace("true", "false"))) == README


def test_every_key_of_a_data_set_is_listed_with_what_it_means_there():
    listed = rows(option_tables.dataset_table())
    assert ["`num_target`", "training"] in [row[:2] for row in listed]
    assert ["`cache_mb`", "test", "128"] in [[key, kind, default] for key, kind, _, default in listed]
    ours = {"name", "type", "phase", "scale"}  # the toolbox's
    for cls in DATASETS.values():
        assert {f"`{key}`" for key in dataset_section(cls).model_fields.keys() - ours} <= {row[0] for row in listed}
    assert all(meaning for _, _, meaning, _ in listed)


def test_every_keyword_of_a_network_is_listed():
    """In the order of the constructor, described by its docstring, also over several lines."""
    listed = [row[1].strip("`") for row in rows(option_tables.keyword_table(NETWORKS))]
    assert listed == [key for cls in NETWORKS.values() for key in inspect.signature(cls).parameters]
    assert option_tables.arguments(NETWORKS["HalfNet"])["causal"].endswith(
        "so that a camera's picture need not wait for later frames"
    )


def test_every_keyword_of_an_objective_is_listed():
    listed = [row[0].strip("`") for row in rows(option_tables.TABLES["csd"]())]
    assert listed == list(inspect.signature(OBJECTIVES["CSD"]).parameters)
    listed = [row[1].strip("`") for row in rows(option_tables.TABLES["objectives"]())]
    others = [cls for name, cls in OBJECTIVES.items() if name != "CSD"]
    assert listed == [key for cls in others for key in inspect.signature(cls).parameters]


def test_every_key_of_train_is_listed():
    assert [row[0].strip("`") for row in rows(option_tables.section_table(TrainSection))] == list(
        TrainSection.model_fields
    )
