"""`csd prepare` for people who work in a checkout: python tools/prepare_ntu_rain.py IN [IN ...] OUT [options]."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from csd_plugin.cli import main as csd


def main(argv: Sequence[str] | None = None) -> int:
    return csd(["prepare", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
