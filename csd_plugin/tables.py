"""Tables of objects by name: a row says where the object is, which is imported when it is first needed."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator, Mapping, MutableMapping
from typing import TypeVar, cast

T = TypeVar("T")


class Table(MutableMapping[str, T]):
    """Name -> a class or other object, in the order of the rows.

    Args:
        rows: name -> `package.module:Name`, or the object itself. Names alone import nothing.
    """

    def __init__(self, rows: Mapping[str, str | T]) -> None:
        self._rows: dict[str, str | T] = dict(rows)

    def __getitem__(self, name: str) -> T:
        row = self._rows[name]
        if isinstance(row, str):
            row = self._rows[name] = cast("T", pkgutil.resolve_name(row))
        return row

    def __setitem__(self, name: str, row: T) -> None:
        """Raises KeyError if the name is taken by another object."""
        if name in self._rows and self[name] is not row:
            raise KeyError(f"there is another {name} in this table; use another name")
        self._rows[name] = row

    def __delitem__(self, name: str) -> None:
        del self._rows[name]

    def __contains__(self, name: object) -> bool:
        return name in self._rows

    def __iter__(self) -> Iterator[str]:
        return iter(self._rows)

    def __len__(self) -> int:
        return len(self._rows)
