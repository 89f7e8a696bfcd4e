"""MMEngine's registries under our scope. `registered` fills them."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from typing import Any

from mmengine.config import ConfigDict
from mmengine.registry import DATA_SAMPLERS as ALL_SAMPLERS
from mmengine.registry import DATASETS as ALL_DATASETS
from mmengine.registry import HOOKS as ALL_HOOKS
from mmengine.registry import METRICS as ALL_METRICS
from mmengine.registry import MODELS as ALL_MODELS
from mmengine.registry import Registry

from csd_plugin import compat
from csd_plugin.errors import CSDError, suggestion

SCOPE = "csd"

MODELS = Registry("csd model", parent=ALL_MODELS, scope=SCOPE)
DATASETS = Registry("csd dataset", parent=ALL_DATASETS, scope=SCOPE)
SAMPLERS = Registry("csd sampler", parent=ALL_SAMPLERS, scope=SCOPE)
METRICS = Registry("csd metric", parent=ALL_METRICS, scope=SCOPE)
HOOKS = Registry("csd hook", parent=ALL_HOOKS, scope=SCOPE)


def build(content: Mapping[str, Any], where: str) -> Any:
    """A network, objective or loss of ours, or, by `scope.Name`, of another project.

    Built directly from the class, as the registry's `build` needs a scope to be a package.

    Args:
        content: its `type` and keywords.
        where: in the config, for messages.

    Raises:
        CSDError: a type is unknown, a keyword is not accepted, or weights cannot be downloaded.
    """
    keywords = dict(content)
    name = keywords.pop("type", None)
    cls = MODELS.get(name) if isinstance(name, str) else None
    if cls is None:
        raise CSDError(f"{where}: type {name!r} is unknown{_instead(str(name))}")
    try:
        inspect.signature(cls).bind(**keywords)
    except TypeError as error:
        raise CSDError(f"{where}: {name}: {error}; check its keys") from error
    with compat.named_downloads():
        return cls(**keywords)


def _instead(name: str) -> str:
    """The end of a message about a type that no registry has."""
    scope, _, own = name.rpartition(".")
    if scope in ("", SCOPE):
        return suggestion(own, MODELS.module_dict)
    others = ALL_MODELS.children[scope].module_dict if scope in ALL_MODELS.children else {}
    near = difflib.get_close_matches(own, others, n=1)
    if near:
        return f"; did you mean {scope}.{near[0]}?"
    return f"; list the module of {scope} that registers it in custom_imports, or check the name"


def plain(content: Any) -> Any:
    """A part of a config as plain dicts and lists."""
    return content.to_dict() if isinstance(content, ConfigDict) else content


def taking_options(dataset: Callable[[dict[str, Any]], Any], check: Callable[[dict[str, Any]], None]) -> Any:
    """A data set as configs need it, with its options as keywords; the class itself takes BasicSR's dict."""

    def create(**options: Any) -> Any:
        options = {name: plain(value) for name, value in options.items()}
        check(options)
        return dataset(options)

    create.__name__, create.__doc__ = dataset.__name__, dataset.__doc__
    return create
