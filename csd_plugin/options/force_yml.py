"""Changes of an option file by `--force_yml`: `section:key=value`.

The toolbox runs a value that begins with `[` as Python, reads -1 and 1e-4 as strings, and creates any missing key. Here
values are data, as in the file, and a key that can only be a typo is an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from typing import Any

import yaml

from csd_plugin.errors import CSDError, first_line
from csd_plugin.limited_yaml import LimitedLoader

_WHOLE = re.compile(r"[+-]?\d+")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_KEY = re.compile(r"[^\s:=\"'\\]+")


class _ListLoader(LimitedLoader):
    """Reads the items of a list like single values: 1e-4 is a number, and none is null."""


_ListLoader.add_implicit_resolver("tag:yaml.org,2002:float", re.compile(rf"{_NUMBER.pattern}$"), list("+-.0123456789"))
_ListLoader.add_implicit_resolver("tag:yaml.org,2002:null", re.compile(r"[Nn]one$"), list("nN"))


def check_changes(changes: Sequence[str], top: Collection[str], inner: dict[str, Collection[str]]) -> None:
    """Raise CSDError for the first malformed change, or one that would create a key that nobody reads.

    Args:
        changes: from the command line.
        top: the known keys of a file's top level.
        inner: section -> its known keys.
    """
    known = {*top, *inner, *(key for keys in inner.values() for key in keys)}
    for change in changes:
        if change.count("=") != 1:
            raise CSDError(f"--force_yml: {change} is not of the form section:key=value")
        key, value = (part.strip() for part in change.split("="))
        parts = key.split(":")
        if not all(map(_KEY.fullmatch, parts)):
            raise CSDError(f"--force_yml: {change} is not of the form section:key=value")
        for part in parts:
            if "." in part and part.partition(".")[0] in known:
                raise CSDError(f"--force_yml: {change}: separate keys by colons: {key.replace('.', ':')}={value}")
        homes = [section for section, keys in inner.items() if key in keys]
        if homes and key not in top:
            raise CSDError(f"--force_yml: {change}: {key} is a key of {homes[0]}; give {homes[0]}:{key}={value}")


def reader(usual: Callable[[str], Any]) -> Callable[[str], Any]:
    """A function that reads a value's text, as a replacement for the toolbox's.

    Args:
        usual: the toolbox's function, used for all but numbers and lists.

    Returns:
        A function that raises CSDError for an invalid list.
    """

    def value_of(text: str) -> Any:
        if _NUMBER.fullmatch(text):
            return int(text) if _WHOLE.fullmatch(text) else float(text)
        if not text.startswith("["):
            return usual(text)
        try:
            return yaml.load(text, Loader=_ListLoader)
        except (CSDError, yaml.YAMLError) as error:
            raise CSDError(f"--force_yml: {text} is not a list: {first_line(error)}") from error

    return value_of
