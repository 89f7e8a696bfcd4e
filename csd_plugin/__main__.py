"""`python -m csd_plugin <job>` is `csd <job>`."""

import sys

from csd_plugin.cli import main

sys.exit(main())
