"""`python -m csd_plugin.train -opt FILE.yml`: BasicSR's training pipeline with our classes, in the current folder.

Takes the toolbox's own flags (--auto_resume, --debug, --force_yml, --launcher).
"""

import sys

from csd_plugin import compat, registration

# At module level, so that spawned loader workers, which import this module again, have it too.
registration.install()
compat.repair_launch()


def main() -> int:
    """Train as the command line says; 0, or 2 after one line on stderr."""
    import basicsr.train

    from csd_plugin import launch

    return launch.run(basicsr.train.train_pipeline, basicsr.train)


if __name__ == "__main__":
    sys.exit(main())
