"""Make a trained network wider or deeper without changing what it computes: a better start than random weights.

    python tools/grow_network.py realtime grown.pth --num-feat 48 --num-pair 6
    python tools/grow_network.py experiments/teacher/models/net_g_latest.pth teacher64.pth --num-feat 64

Give the file as `path.pretrain_network_g` to the larger network, with `param_key_g: params`. New parts are initialised
like the network itself, but have no effect yet: existing channels do not see new ones, and new pairs of convolutions
add zero. Everything learns. Numbers that are not given stay; they can only grow. OUT must not exist yet.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from csd_plugin.archs.checkpoint import load_network, save_network
from csd_plugin.archs.halfnet import HalfNet
from csd_plugin.archs.sldnet import SLDNet
from csd_plugin.cli.flags import whole
from csd_plugin.errors import CSDError
from csd_plugin.inference.facts import without_branches
from csd_plugin.weights import find_checkpoint

NUMBERS = ("num_feat", "num_pair", "num_deep")
MOST_PARAMETERS = 10**9


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", help="file, or name of a shipped network")
    parser.add_argument("out", type=Path, help="file to write")
    number = whole(1, 4096)
    parser.add_argument("--num-feat", type=number, metavar="C", help="channels")
    parser.add_argument("--num-pair", type=number, metavar="N", help="residual pairs (half-resolution family only)")
    parser.add_argument("--num-deep", type=number, metavar="N", help="residual pairs at a quarter of the resolution")
    parser.add_argument(
        "--seed", type=whole(0, 2**32 - 1), default=0, metavar="N", help="seed of new weights (default 0)"
    )
    args = parser.parse_args(argv)
    try:
        given = {name: getattr(args, name) for name in NUMBERS if getattr(args, name) is not None}
        if args.out.exists() or not args.out.name:
            raise CSDError(f"{args.out} already exists; give the name of a new file")
        network = load_network(find_checkpoint(args.checkpoint))
        torch.manual_seed(args.seed)
        large = grown(network, given)
        save_network(large, args.out)
    except CSDError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    count = [sum(weight.numel() for weight in one.parameters()) for one in (network, large)]
    print(f"{args.out}: {count[1]:,} parameters, grown from {count[0]:,}")
    return 0


@torch.no_grad()
def grown(network: nn.Module, given: Mapping[str, int]) -> nn.Module:
    """A larger network of the same class with the same results. Raises CSDError for invalid numbers."""
    if not isinstance(network, HalfNet | SLDNet):
        raise CSDError(f"{type(network).__name__} cannot grow; networks of SLDNet and HalfNet can")
    network = without_branches(network)
    numbers = network.numbers_from_state(network.state_dict())
    assert numbers is not None
    for name, value in given.items():
        if name not in numbers or (isinstance(network, SLDNet) and name != "num_feat"):
            raise CSDError(
                f"--{name.replace('_', '-')}: {type(network).__name__} cannot grow in this number; leave it out"
            )
        if value < numbers[name] or (name == "num_deep" and not numbers[name]):
            raise CSDError(f"--{name.replace('_', '-')} {value}: the network has {numbers[name]}; give a larger number")
    if all(numbers[name] == value for name, value in given.items()):
        raise CSDError("nothing grows: give a larger number than the network has")
    with torch.device("meta"):
        count = sum(weight.numel() for weight in type(network)(**numbers | dict(given)).parameters())
    if count > MOST_PARAMETERS:
        raise CSDError(
            f"the network would have {count:,} parameters, more than {MOST_PARAMETERS:,}; give smaller numbers"
        )
    large = type(network)(**numbers | dict(given))
    places = _places(network, large)
    state = network.state_dict()
    for name, new in large.state_dict().items():
        layer, _, kind = name.rpartition(".")
        old = state.get(".".join(filter(None, (places.get(layer, layer), kind))))
        if old is not None:
            _take_over(new, old)
        elif layer.endswith("conv2"):  # the pair is new
            new.zero_()
    return large


def _take_over(new: Tensor, old: Tensor) -> None:
    """Into the first channels, which get nothing from the others."""
    if not old.dim():
        new.copy_(old)
        return
    rows = old.shape[0]
    new[:rows] = 0
    if old.dim() == 1:
        new[:rows] = old
    else:
        new[:rows, : old.shape[1]] = old


def _places(small: nn.Module, large: nn.Module) -> dict[str, str]:
    """Layers of the large network that stand elsewhere in the small one, or nowhere.

    The pairs at half resolution lie on both sides of those at a quarter: new ones come last on each side.
    """
    if not isinstance(small, HalfNet) or not isinstance(large, HalfNet):
        return {}
    places = {}
    for number in range(large.num_pair):
        first = number < large.num_before
        place = number if first else number - large.num_before + small.num_before
        there = place < (small.num_before if first else small.num_pair)
        for conv in ("conv1", "conv2"):
            places[f"body.{number}.{conv}"] = f"body.{place}.{conv}" if there else "nowhere"
    return places


if __name__ == "__main__":
    sys.exit(main())
