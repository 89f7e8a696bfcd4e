"""Pack a trained network for csd_plugin/weights: averaged weights only, in the toolbox's format, with its facts.

    python tools/pack_network.py experiments/student2_csd/models/net_g_latest.pth csd_plugin/weights/student2.pth \\
        --fact trained_on="18 clean clips, rendered rain" --fact licence=Apache-2.0
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from csd_plugin.archs.checkpoint import load_network
from csd_plugin.errors import CSDError


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--fact", action="append", default=[], metavar="KEY=VALUE", help="kept beside the weights")
    args = parser.parse_args(argv)
    try:
        network = load_network(args.checkpoint)
    except CSDError as error:
        print(f"pack_network: error: {error}", file=sys.stderr)
        return 2
    facts = dict(fact.split("=", 1) for fact in args.fact)
    temporary = args.out.with_suffix(".part")
    torch.save({"params": network.state_dict(), "facts": facts}, temporary)
    temporary.replace(args.out)
    print(f"{args.out}: {args.out.stat().st_size:,} bytes, sha256 {hashlib.sha256(args.out.read_bytes()).hexdigest()}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
