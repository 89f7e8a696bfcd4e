"""Feature maps of networks on the same frame, as in the paper's Figure 2, drawn by mmengine's Visualizer."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from csd_plugin.archs.checkpoint import load_network
from csd_plugin.archs.interface import interface_of, run_network
from csd_plugin.data.batches import as_float
from csd_plugin.data.images import eight_bits
from csd_plugin.data.video import open_reader
from csd_plugin.data.windows import reflect_indices
from csd_plugin.devices import pick_device
from csd_plugin.distill.taps import tap_layers
from csd_plugin.errors import CSDError
from csd_plugin.extras import needed_by
from csd_plugin.report.figures.sheet import FONT_SIZE, GAP, LINE, PAGE_WIDTH, Sheet, lefts, row_width
from csd_plugin.report.figures.sources import INPUT, TRUTH, Method, Scene, read

if TYPE_CHECKING:
    from matplotlib.axes import Axes

logger = logging.getLogger(__name__)

_SIDE = 0.16
"""Inches: space for the names of taps next to their rows."""
_TAG = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
_CLIPPED = 0.5
"""Percentage of a map's pixels that are clipped at each end of its scale."""


def draw_features(
    scene: Scene, out: Path, *, number: int, taps: Sequence[str] = (), shared_scale: bool = False
) -> dict[str, tuple[int, ...]]:
    """Write the picture: the rainy frame, each network's feature map, and the true frame, if there is one.

    A map is the feature's mean over its channels (and over time, if it has a time axis left), drawn by
    Visualizer.draw_featmap: from its lowest value, blue, to its highest, red, which are both written in its corner. The
    0.5 % of its pixels at both ends, often those at the frame's border, do not stretch the scale.

    Args:
        number: of the frame, from 0.
        taps: one row each: a layer whose input (`conv22`) or output (`conv7:output`) is shown; default: each network's
            own feature that distillation compares.
        shared_scale: one colour scale for all maps of a row; by default each has its own, since the scales of networks'
            features differ.

    Returns:
        label -> shape (C, H, W) of its feature in the first row. Raises CSDError if mmengine is missing, if a method is
        not a checkpoint, or if a network lacks a layer.
    """
    draw_featmap = _draw_featmap()
    frame = eight_bits(next(read(scene.clip, number, number + 1)))
    features = [
        {method.label: feature_of(method, scene, number, tap) for method in scene.methods} for tap in taps or [""]
    ]
    height, width = frame.shape[:2]
    maps = [_maps(row, draw_featmap, (height, width), shared_scale) for row in features]

    frames = {INPUT: Picture(frame)}
    if scene.truth:
        frames[TRUTH] = Picture(eight_bits(next(read(scene.truth, number, number + 1))))
    sheet = _row(frames, maps[0], scene.labels) if len(maps) == 1 else _rows(frames, maps, taps)
    sheet.save(out)
    return {label: tuple(feature.shape) for label, feature in features[0].items()}


class Picture(NamedTuple):
    """One panel.

    Attributes:
        pixels: (H, W, 3) uint8 RGB.
        scale: the values of a map's blue and red; None for a frame.
    """

    pixels: np.ndarray
    scale: tuple[float, float] | None = None

    def draw(self, sheet: Sheet, left: float, top: float, width: float, height: float) -> Axes:
        axes = sheet.image(self.pixels, left, top, width, height)
        if self.scale:
            low, high = self.scale
            _tag(axes, f"{low:.2g} to {high:.2g}", (0, 0), (3, 3))
        return axes


def _tag(axes: Axes, text: str, corner: tuple[int, int], shift: tuple[int, int]) -> None:
    """Small text on white in a corner of a panel, (0, 0) at the lower left, shifted by `shift` points."""
    above = "top" if corner[1] else "bottom"
    axes.annotate(text, corner, shift, "axes fraction", "offset points", va=above, fontsize=FONT_SIZE - 1, bbox=_TAG)


def _row(frames: dict[str, Picture], maps: dict[str, Picture], labels: Sequence[str]) -> Sheet:
    """Input, maps and truth side by side."""
    column = row_width(len(labels))
    tall = column * frames[INPUT].pixels.shape[0] / frames[INPUT].pixels.shape[1]
    sheet = Sheet(PAGE_WIDTH, tall + GAP / 2 + LINE, frames[INPUT].pixels.shape)
    for left, label in zip(lefts(len(labels), column), labels, strict=True):
        (frames | maps)[label].draw(sheet, left, 0, column, tall)
        sheet.caption([label], left, tall + GAP / 2, column)
    return sheet


def _rows(frames: dict[str, Picture], rows: Sequence[dict[str, Picture]], taps: Sequence[str]) -> Sheet:
    """The frames below each other on the left, then one column per network, with one row per tap."""
    column = row_width(len(rows[0]) + 1, PAGE_WIDTH - _SIDE)
    tall = column * frames[INPUT].pixels.shape[0] / frames[INPUT].pixels.shape[1]
    tops = lefts(len(rows), tall)
    first, *others = lefts(len(rows[0]) + 1, column)
    sheet = Sheet(PAGE_WIDTH, tops[-1] + tall + GAP / 2 + LINE, frames[INPUT].pixels.shape)
    for top, (label, frame) in zip(tops, frames.items(), strict=False):
        _tag(frame.draw(sheet, first, top, column, tall), label, (0, 1), (3, -3))
    for top, row, tap in zip(tops, rows, taps, strict=True):
        sheet.text(tap, column + GAP + _SIDE / 2, top + tall / 2, tall, ha="center", rotation=90)
        for left, (label, picture) in zip(others, row.items(), strict=True):
            picture.draw(sheet, left + _SIDE, top, column, tall)
            if top == tops[-1]:
                sheet.caption([label], left + _SIDE, top + tall + GAP / 2, column)
    return sheet


@torch.no_grad()
def feature_of(method: Method, scene: Scene, number: int, tap: str = "") -> Tensor:
    """The feature (C, H, W) of a network, on the CPU, when it computes one frame of the clip.

    Args:
        tap: as for `tap_layers`; default: the network's own. A time axis is averaged.

    Raises:
        CSDError: the method is frames instead of a network, or there is no such layer.
    """
    if method.is_frames:
        raise CSDError(
            f"{method.label}: {method.path} holds frames, but only networks have features; give a checkpoint"
        )
    network = load_network(method.path)
    device = pick_device(scene.device)
    (tapped,) = tap_layers(network, [tap or str(network.feature_tap)])
    with tapped, open_reader(scene.clip, start=number, end=number + 1, context=_reach(network)) as reader:
        near = list(reader)
        window = [near[i] for i in reflect_indices(reader.lead, 2 * _reach(network) + 1, len(near))]
        pixels = torch.from_numpy(np.stack([eight_bits(frame) for frame in window])).to(device)
        interface, clip = interface_of(network), as_float(pixels.permute(0, 3, 1, 2)[None])
        run_network(network.to(device), clip, 1, interface)
        size = (clip.shape[3], clip.shape[4])
        feature = interface.features(tapped.take(), 1, 1, tapped.path, logger.warning, size=size)
    return feature[0, 0].float().cpu()


def _reach(network: torch.nn.Module) -> int:
    """Frames to each side that a network needs."""
    return int(network.num_frame) // 2  # type: ignore[arg-type]


def _maps(row: dict[str, Tensor], draw_featmap, size: tuple[int, int], shared_scale: bool) -> dict[str, Picture]:
    """label -> its map."""
    means = [_clipped(feature.mean(dim=0, keepdim=True)) for feature in row.values()]
    ends = [(float(mean.min()), float(mean.max())) for mean in means]
    if not shared_scale:
        drawn = (draw_featmap(mean, resize_shape=size) for mean in means)
        return {label: Picture(*one) for label, one in zip(row, zip(drawn, ends, strict=True), strict=True)}
    # Drawing scales a map from its lowest to its highest value: drawn as one, all maps have the same scale.
    resized = [torch.nn.functional.interpolate(mean[None], size, mode="bilinear")[0] for mean in means]
    parts = np.split(draw_featmap(torch.cat(resized, dim=2)), len(row), axis=1)
    scale = min(low for low, _ in ends), max(high for _, high in ends)
    return {label: Picture(part, scale) for label, part in zip(row, parts, strict=True)}


def _clipped(mean: Tensor) -> Tensor:
    low, high = np.percentile(mean.numpy(), (_CLIPPED, 100 - _CLIPPED))
    return mean.clamp(float(low), float(high))


def _draw_featmap():
    with needed_by("a picture of features"):
        from mmengine.visualization import Visualizer
    return Visualizer.draw_featmap
