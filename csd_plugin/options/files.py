"""Option files, read as data only, and checked as they are read."""

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
from csd_plugin.options.sections import MODELS


def safe_ordered_yaml(further: Further | None = None) -> tuple[type, type]:
    """The toolbox's YAML loader runs any Python that a file asks for; this one knows data only, and checks it.

    The toolbox reads only option files with it, and uses what it finds there without a check.

    Args:
        further: see `check_file`.

    The loader raises CSDError for keys that are not text.
    """

    class Loader(LimitedLoader):
        def get_single_data(self) -> Any:
            self.twice: list[tuple[int, str]] = []
            content = super().get_single_data()
            check_file(content, self.name, self.twice, further)
            content = _Options(content)
            if content.get("model_type") in MODELS:
                # the toolbox would take all, by threads of one process
                content["num_gpu"] = gpus_of(content["num_gpu"])
            return content

    class Dumper(yaml.SafeDumper):
        pass

    def mapping(loader: Loader, node: yaml.MappingNode) -> OrderedDict:
        content: OrderedDict = OrderedDict()
        for written, _ in node.value:
            if written.tag == "tag:yaml.org,2002:merge":
                line = written.start_mark.line + 1
                raise CSDError(f"{loader.name}: line {line}: merge keys (<<) are not read; write the keys out")
            if written.tag != "tag:yaml.org,2002:str":
                line = written.start_mark.line + 1
                raise CSDError(f"{loader.name}: line {line}: the key {_shown(written)} is not a text; put it in quotes")
        for (key, value), (written, _) in zip(loader.construct_pairs(node, deep=True), node.value, strict=True):
            if key in content:
                loader.twice.append((written.start_mark.line + 1, f"{key} appears twice in its section; keep one"))
            content[key] = value
        return content

    Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, mapping)
    Dumper.add_multi_representer(OrderedDict, lambda dumper, data: dumper.represent_dict(data.items()))
    return Loader, Dumper


class _Options(OrderedDict):
    """A file's content, in which a section without anything is none at all, also when --force_yml empties it.

    The toolbox's --debug writes into `val` where it is there, and its --launcher slurm unpacks `dist_params`.
    """

    def __setitem__(self, key: str, value: Any) -> None:
        if key in ("val", "dist_params") and value is None:
            self.pop(key, None)
            return
        if isinstance(self.get(key), Mapping) and not isinstance(value, Mapping):
            raise CSDError(f"--force_yml: {key} is a section: give its keys one by one, as in {key}:name=value")
        if key in ("name", "model_type") and not isinstance(value, str):
            raise CSDError(f"--force_yml: {key} is {value!r}, not a text; give a name that contains a letter")
        super().__setitem__(key, value)


def _shown(node: yaml.Node) -> str:
    return node.value if isinstance(node, yaml.ScalarNode) else "[..]"


def read_options(path: Path) -> dict[str, Any]:
    """An option file as a launcher reads it, but for what a run adds. Raises CSDError."""
    opt = load_options(path)
    check_options(opt, str(path))
    return opt


def load_options(path: Path, further: Further | None = None) -> dict[str, Any]:
    """As `read_options`, checked only as far as `check_file` does, which explains `further`. Raises CSDError."""
    try:
        with path.open(encoding="utf-8") as file:
            opt = yaml.load(file, Loader=safe_ordered_yaml(further)[0])
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise CSDError(f"{path}: cannot be read as an option file: {' '.join(str(error).split())}") from error
    for key, content in opt["datasets"].items():
        content["phase"] = key.split("_")[0]
    opt["is_train"] = "train" in opt
    return opt
