"""Classes of other packages in our tables.

An installed package adds networks to `archs.NETWORKS`, objectives to `distill.OBJECTIVES` and so on in a function
without arguments that its metadata name as an entry point of the group `csd_plugin`:

    [project.entry-points.csd_plugin]
    mine = "my_package:register"
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import EntryPoint, entry_points

from csd_plugin.errors import CSDError, first_line
from csd_plugin.toolbox_imports import prepare_imports

GROUP = "csd_plugin"

_loaded: set[tuple[str, str]] = set()


def load() -> Iterator[CSDError]:
    """Call the entry points that have not yet succeeded in this process. Yields their errors."""
    for point in entry_points(group=GROUP):
        try:
            _load(point)
        except CSDError as error:
            yield error


def _load(point: EntryPoint) -> None:
    if (point.name, point.value) in _loaded:
        return
    try:
        _register(point)
    except Exception as error:  # another package's code may raise anything
        raise CSDError(
            f"the package behind the entry point {point.name} = {point.value} cannot be registered "
            f"({type(error).__name__}: {first_line(error)}); fix or uninstall it"
        ) from error
    _loaded.add((point.name, point.value))


def _register(point: EntryPoint) -> None:
    """Call an entry point; again if it imports BasicSR or torchvision, whose imports have to be repaired first."""
    try:
        point.load()()
    except (ImportError, RuntimeError) as error:
        if "torchvision" not in str(error):
            raise
        prepare_imports()
        point.load()()
