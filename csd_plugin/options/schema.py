"""Option files as a JSON Schema, with which editors complete keys and mark mistakes while typing.

It is generated from the same sections as the checks before a run. These find more: near misses in the toolbox's
sections, and conditions between sections.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

from csd_plugin.archs import NETWORKS
from csd_plugin.data.datasets import DATASETS
from csd_plugin.distill import OBJECTIVES
from csd_plugin.losses import LOSSES
from csd_plugin.options import sections

Schema = dict[str, Any]

_TEACHER = r"t([2-9]|[1-9]\d+)?"
_DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema() -> Schema:
    """The schema of files of our models; files of other models pass if they have what the toolbox itself needs."""
    networks = _typed({name: sections.section_of(cls) for name, cls in NETWORKS.items()})
    datasets = _typed({name: sections.dataset_section(cls) for name, cls in DATASETS.items()})
    losses = _typed({name: sections.section_of(cls) for name, cls in LOSSES.items()})
    objectives = _typed({name: sections.objective_section(name) for name in OBJECTIVES}, closed=True)
    objectives["properties"] |= {
        "taps": {"anyOf": [_of(sections.TapsSection), {"type": "null"}]},
        "weights": {
            "additionalProperties": {
                "anyOf": [{"type": "number", "minimum": 0}, _of(sections.WeightSection), _of(sections.BalanceSection)]
            }
        },
    }
    train = _of(sections.TrainSection)
    train["properties"] |= {
        "optim_g": _of(sections.OptimizerSection),
        "scheduler": _of(sections.SchedulerSection),
        "pixel_opt": losses,
        "perceptual_opt": {"anyOf": [losses, {"type": "null"}]},
        "layers": {"anyOf": [{"type": "object", "additionalProperties": _of(sections.LayerSection)}, {"type": "null"}]},
        "extra_opt": {"anyOf": [{"type": "object", "additionalProperties": losses}, {"type": "null"}]},
        "distill_opt": objectives,
    }
    ours = _of(sections.RunSection)
    ours["properties"] |= {
        "model_type": {"enum": list(sections.MODELS)},
        "datasets": {
            "type": "object",
            "patternProperties": {"^(train|val|test)(_.*)?$": datasets},
            "additionalProperties": False,
        },
        "path": _of(sections.PathSection),
        "train": train,
        "val": {"anyOf": [_of(sections.ValSection), {"type": "null"}]},
        "logger": _of(sections.LoggerSection),
    }
    for key in ("network_t", "interface_g", "interface_t"):  # the same for all teachers
        del ours["properties"][key]
    ours["properties"]["network_g"] = networks
    ours["patternProperties"] = {
        rf"^network_{_TEACHER}$": {"anyOf": [networks, {"type": "null"}]},
        rf"^interface_(g|{_TEACHER})$": {"anyOf": [_of(sections.InterfaceSection), {"type": "null"}]},
    }
    of_ours = {"properties": {"model_type": {"enum": list(sections.MODELS)}}, "required": ["model_type"]}
    return {
        "$schema": _DIALECT,
        "title": "csd-plugin option file",
        "type": "object",
        "if": of_ours,
        "then": ours,
        "else": _of(sections.FileSection),
    }


def _of(section: type[BaseModel]) -> Schema:
    """A section's own schema, without the titles that pydantic derives from names."""
    made = section.model_json_schema()
    assert "$defs" not in made  # sections hold no other sections
    return _without_titles(made)


def _without_titles(content: Any) -> Any:
    if isinstance(content, list):
        return [_without_titles(inner) for inner in content]
    if not isinstance(content, dict):
        return content
    return {key: _without_titles(inner) for key, inner in content.items() if key != "title" or isinstance(inner, dict)}


def _typed(sections: Mapping[str, type[BaseModel]], *, closed: bool = False) -> Schema:
    """A section that its `type` describes; types of other packages pass, unless there can be none (`closed`)."""
    names = {"enum": list(sections)}
    known = names if closed else {"anyOf": [names, {"type": "string"}]}
    return {
        "type": "object",
        "properties": {"type": known},
        "required": ["type"],
        "allOf": [
            {"if": {"properties": {"type": {"const": name}}, "required": ["type"]}, "then": _of(section)}
            for name, section in sections.items()
        ],
    }
