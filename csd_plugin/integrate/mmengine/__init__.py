"""Our classes in MMEngine's registries, under the scope `csd`; list this module in `custom_imports` of a config.

    csd.CSDDistiller, networks, objectives, losses    MODELS
    the table of data sets                            DATASETS, with their options as keywords
    csd.ClipSampler                                   DATA_SAMPLERS
    csd.DerainingMetric                               METRICS
    csd.DistillHook, csd.StoppingHook                 HOOKS

`python -m csd_plugin.integrate.run_mmengine CONFIG.py` runs a config. See docs/mmengine.md.
"""

from contextlib import suppress

from csd_plugin import compat
from csd_plugin.extras import needed_by
from csd_plugin.versions import check_versions

check_versions("csd_plugin.integrate.mmengine")
with suppress(ModuleNotFoundError):  # the Runner imports it where it is there, even where its compiled part cannot load
    compat.import_torchvision()
with needed_by("csd_plugin.integrate.mmengine"):
    from csd_plugin.integrate.mmengine.registered import register

register()
