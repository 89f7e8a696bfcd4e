"""Untrusted YAML files, read within limits, and as plain data only."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any

import yaml

from csd_plugin.errors import CSDError

MOST_YAML = 2**20
"""The largest file, in characters."""
_MOST_NODES = 100_000
"""The most keys and values of a file, each alias counted as everything that it stands for."""


class LimitedLoader(yaml.SafeLoader):
    """Data only, of limited size and depth. Raises CSDError and yaml.YAMLError, and nothing else.

    It takes text, or an open file, whose name then begins its errors.
    """

    def __init__(self, stream: str | IO[str]) -> None:
        text = stream if isinstance(stream, str) else stream.read(MOST_YAML + 1)
        name = getattr(stream, "name", None)
        if len(text) > MOST_YAML:
            raise CSDError(f"{name or 'the text'}: more than {MOST_YAML >> 20} MB of YAML; is it the right file?")
        super().__init__(text)
        self.name = str(name or self.name)

    def get_single_data(self) -> Any:
        try:
            node = self.get_single_node()
            if node is None:
                return None
            self._check_size(node, {}, ())
            self._check_texts(node)
            return self.construct_document(node)
        except RecursionError as error:
            raise CSDError(f"{self.name}: nested too deeply") from error
        except CSDError:
            raise
        except (ValueError, TypeError, OverflowError) as error:  # of numbers and dates that Python does not know
            raise CSDError(f"{self.name}: a value cannot be read: {str(error).splitlines()[0]}") from error

    def _check_size(self, node: yaml.Node, sizes: dict[int, int], within: tuple[int, ...]) -> int:
        """Keys and values below a node, its aliases followed, each of them counted once."""
        if id(node) in within:
            raise CSDError(f"{self.name}: line {node.start_mark.line + 1}: a section that holds itself")
        if id(node) not in sizes:
            inner = node.value if isinstance(node, yaml.CollectionNode) else []
            below = [part for pair in inner for part in (pair if isinstance(pair, tuple) else (pair,))]
            within = (*within, id(node)) if below else within
            sizes[id(node)] = 1 + sum(self._check_size(part, sizes, within) for part in below)
            if sizes[id(node)] > _MOST_NODES:
                raise CSDError(f"{self.name}: more than {_MOST_NODES:,} values, aliases (*name) followed; write it out")
        return sizes[id(node)]

    def _check_texts(self, node: yaml.Node) -> None:
        """Raise CSDError for a key or value with a NUL, which no name of a file and no other text here has."""
        waiting, seen = [(node, "")], set()
        while waiting:
            node, where = waiting.pop()
            if isinstance(node, yaml.ScalarNode):
                if "\0" in node.value:
                    line = node.start_mark.line + 1
                    raise CSDError(f"{self.name}: line {line}: {where or 'the value'}: a NUL character; remove it")
            elif id(node) not in seen:  # the target of several aliases is checked once
                seen.add(id(node))
                parts = node.value if isinstance(node, yaml.MappingNode) else ((None, part) for part in node.value)
                for key, value in parts:
                    name = where if key is None else f"{where}.{key.value}".lstrip(".")
                    waiting += [(value, name)] if key is None else [(key, where), (value, name)]


def _refuse_binary(loader: LimitedLoader, node: yaml.Node) -> None:
    raise yaml.constructor.ConstructorError(None, None, "binary data are not allowed here", node.start_mark)


LimitedLoader.add_constructor("tag:yaml.org,2002:binary", _refuse_binary)


def read_yaml(path: Path) -> Any:
    """The content of a YAML file. Raises CSDError."""
    try:
        with path.open(encoding="utf-8") as file:
            return yaml.load(file, LimitedLoader)
    except OSError as error:
        raise CSDError(f"{path}: cannot be read ({error.strerror or error}); check the path") from error
    except UnicodeDecodeError as error:
        raise CSDError(f"{path}: not UTF-8 text; check the path") from error
    except yaml.YAMLError as error:
        raise CSDError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from error
