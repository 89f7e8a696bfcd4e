"""Ship a trained network: write csd_plugin/weights/NAME.pth, and its facts to networks.json there.

    python tools/pack_network.py experiments/tiny_csd/models/net_g_latest.pth tiny_csd --facts facts.yml \\
        --score validation=scores/validation.json a1=scores/a1.json --check val/cows_Rain val/cows_GT
    python tools/pack_network.py tiny_csd tiny_csd --fact recipe="..."     # new facts, the same weights
    python tools/pack_network.py --rainy validation=scores/validation_rain.json    # scores of the rainy frames
    python tools/pack_network.py --remove tiny_csd
    python tools/pack_network.py                                                   # only the model card's table

The averaged weights of the checkpoint go into a file of the toolbox's format. Facts are the texts `what`, `trained_on`,
`recipe` and `license`; scores are files of `csd score --out`. Facts that a checkpoint holds itself, as shipped ones do,
need not be given again. The table of MODEL_CARD.md, between its two marks, is updated.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from csd_plugin.errors import CSDError, suggestion
from csd_plugin.report.networks import card_tables
from csd_plugin.weights import FOLDER, SETS, packing, read_catalogue, read_left
from csd_plugin.weights.packing import FREE_DB, TEXTS, pairs, score_of


def main(argv: Sequence[str] | None = None, folder: Path = FOLDER) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", nargs="?", help="a file, or the name of a shipped network")
    parser.add_argument("name", nargs="?", help="the name under which it ships")
    parser.add_argument("--facts", type=Path, metavar="FILE.yml", help=f"texts {', '.join(TEXTS)}")
    parser.add_argument("--fact", nargs="+", default=[], metavar="KEY=TEXT", help="single facts, instead of the file's")
    parser.add_argument(
        "--score", nargs="+", default=[], metavar="SET=FILE.json", help=f"scores on {' and '.join(SETS)}"
    )
    parser.add_argument(
        "--rainy", nargs="+", default=[], metavar="SET=FILE.json", help="scores of the rainy frames themselves"
    )
    parser.add_argument(
        "--check",
        nargs=2,
        type=Path,
        metavar=("RAIN", "GT"),
        help=f"frames: store weights as fp16 where it moves their PSNR by less than {FREE_DB} dB (else fp32)",
    )
    parser.add_argument("--remove", metavar="NAME", help="ship this network no longer; its facts stay")
    args = parser.parse_args(argv)
    try:
        (networks, rainy), left = read_catalogue(folder), read_left(folder)
        rainy |= {which: score_of(which, path) for which, path in pairs(args.rainy, SETS)}
        if args.checkpoint:
            if not args.name or not re.fullmatch(r"[a-z0-9_]+", args.name):
                raise CSDError(f"{args.name} is no name for a network: give one of small letters, digits and _")
            facts = packing.read_facts(args.facts) | dict(pairs(args.fact, TEXTS))
            scores = {which: score_of(which, path) for which, path in pairs(args.score, SETS)}
            networks[args.name] = packing.pack(args.checkpoint, args.name, facts, scores, args.check, folder)
        if args.remove:
            if args.remove not in networks:
                raise CSDError(f"--remove {args.remove}: not shipped{suggestion(args.remove, networks)}")
            left[args.remove] = networks.pop(args.remove)
        packing.write_catalogue(folder, networks, rainy, left)
        if args.remove:
            (folder / f"{args.remove}.pth").unlink(missing_ok=True)
    except CSDError as error:
        print(f"pack_network: error: {error}", file=sys.stderr)
        return 2
    for note in (
        *packing.report(networks, rainy, args.name),
        *packing.update_card(folder / "MODEL_CARD.md", card_tables(networks, left, rainy)),
    ):
        print(note)
    return 0


if __name__ == "__main__":
    sys.exit(main())
