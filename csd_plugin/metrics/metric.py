"""The interface of every metric other than PSNR and SSIM: images of one frame in, a number out."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, NamedTuple

from csd_plugin import extensions
from csd_plugin.errors import CSDError
from csd_plugin.metrics import METRICS
from csd_plugin.metrics.image_quality import Image

logger = logging.getLogger(__name__)


class View(NamedTuple):
    """The images available to a metric: (H, W, 3) uint8 RGB, of one frame.

    Attributes:
        truth: None if there is none.
        guide: an image that moves as the result should: the truth, the rainy input, or the result itself.
        previous, previous_guide: of the previous frame; None for a clip's first frame, or if no metric needs them.
    """

    result: Image
    truth: Image | None
    guide: Image
    previous: Image | None = None
    previous_guide: Image | None = None


class Metric:
    """One metric.

    To add one: one new file with one subclass, and one line in `metrics.METRICS`. The constructor takes keyword-only
    options, those of `val.metrics` in an option file. It raises CSDError if weights or a package are missing.
    """

    title: ClassVar[str]
    """Its heading in tables."""
    decimals: ClassVar[int]
    """Decimal places in tables."""
    higher_is_better: ClassVar[bool] = False
    """Which direction is better; tables show it by an arrow."""
    needs_truth: ClassVar[bool] = False
    """Whether it needs the truth; a frame without it has no value."""
    temporal: ClassVar[bool] = False
    """Whether it needs the previous frame; the first frame of a clip has no value."""
    uses_torchvision: ClassVar[bool] = False
    """Whether it imports torchvision, which `compat.prepare_imports` must prepare."""
    function: ClassVar[str | None] = None
    """The `type` in `val.metrics`; None if the toolbox has such a function itself."""

    def check_size(self, height: int, width: int) -> None:
        """Raise CSDError for frames that are too small. Each size is checked before anything is computed."""

    def __call__(self, view: View) -> float | None:
        """The value for a frame whose view has everything needed; None if it has no value. Raises CSDError."""
        raise NotImplementedError

    def of(self, view: View) -> float | None:
        """The value for a frame; None also if the view lacks something that is needed."""
        lacks_truth = self.needs_truth and view.truth is None
        lacks_previous = self.temporal and (view.previous is None or view.previous_guide is None)
        return None if lacks_truth or lacks_previous else self(view)


def values_of(metrics: Mapping[str, Metric], view: View, where: str) -> dict[str, float]:
    """The values for a frame, of the metrics that have one.

    NaN counts as no value, as it would make every mean NaN: a warning names the frame by `where`. Raises CSDError.
    """
    values = {name: metric.of(view) for name, metric in metrics.items()}
    numbers = {name: float(value) for name, value in values.items() if value is not None}
    for name, number in numbers.items():
        if math.isnan(number):
            logger.warning("%s: %s has no value: it is nan", name, where)
    return {name: number for name, number in numbers.items() if not math.isnan(number)}


def open_metrics(
    names: Iterable[str], *, has_truth: bool, options: Mapping[str, Mapping[str, Any]] | None = None
) -> dict[str, Metric]:
    """Metrics by name, ready to use.

    Args:
        options: name -> keywords of its constructor.

    Raises:
        CSDError: a name is unknown, a package or weights are missing, or a metric needs a truth that there is not.
    """
    opened = {}
    for name in names:
        faults = [] if name in METRICS else list(extensions.load())
        if name not in METRICS:
            also = "".join(f"; {fault}" for fault in faults)
            raise CSDError(f"there is no metric {name!r}; there are {', '.join(METRICS)}{also}")
        metric = METRICS[name]
        if metric.needs_truth and not has_truth:
            raise CSDError(f"{metric.title} compares with the truth: give that with --truth, or leave {name} out")
        opened[name] = metric(**(options or {}).get(name, {}))
    return opened
