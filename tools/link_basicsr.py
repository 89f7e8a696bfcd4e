"""`csd link` from a checkout, where the command `csd` is not on the path: python tools/link_basicsr.py [PATH] .."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from csd_plugin.cli import main

if __name__ == "__main__":
    sys.exit(main(["link", *sys.argv[1:]]))
