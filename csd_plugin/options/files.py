"""Reads option files as data only, and checks them while reading."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from csd_plugin.devices import gpus_of
from csd_plugin.errors import CSDError
from csd_plugin.limited_yaml import LimitedLoader
from csd_plugin.options.checks import Further, check_file, check_options
from csd_plugin.options.problems import reading_error
from csd_plugin.options.sections import MODELS


def safe_ordered_yaml(further: Further | None = None) -> tuple[type, type]:
    """A replacement for the toolbox's YAML loader, which runs any Python in a file; this one reads data only, and
    checks it.

    The toolbox uses it only for option files, whose content it does not check.

    Args:
        further: see `check_file`.

    The loader raises CSDError for keys that are not strings.
    """

    class Loader(LimitedLoader):
        def get_single_data(self) -> Any:
            self.twice: list[tuple[int, str]] = []
            content = super().get_single_data()
            check_file(content, self.name, self.twice, further)
            content = _Options(content)
            if content.get("model_type") in MODELS:
                # the toolbox would use all of them, with threads of one process
                content["num_gpu"] = gpus_of(content["num_gpu"])
            return content

    class Dumper(yaml.SafeDumper):
        pass

    def mapping(loader: Loader, node: yaml.MappingNode) -> OrderedDict:
        content: OrderedDict = OrderedDict()
        for written, _ in node.value:
            if written.tag == "tag:yaml.org,2002:merge":
                line = written.start_mark.line + 1
                raise CSDError(f"{loader.name}: line {line}: merge keys (<<) are not supported; write the keys out")
            if written.tag != "tag:yaml.org,2002:str":
                line = written.start_mark.line + 1
                raise CSDError(
                    f"{loader.name}: line {line}: the key {_shown(written)} is not a string; put it in quotes"
                )
        for (key, value), (written, _) in zip(loader.construct_pairs(node, deep=True), node.value, strict=True):
            if key in content:
                loader.twice.append((written.start_mark.line + 1, f"{key} appears twice in its section; keep one"))
            content[key] = value
        return content

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    Dumper.add_multi_representer(OrderedDict, lambda dumper, data: dumper.represent_dict(data.items()))
    return Loader, Dumper


class _Options(OrderedDict):
    """A file's content, without its empty sections, also those that --force_yml empties.

    The toolbox's --debug writes into `val` if it exists, and its --launcher slurm unpacks `dist_params`.
    """

    def __setitem__(self, key: str, value: Any) -> None:
        if key in ("val", "dist_params") and value is None:
            self.pop(key, None)
            return
        if isinstance(self.get(key), Mapping) and not isinstance(value, Mapping):
            raise CSDError(f"--force_yml: {key} is a section: give its keys one by one, as in {key}:name=value")
        if key in ("name", "model_type") and not isinstance(value, str):
            raise CSDError(f"--force_yml: {key} is {value!r}, not a string; give a name that contains a letter")
        super().__setitem__(key, value)


def _shown(node: yaml.Node) -> str:
    return node.value if isinstance(node, yaml.ScalarNode) else "[..]"


def read_options(path: Path) -> dict[str, Any]:
    """An option file as a launcher reads it, without what a run adds. Raises CSDError."""
    opt = load_options(path)
    check_options(opt, str(path))
    return opt


def load_options(path: Path, further: Further | None = None) -> dict[str, Any]:
    """Like `read_options`, but checked only by `check_file`, which explains `further`. Raises CSDError."""
    try:
        with path.open(encoding="utf-8") as file:
            opt = yaml.load(file, Loader=safe_ordered_yaml(further)[0])
    except FileNotFoundError as error:
        raise CSDError(reading_error(error)) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CSDError(f"{path}: cannot be read as an option file: {' '.join(str(error).split())}") from error
    for key, content in opt["datasets"].items():
        content["phase"] = key.split("_")[0]
    opt["is_train"] = "train" in opt
    return opt
