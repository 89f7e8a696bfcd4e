"""A distilled student as a model of MMEngine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

from csd_plugin.archs.checkpoint import load_weights, read_state_dict
from csd_plugin.archs.interface import Interface, interface_of, run_network
from csd_plugin.distill.distiller import Compared, Distiller, Teacher, adapted
from csd_plugin.distill.dry_run import Clips
from csd_plugin.distill.settings import teacher_shares
from csd_plugin.errors import CSDError
from csd_plugin.integrate.mmengine.registries import build, plain
from csd_plugin.losses.several import SeveralLosses
from csd_plugin.metrics.protocols import to_uint8
from csd_plugin.weights import find_checkpoint

PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}
STUDENT = "distiller.student."
"""The prefix of the student's weights in a checkpoint of MMEngine."""


class CSDDistiller(BaseModel):
    """A `distill.Distiller` for MMEngine's loops; needs `DistillHook` in `custom_hooks`.

    Args:
        student: a network's `type` and keywords; `checkpoint`, a file of any framework or the name of a shipped
            network; `interface` (`num_frame`, `layout`, `feature`, `scale`) if the class does not state it; `layers` to
            compare.
        teachers: label -> the same, with `share`, its weight among several. None: the student learns only from the
            truth, which is also how teachers are trained.
        objective: its `type` and keywords; each teacher has its own.
        weights: term -> a number or a schedule.
        pixel_loss: the reconstruction loss, of (B, 3, H, W) twice.
        extra_losses: name -> a further one to add, logged as `recon/NAME`.
        adapters: see `distill.adapters.ADAPTERS`.
        precision: `bf16` or `fp16` only for the networks, also on a CPU; None leaves it to the optimizer's wrapper.
        examine_every: iterations between two examinations of whether the terms teach; 0 for none.

    Raises:
        CSDError: parts do not go together, or checkpoints do not fit.
    """

    def __init__(
        self,
        student: Mapping[str, Any],
        teachers: Mapping[str, Mapping[str, Any]] | None = None,
        objective: Mapping[str, Any] | None = None,
        weights: Mapping[str, Any] | None = None,
        pixel_loss: Mapping[str, Any] | None = None,
        *,
        extra_losses: Mapping[str, Mapping[str, Any]] | None = None,
        adapters: Sequence[str] = (),
        precision: str | None = None,
        examine_every: int = 100,
        **keywords: Any,
    ) -> None:
        super().__init__(**keywords)
        if teachers and not (objective and weights):
            raise CSDError("model: teachers are given; give `objective` and `weights` too, such as dict(type='CSD')")
        if precision is not None and precision not in PRECISIONS:
            raise CSDError(f"model.precision is {precision!r}; give {' or '.join(PRECISIONS)}, or leave it out")
        self.iteration: int | None = None  # set by the hook
        ours = _network(_section(student, "model.student"), "model.student")
        named = _section(teachers or {}, "model.teachers")
        of_teachers = {label: _section(content, f"model.teachers.{label}") for label, content in named.items()}
        shares = {label: content.pop("share", 1.0) for label, content in of_teachers.items()}
        built = []
        for label, share in teacher_shares(shares, shares).items() if shares else ():
            theirs = _network(of_teachers[label], f"model.teachers.{label}", frozen=True)
            compared = build(plain(objective), "model.objective")
            if adapters:
                frames = max(ours.interface.num_frame, theirs.interface.num_frame)
                clips = Clips(batch=1, num_frame=frames, num_target=1, size=128)
                compared = adapted(compared, adapters, student=ours, teacher=theirs, clips=clips)
            built.append(Teacher(theirs.network, compared, label=label, share=share, **_how(theirs)))
        recon: nn.Module = build(plain(pixel_loss) or {"type": "PyramidSSIMLoss"}, "model.pixel_loss")
        if extra_losses:
            if not isinstance(extra_losses, Mapping):
                raise CSDError(f"model.extra_losses is a {type(extra_losses).__name__}; give dict(NAME=dict(type=..))")
            if "pixel" in extra_losses:
                raise CSDError("model.extra_losses.pixel: pixel is model.pixel_loss; give it another name")
            extra = {name: build(plain(of), f"model.extra_losses.{name}") for name, of in extra_losses.items()}
            recon = SeveralLosses({"pixel": recon, **extra})
        self.distiller = Distiller(
            ours.network,
            built,
            recon,
            weights=plain(weights) or {},
            autocast=PRECISIONS[precision] if precision else None,
            examine_every=examine_every,
            **_how(ours),
        )

    def forward(self, lq: Tensor | None = None, gt: Tensor | None = None, mode: str = "tensor", **names: Any) -> Any:
        """MMEngine's entry point.

        Args:
            lq: clips (B, N, 3, H, W) for `loss`, else windows (B, T, 3, H, W); RGB in [0, 1].
            gt: the clean frames of their middle, (B, L, 3, H, W) or (B, 3, H, W).
            mode: `loss`, `predict` or `tensor`.
            names: `folder` and `idx` of each window, for `predict`.

        Returns:
            For `loss`, the named losses and scalars of the batch; for `predict`, the input of `DerainingMetric` for
            each window; for `tensor`, the frames (B, 3, H, W).

        Raises:
            CSDError: there are no clips, lists instead of tensors, or clips do not fit the networks.
        """
        if lq is None:
            raise CSDError(
                f"a batch has {', '.join(sorted(names)) or 'nothing'}, but no lq: let collate_fn give lq and gt, as in "
                f"docs/mmengine.md, or use a data set of csd"
            )
        if isinstance(lq, list):
            raise CSDError("the loader gives lists: set collate_fn=dict(type='default_collate') in every loader")
        if mode == "loss":
            return self._losses(lq, gt)
        output = run_network(self.distiller.student, lq, 1, self.distiller.interface)
        if mode == "tensor":
            return output
        return [
            {
                "clip": clip,
                "number": int(number.partition("/")[0]),
                "result": to_uint8(frame),
                "truth": None if gt is None else to_uint8(gt[i]),
                "guide": to_uint8(lq[i, lq.shape[1] // 2]),
            }
            for i, (clip, number, frame) in enumerate(zip(names["folder"], names["idx"], output, strict=True))
        ]

    def _losses(self, lq: Tensor, gt: Tensor | None) -> dict[str, Tensor]:
        if self.iteration is None:
            raise CSDError("CSDDistiller needs its hook: custom_hooks = [dict(type='csd.DistillHook')]")
        losses, scalars = self.distiller({"lq": lq, "gt": gt}, self.iteration)
        return {name.replace("l_", "loss_", 1): loss for name, loss in losses.items()} | scalars

    def parse_losses(self, losses: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The sum of the weighted losses, by their names; MMEngine's would add every scalar with "loss" in its name.

        Raises CSDError if it is not finite, before any weight is changed.
        """
        total = sum((losses[name] for name in ("loss_recon", "loss_distill") if name in losses), torch.zeros(()))
        if not torch.isfinite(total):
            raise CSDError(
                f"iteration {self.iteration}: the loss is not finite; lower the learning rate, clip the gradient "
                f"(optim_wrapper.clip_grad), or train in float32"
            )
        return total, {"loss": total, **losses}


def _section(content: Any, where: str) -> dict[str, Any]:
    """A part of the config. Raises CSDError if it is no dict."""
    if not isinstance(content, Mapping):
        raise CSDError(f"{where} is {content!r:.60}: give a dict, see options/mmengine")
    return plain(content)


def _network(content: dict[str, Any], where: str, *, frozen: bool = False) -> Compared:
    """A network with its weights, its interface, and its layers to compare."""
    checkpoint, declared, layers = (content.pop(key, None) for key in ("checkpoint", "interface", "layers"))
    network: nn.Module = build(content, where)
    if checkpoint is None and frozen:
        raise CSDError(f"{where}.checkpoint is missing: name a file, or a shipped network such as wide")
    try:
        if checkpoint is not None:
            path = find_checkpoint(str(checkpoint))
            load_weights(network, read_state_dict(path), source=f"checkpoint {path}")
        interface: Interface = interface_of(network, declared)
    except CSDError as error:
        raise CSDError(f"{where}: {error}") from error
    return Compared(network.eval().requires_grad_(False) if frozen else network, interface, layers)


def _how(part: Compared) -> dict[str, Any]:
    return {"interface": part.interface, "layers": part.layers}
