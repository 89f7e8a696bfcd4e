"""Collaborative spatial-temporal distillation for video deraining, as a plugin for BasicSR.

Importing this package does nothing but define its version; `csd_plugin.registration.install()`
makes its classes known to the toolbox.
"""

__version__ = "0.2.0"
