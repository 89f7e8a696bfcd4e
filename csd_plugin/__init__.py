"""Collaborative spatial-temporal distillation for video deraining, as a plugin for BasicSR.

Importing this package does nothing; `activate()`, in your own training script, registers its classes with the toolbox
and lets the toolbox check their option files.
"""

__version__ = "0.2.0"


def activate() -> None:
    """Register our classes with BasicSR; see `csd_plugin.activation.activate`. The toolbox is imported only now.

    A package that is missing or too old ends the script with one line and status 2.
    """
    from csd_plugin.extras import or_exit

    with or_exit("csd_plugin.activate()"):
        from csd_plugin.activation import activate

        activate()
