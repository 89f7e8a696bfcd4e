"""The scores of this package for MMEngine's evaluator."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
from mmengine.evaluator import BaseMetric
from mmengine.logging import print_log

from csd_plugin.errors import CSDError
from csd_plugin.metrics.metric import View, open_metrics, values_of
from csd_plugin.metrics.protocols import score_frame
from csd_plugin.metrics.scores import Scores


class DerainingMetric(BaseMetric):
    """PSNR and SSIM by both protocols (`nturain_y/psnr`, `rgb/ssim` ..) if there is truth, and further metrics.

    Averages over each clip's frames, then over the clips, as in `csd score`. For test sets that give their frames in
    order; several processes share them frame by frame, so metrics of neighbouring frames need a single process.

    Args:
        also: names of `metrics.METRICS`, with the keywords of each: {"lpips": {"weights": ..}, "warping": {}}.

    Raises:
        CSDError: a name is unknown, or a package or weights are missing.
    """

    def __init__(self, also: dict[str, dict[str, Any]] | None = None, **keywords: Any) -> None:
        super().__init__(**keywords)
        options = {name: dict(given or {}) for name, given in (also or {}).items()}
        self._metrics = open_metrics(options, has_truth=True, options=options)
        self._before: tuple[str, int, np.ndarray, np.ndarray] | None = None

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:
        """Score frames.

        Args:
            data_samples: for each frame its `clip`, its `number` in the clip, and its images (H, W, 3) uint8 RGB:
                `result`, `guide`, and `truth` or None.

        Raises:
            CSDError: images cannot be compared; names their clip and frame.
        """
        for sample in data_samples:
            self.results.append((sample["clip"], sample["number"], *self._scores(sample)))

    def compute_metrics(self, results: list[Any]) -> dict[str, float]:
        """The averages; logs a warning if a requested metric has no value."""
        scores = Scores()
        for clip, number, score, metrics in results:
            scores.record(clip, str(number), score, metrics)
        summary = scores.summary()
        missing = [name for name in self._metrics if name not in summary]
        if missing or not any("/" in name for name in summary):
            what = ", ".join(missing) or "PSNR and SSIM"
            print_log(f"No frame has what {what} needs: the truth, or the frame before it.", "current", logging.WARNING)
        return {name: float(value) for name, value in summary.items()}

    def _scores(self, sample: dict[str, Any]) -> tuple[Any, dict[str, float]]:
        clip, number, result, truth = (sample[name] for name in ("clip", "number", "result", "truth"))
        guide = sample["guide"] if truth is None else truth
        previous = self._before[2:] if self._before and self._before[:2] == (clip, number - 1) else (None, None)
        self._before = (clip, number, result, guide)
        view = View(result, truth, guide, *previous)
        try:
            values = values_of(self._metrics, view, f"clip {clip}, frame {number}")
            score = {} if truth is None else score_frame(result, truth)
        except CSDError as error:
            raise CSDError(f"clip {clip}, frame {number}: {error}") from None
        return score, values
