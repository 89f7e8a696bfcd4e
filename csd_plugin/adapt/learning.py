"""Trains the student until the time is over: the learning rate follows the clock, and the best average is kept."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from csd_plugin.adapt.batches import TARGETS, Batch, Batches
from csd_plugin.archs.checkpoint import load_optimizer, load_weights, weights_in
from csd_plugin.archs.interface import interface_of, run_network
from csd_plugin.devices import use_channels_last
from csd_plugin.distill.average import decay_at, update_average
from csd_plugin.distill.step_graph import Computed, StepGraph
from csd_plugin.errors import CSDError, first_line, graphs_apart
from csd_plugin.inference.precision import computes_bf16
from csd_plugin.inference.streaming import ahead
from csd_plugin.losses.ssim import PyramidSSIMLoss

logger = logging.getLogger(__name__)

_LOOKS = 12
"""The number of comparisons of the average with the teacher in the whole time."""
_WARM_UP, _LAST_RATE = 50, 0.01
"""Steps of linear warm-up; the final learning rate as a fraction of the highest."""
_EMA, _GRAD_CLIP = 0.999, 1.0


@dataclass
class Progress:
    """The progress of a run; restored by a resumed run.

    Attributes:
        seconds: of training, including comparisons with the teacher.
        best: PSNR to the teacher of the best average, in dB.
        looked: (seconds, dB) of each comparison.
    """

    step: int = 0
    seconds: float = 0.0
    best: float = -math.inf
    looked: list[tuple[float, float]] = field(default_factory=list)


class Learner:
    """A network that learns from pairs until its time is over.

    Args:
        network: is trained in place.
        rate: the highest learning rate.

    Attributes:
        average: the network with the moving average of its weights.
        best: state dict of the best average so far, on the CPU.
    """

    def __init__(self, network: nn.Module, *, rate: float, device: torch.device) -> None:
        self.network, self.device, self._rate = network.to(device).train(), device, rate
        self._precision = torch.bfloat16 if computes_bf16(device) else None
        if self._precision and device.type == "cuda":
            use_channels_last(self.network)
        self.average = copy.deepcopy(self.network).eval().requires_grad_(False)
        self.best = _detached(self.average)
        self.interface = interface_of(network)
        self.loss = PyramidSSIMLoss(l1_weight=0.5)
        self.optimizer = torch.optim.Adam(self.network.parameters(), rate, betas=(0.9, 0.99), fused=True)
        self.progress = Progress()
        parameters = list(self.network.parameters())
        self._graph = StepGraph(parameters, logger.warning) if device.type == "cuda" else None

    def learn(
        self, batches: Batches, seconds: float, look: Callable[[nn.Module], float], save: Callable[[], object]
    ) -> None:
        """Train until `seconds` have passed, including those of earlier runs.

        Args:
            look: returns the score of the average, higher is better; called a dozen times, and at the end.
            save: called after each look.

        Raises:
            CSDError: a loss or gradient is not finite, or a frame cannot be read.
        """
        coming = ahead(batches.since(self.progress.step), depth=3)
        with _closing(coming), self._bar(seconds) as bar, self._clock() as now:
            while now() < seconds:
                self._step(next(coming), now() / seconds)
                bar.n = min(round(now()), bar.total)
                bar.update(0)
                if now() >= seconds or now() > self._looked_at + seconds / _LOOKS:
                    self._look(look, now, bar)
                    self.progress.seconds = now()
                    save()

    @property
    def _looked_at(self) -> float:
        """When the latest comparison was, also in an earlier run; additional time gets its own comparisons."""
        return self.progress.looked[-1][0] if self.progress.looked else 0.0

    def state(self) -> dict[str, Any]:
        """Everything that a resumed run needs, for torch.save."""
        return {
            "network": self.network.state_dict(),
            "average": self.average.state_dict(),
            "best": self.best,
            "optimizer": self.optimizer.state_dict(),
            "progress": vars(self.progress),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Continue from the result of `state`. Raises CSDError for anything else."""
        for name, network in (("best", self.average), ("average", self.average), ("network", self.network)):
            load_weights(network, weights_in(state.get(name), name), source=name)
            if name == "best":
                self.best = _detached(self.average)
        load_optimizer(self.optimizer, state.get("optimizer"))
        try:
            progress = Progress(**state["progress"])
            progress.looked = [(float(seconds), float(score)) for seconds, score in progress.looked]
            known = progress.step >= 0 and 0 <= progress.seconds < math.inf and not math.isnan(progress.best)
        except (KeyError, TypeError, ValueError) as error:
            raise CSDError(f"its progress cannot be read: {first_line(error)}") from error
        if not (known and isinstance(progress.step, int)):
            raise CSDError("its progress is not that of a run")
        self.progress = progress

    def _step(self, batch: Batch, share: float) -> None:
        """One optimizer step, when this share of the time has passed."""
        progress = self.progress
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate * rate_at(share, progress.step)
        frames = {name: value.to(self.device, non_blocking=True) for name, value in batch._asdict().items()}
        self.optimizer.zero_grad()
        _, finite = self._graph.run(self._compute, frames, key=()) if self._graph else self._compute(frames)
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), _GRAD_CLIP)
        if not finite & torch.isfinite(norm):  # a single check, as it waits for the GPU
            raise CSDError(f"step {progress.step}: loss or gradient is not finite: lower --rate")
        self.optimizer.step()
        progress.step += 1
        update_average(self.average, self.network, decay_at(progress.step, _EMA))

    def _compute(self, frames: dict[str, Tensor]) -> Computed:
        """The gradients of a batch; whether its loss is finite."""
        output = run_network(self.network, frames["rainy"], TARGETS, self.interface, autocast=self._precision)
        loss: Tensor = self.loss(output, frames["clean"].flatten(0, 1))
        with graphs_apart():
            loss.backward()
        return {"loss": loss.detach()}, torch.isfinite(loss.detach())

    def _look(self, look: Callable[[nn.Module], float], now: Callable[[], float], bar: tqdm) -> None:
        score = look(self.average)
        self.progress.looked.append((now(), score))
        if score > self.progress.best:
            self.progress.best, self.best = score, _detached(self.average)
        bar.set_postfix_str(f"{score:.2f} dB to the teacher")

    @contextmanager
    def _clock(self) -> Iterator[Callable[[], float]]:
        """Inside, the seconds of training so far; afterwards they are in `progress`, however it ends."""
        before, began = self.progress.seconds, perf_counter()

        def now() -> float:
            return before + perf_counter() - began

        try:
            yield now
        finally:
            self.progress.seconds = now()

    def _bar(self, seconds: float) -> tqdm:
        shape = "{desc}: {bar}| {remaining} left, {postfix}"
        done = round(self.progress.seconds)
        return tqdm(total=round(seconds), initial=done, desc="student", bar_format=shape, disable=None)


def rate_at(share: float, step: int) -> float:
    """The learning rate as a share of the highest: half a cosine over the time, after some steps of warm-up.

    Args:
        share: of the time that has passed, 0 to 1.
        step: from 0.
    """
    cosine = _LAST_RATE + (1 - _LAST_RATE) * (1 + math.cos(math.pi * min(share, 1.0))) / 2
    return cosine * min((step + 1) / _WARM_UP, 1.0)


def _detached(network: nn.Module) -> dict[str, Tensor]:
    """A copy of its weights, on the CPU, in torch's default memory layout."""
    usual = {"copy": True, "memory_format": torch.contiguous_format}
    return {name: value.detach().to("cpu", **usual) for name, value in network.state_dict().items()}


@contextmanager
def _closing(batches: Iterator[Batch]) -> Iterator[None]:
    """Release the thread that makes batches."""
    try:
        yield
    finally:
        batches.close()  # type: ignore[attr-defined]
