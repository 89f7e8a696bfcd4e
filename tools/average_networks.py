"""Average the weights of networks that were trained on from one start: often better than each of them, at no cost.

    python tools/average_networks.py realtime experiments/more/models/net_g_latest.pth average.pth

The last file is the one to write; the others, two or more, are checkpoints or names of shipped networks, of one class
and size. Score the average before you use it (`csd derain --model average.pth`, `csd score`): networks from different
starts have different features, and their average is useless.

After Wortsman et al., "Model soups", ICML 2022. OUT must not exist yet.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from csd_plugin.archs.checkpoint import load_network, save_network
from csd_plugin.errors import CSDError
from csd_plugin.inference.facts import without_branches
from csd_plugin.weights import find_checkpoint
from csd_plugin.weights.packing import numbers_of


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "checkpoint",
        nargs="+",
        help="files, or names of shipped networks; two or more, and one that is given twice counts twice",
    )
    parser.add_argument("out", type=Path, help="file to write")
    args = parser.parse_args(argv)
    try:
        if len(args.checkpoint) < 2:
            raise CSDError("one network has no average; give two or more, and then the file to write")
        if args.out.exists() or not args.out.name:
            raise CSDError(f"{args.out} already exists; give the name of a new file")
        average = averaged([(name, load_network(find_checkpoint(name))) for name in args.checkpoint])
        save_network(average, args.out)
    except CSDError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{args.out}: the average of {len(args.checkpoint)} networks; score it before you use it")
    return 0


@torch.no_grad()
def averaged(networks: Sequence[tuple[str, nn.Module]]) -> nn.Module:
    """A network with the mean of all weights. Raises CSDError for networks that have different ones.

    Args:
        networks: each with its name in messages.
    """
    (first, average), *others = ((name, without_branches(network)) for name, network in networks)
    mean = {key: value.double() for key, value in average.state_dict().items()}
    for name, network in others:
        # not by shapes: networks that see as many frames, some before the target and some on both sides, have the same
        if type(network) is not type(average) or numbers_of(network) != numbers_of(average):
            raise CSDError(f"{name} and {first} are networks of different kinds or sizes; average equal ones")
        mean = {key: value + network.state_dict()[key] for key, value in mean.items()}
    average.load_state_dict({key: value / len(networks) for key, value in mean.items()})
    return average


if __name__ == "__main__":
    sys.exit(main())
