"""`python -m csd_plugin.test -opt FILE.yml`: BasicSR's test pipeline with our classes, in the current folder.

Takes the toolbox's own flags (--debug, --force_yml, --launcher).
"""

import sys

from csd_plugin.extras import or_exit

# At module level, so that spawned loader workers, which import this module again, have it too.
with or_exit("csd_plugin.test"):
    if __name__ == "__main__":  # first, as the other imports take seconds
        from csd_plugin.options.problems import check_readable

        check_readable(sys.argv[1:])

    from csd_plugin import compat, registration

    registration.install()
    compat.repair_launch()

    from csd_plugin import launch


def main() -> int:
    """Test as the command line says; return the exit status: 0, or 2 after one line on stderr."""
    import basicsr.test

    return launch.run(basicsr.test.test_pipeline, basicsr.test)


if __name__ == "__main__":
    sys.exit(main())
