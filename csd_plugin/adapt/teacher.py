"""The networks that a student learns from: one or several, optionally averaged over mirrored and reversed clips."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from csd_plugin.archs.checkpoint import load_network, load_weights, read_state_dict
from csd_plugin.archs.interface import Interface
from csd_plugin.digests import file_digest
from csd_plugin.errors import CSDError
from csd_plugin.inference.backends import GRAPH_SUFFIXES
from csd_plugin.inference.facts import study, without_branches
from csd_plugin.inference.runner import Derainer
from csd_plugin.weights import find_checkpoint, shipped_as

OPTIONS = (".yml", ".yaml")


@dataclass(frozen=True)
class Named:
    """A network's name for people, and the SHA-256 of its file; for an option file, with that of its weights."""

    name: str
    sha256: str


class Teacher:
    """Cleans clips with one or several networks.

    Args:
        networks: names and digests.
        derainers: the same networks, ready to run.
    """

    def __init__(self, networks: Sequence[Named], derainers: Sequence[Derainer]) -> None:
        self.networks, self.derainers = tuple(networks), tuple(derainers)

    @property
    def context(self) -> int:
        """The most frames before and after a frame that the networks' windows hold."""
        return max(derainer.num_frame // 2 for derainer in self.derainers)

    def clean(self, read: Callable[[], Iterator[tuple[np.ndarray, bool]]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Each frame of a shot and its cleaned one, both (H, W, 3) uint8 RGB; for several networks, the `agreed` one.

        Args:
            read: returns the shot with the `context` around it, from the start at every call, see `Shot.read`.
        """
        results = [derainer(frame for frame, _ in read()) for derainer in self.derainers]
        for (rainy, own), *cleaned in zip(read(), *results, strict=True):
            if own:
                yield rainy, agreed(cleaned)

    def seconds_a_frame(self, width: int, height: int) -> float:
        """Estimated seconds per frame on this machine, from a trial."""
        return sum(derainer.seconds_a_frame(width, height) for derainer in self.derainers)


def open_teacher(models: Sequence[str], *, ensemble: bool, device: str = "auto") -> Teacher:
    """The teacher that these networks form together.

    Args:
        models: names in `csd models`, checkpoints, files of `csd export`, or option files of the toolbox.
        ensemble: average each network over mirrored and reversed copies of the clip; not for exported files.

    Raises:
        CSDError: a network cannot be found, read, built or averaged.
    """
    paths = [find_teacher(model) for model in models]
    return Teacher(
        [named(path) for path in paths],
        [Derainer(runnable(path, ensemble=ensemble), precision="auto", device=device) for path in paths],
    )


def find_teacher(model: str) -> Path:
    """The file for a name in `csd models` or a path. Raises CSDError."""
    return Path(model) if model.endswith(OPTIONS) else find_checkpoint(model)


def agreed(frames: Sequence[np.ndarray]) -> np.ndarray:
    """The mean of several networks' results for one frame; a result has more weight, the closer it is to the others.

    The weight is 1 / (1 + the mean squared difference from the mean of the others, in grey levels). For two networks,
    this is the plain mean.

    Args:
        frames: (H, W, 3) uint8 RGB each.
    """
    if len(frames) == 1:
        return frames[0]
    stack = np.stack(frames).astype(np.float32)
    others = (stack.sum(axis=0) - stack) / (len(frames) - 1)
    weights = 1 / (np.square(stack - others).mean(axis=(1, 2, 3)) + 1)
    return np.rint(np.average(stack, axis=0, weights=weights)).astype(np.uint8)


class SelfEnsemble(nn.Module):
    """The mean of a network's results for mirrored frames (left and right, top and bottom) and reversed clips.

    It is called like the network. A causal network sees no later frames, so its clips are not reversed; nor are those
    of a network of single images, as the results would be the same.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        facts = study(network)
        self.network = without_branches(network)
        self.num_frame, self.num_future, self.num_seen = facts.num_frame, facts.num_future, facts.num_seen
        self.layout, self.size_divisor, self.reach = facts.layout, facts.divisor, facts.reach
        self._gives_clip = facts.interface.gives_clip
        self._turns = ((), (-1,), (-2,), (-2, -1))
        reversible = facts.num_future == facts.num_frame // 2 and (facts.num_frame > 1 or self._gives_clip)
        self._reverses = (False, True) if reversible else (False,)

    def forward(self, clip: Tensor) -> Tensor:
        """(B, T, 3, H, W) -> (B, 3, H, W), of sequences (B, T, 3, H, W)."""
        total: Tensor | None = None
        for turn in self._turns:
            for reverse in self._reverses:
                axes = (*turn, 1) if reverse else turn
                result = self.network(clip.flip(axes) if axes else clip)
                back = axes if self._gives_clip else turn
                result = result.flip(back) if back else result
                total = result if total is None else total + result
        assert total is not None
        return total / (len(self._turns) * len(self._reverses))


class _OfImages(nn.Module):
    """A network of single images, called with windows of one frame; its layers are tapped by their own names."""

    num_frame = 1

    def __init__(self, network: nn.Module, interface: Interface) -> None:
        super().__init__()
        self.module, self.size_divisor, self.feature_tap = network, interface.size_divisor, interface.feature

    def forward(self, window: Tensor) -> Tensor:
        return self.module(window[:, 0])


def runnable(path: Path, *, ensemble: bool = False) -> nn.Module | Path:
    """The network of a checkpoint or an option file; the path of an exported file. Raises CSDError."""
    if path.suffix.lower() in GRAPH_SUFFIXES:
        if ensemble:
            raise CSDError(f"{path}: --ensemble does not work with exported files: give the checkpoint")
        return path
    network = _from_options(path) if path.suffix.lower() in OPTIONS else load_network(path)
    return SelfEnsemble(network).eval() if ensemble else network


def _from_options(path: Path) -> nn.Module:
    """`network_g` of an option file with its weights; also the toolbox's own networks. Raises CSDError."""
    from csd_plugin import registration
    from csd_plugin.models.building import build_networks
    from csd_plugin.options.files import read_options

    registration.install()
    registration.extend()
    opt = read_options(path)
    weights = _weights_in(opt, path)
    networks, interfaces = build_networks(dict(opt) | {"is_train": False})
    network, interface = networks["network_g"], interfaces["network_g"]
    state = read_state_dict(weights, opt["path"].get("param_key_g", "params_ema"), fallback=True)
    load_weights(network, state, source=f"checkpoint {weights}")
    if not interface.has_time:
        return _OfImages(network, interface).eval()
    stated = {
        "layout": ("window", interface.kind),
        "num_frame": (None, interface.num_frame),
        "size_divisor": (1, interface.size_divisor),
        "feature_tap": (None, interface.feature),
    }
    for name, (default, value) in stated.items():
        if getattr(network, name, default) != value:
            setattr(network, name, value)
    return network.eval()


def weights_of(path: Path) -> Path:
    """The file with a network's weights: the file itself, or the one that an option file names. Raises CSDError."""
    if path.suffix.lower() not in OPTIONS:
        return path
    from csd_plugin import registration
    from csd_plugin.options.files import read_options

    registration.install()
    return _weights_in(read_options(path), path)


def _weights_in(opt: Mapping[str, Any], path: Path) -> Path:
    weights = opt["path"].get("pretrain_network_g")
    if not weights:
        raise CSDError(f"{path}: path.pretrain_network_g is missing: name the teacher's weights there")
    return find_checkpoint(weights)


def named(path: Path) -> Named:
    """The name and digest of a network. Raises CSDError if one of its files cannot be read."""
    shipped = shipped_as(path)
    digests = [_digest(file) for file in dict.fromkeys((path, weights_of(path)))]
    digest = digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
    return Named(shipped.name if shipped else path.name, digest)


def _digest(path: Path) -> str:
    try:
        return file_digest(path)
    except OSError as error:
        raise CSDError(f"{path} cannot be read ({error.strerror}); check the path") from error
