"""Adapters to the toolbox. BasicSR is imported before any of them: its own import may end in an import of ours."""

from csd_plugin import compat

compat.prepare_imports()

import basicsr  # noqa: E402, F401

compat.repair_toolbox()
