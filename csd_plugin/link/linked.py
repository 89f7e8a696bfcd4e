"""What is called by the files that `csd link` writes, and by its import hook. Neither function raises anything.

A program may use the toolbox without us: it continues, and one line says what is missing.
"""

from __future__ import annotations

import sys


def prepare_imports() -> None:
    """Before the toolbox is imported, or early in it: `compat.prepare_imports`."""
    from csd_plugin.errors import first_line

    try:
        from csd_plugin import compat

        compat.prepare_imports()
    except (ImportError, RuntimeError) as error:  # the toolbox's own import will end in the same
        print(f"csd-plugin: torchvision cannot be imported ({first_line(error)})", file=sys.stderr, flush=True)


def activate() -> None:
    """`csd_plugin.activate()`, also in the middle of the toolbox's own import."""
    from csd_plugin.errors import CSDError, first_line
    from csd_plugin.extras import needed_by
    from csd_plugin.versions import check_versions

    try:
        check_versions("csd-plugin", toolbox=True)
        with needed_by("csd-plugin"):
            from csd_plugin.activation import activate

            activate(extensions=False)
    except (ImportError, CSDError) as error:
        print(f"csd-plugin is not active: {first_line(error)}", file=sys.stderr, flush=True)
