"""`python -m csd_plugin.train -opt FILE.yml`: BasicSR's training pipeline with our classes, in the current folder.

Takes the toolbox's own flags (--auto_resume, --debug, --force_yml, --launcher).
"""

import sys
import time

from csd_plugin.extras import or_exit

BEGAN = time.monotonic()

# At module level, so that spawned loader workers, which import this module again, have it too.
with or_exit("csd_plugin.train"):
    if __name__ == "__main__":  # first, as the other imports take seconds
        from csd_plugin.options.problems import check_readable

        check_readable(sys.argv[1:])

    from csd_plugin import compat, registration

    registration.install()
    compat.repair_launch()

    from csd_plugin import launch


def main(began: float | None = None) -> int:
    """Train as the command line says; return the exit status: 0, or 2 after one line on stderr.

    began: when `train.max_seconds` starts to count, by `time.monotonic()`; by default when the model is built.
    """
    import basicsr.train

    return launch.run(basicsr.train.train_pipeline, basicsr.train, began)


if __name__ == "__main__":
    sys.exit(main(BEGAN))
