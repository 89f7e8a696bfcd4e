"""Collaborative spatial-temporal distillation for video deraining, as a plugin for BasicSR.

Importing this package does nothing; `activate()`, in a training script of your own, makes its classes known to the
toolbox and lets the toolbox check their option files.
"""

__version__ = "0.2.0"


def activate() -> None:
    """See `csd_plugin.activation.activate`; the toolbox is imported only now.

    What is missing, or too old, ends the script with one line and status 2.
    """
    from csd_plugin.extras import or_exit

    with or_exit("csd_plugin.activate()"):
        from csd_plugin.activation import activate

        activate()
