"""Stage 1: one network, trained with only the reconstruction loss. Also everything that stage 2 shares with it."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Hashable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from basicsr.losses import build_loss
from basicsr.utils import get_root_logger, set_random_seed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from csd_plugin import compat, peers
from csd_plugin.archs.interface import Interface, declared_interface, interface_of, run_network
from csd_plugin.data.batches import FEATURE, as_clips, as_float
from csd_plugin.devices import half_precision_warnings, use_channels_last
from csd_plugin.distill.average import decay_at, update_average
from csd_plugin.distill.dry_run import clips_of
from csd_plugin.distill.step_graph import Computed, StepGraph
from csd_plugin.errors import CSDError, first_line, graphs_apart, out_of_memory
from csd_plugin.losses.several import SeveralLosses, total_of
from csd_plugin.losses.ssim import PyramidSSIMLoss
from csd_plugin.models.checkpoints import CheckpointedModel
from csd_plugin.models.idle_options import idle_options, part_warnings
from csd_plugin.models.layers import described, freeze_for_good, frozen_at
from csd_plugin.models.repeating import carry_warnings
from csd_plugin.models.validation import ValidationMixin
from csd_plugin.stopping import REQUEST

AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""By the values of `train.autocast`."""


class VideoDerainModel(ValidationMixin, CheckpointedModel):
    """Trains and validates `network_g` on clips, called according to its interface.

    A batch holds `lq` (B, N, 3, H, W) and `gt` (B, L, 3, H, W), the clean frames in the middle of the clips, or
    anything that `as_clips` converts to these; RGB in [0, 1], or bytes. All B*L targets go through the network as one
    batch.

    An iteration is one batch of the loader and one optimizer step, in however many parts `accumulate` computes it.
    Every loss is a mean over clips, so the gradients of the parts, weighted by their numbers of clips, sum to the
    batch's.

    Args:
        opt: the options of a run. In addition to the toolbox's, `train` may hold `grad_clip`, `autocast`, `compile`,
            `cuda_graph`, `accumulate`, `skip_limit`, `ema_warmup` and `max_seconds`; see `options.TrainSection`.
    """

    features: Mapping[str, Tensor] = {}
    """The teacher's features, if they come with the batch; see `data.batches`."""
    step_graph: StepGraph | None = None
    """Records and replays steps, if requested."""

    def init_training_settings(self) -> None:
        train_opt = self.opt["train"]
        compat.keep_quiet_about_sets()
        bare = self.get_bare_model(self.net_g)
        carried = carry_warnings("network_g", bare, self.interface_of(bare), clips_of(self.opt).size)
        for line in (*idle_options(self.opt), *part_warnings(self.opt, self.net_g), *carried):
            get_root_logger().warning(line)
        for line in described(self.layer_options, bare):
            get_root_logger().info(line)
        self.grad_clip: float = train_opt.get("grad_clip", 0.0)
        self.accumulate: int = train_opt.get("accumulate", 1)
        self.skip_limit: int = train_opt.get("skip_limit", 10)
        self.autocast_dtype: torch.dtype | None = None
        if train_opt.get("autocast"):
            self.autocast_dtype = AUTOCAST_DTYPES[train_opt["autocast"]]
            for line in half_precision_warnings(
                [network for network, _ in self.called.values()], self.autocast_dtype, self.device
            ):
                get_root_logger().warning(f"train.autocast: {line}")
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=self.autocast_dtype == torch.float16 and self.device.type == "cuda"
        )
        self.extra_losses = {
            name: build_loss(content).to(self.device) for name, content in (train_opt.get("extra_opt") or {}).items()
        }
        super().init_training_settings()
        if train_opt.get("cuda_graph") and self.device.type == "cuda":
            warn = get_root_logger().warning
            self.step_graph = StepGraph(self.optimized_parameters(), lambda line: warn(f"train.cuda_graph: {line}"))
        if self.ema_decay > 0:
            self.lay_out(self.net_g_ema)
        self.compile_for_training(self.get_bare_model(self.net_g))

    @property
    def called(self) -> dict[str, tuple[nn.Module, Interface]]:
        """The networks that a step runs, without wrappers, and their interfaces, by the names of their sections."""
        return {"network_g": (self.get_bare_model(self.net_g), self.interface_of(self.net_g))}

    def compile_for_training(self, network: nn.Module) -> None:
        """Compile a network in place if `train.compile` is set; hooks, weights and their names do not change."""
        if self.opt["train"].get("compile", False):
            network.compile()

    # ------------------------------------------------------------------ training step
    def feed_data(self, data: dict[str, Any]) -> None:
        """Take a batch of the training loader.

        Args:
            data: `lq` and `gt` as for `as_clips`; optionally `key`, the samples' names, and `position`, their
                places in the epoch.

        Raises:
            CSDError: clips do not fit the network, or a part is missing.
        """
        source = f"datasets.train: {self.opt['datasets']['train'].get('type', 'the loader')}"
        lq, gt = as_clips(data, self.num_frame, source, scale=self.opt.get("scale", 1))
        self.lq = as_float(lq.to(self.device, non_blocking=True))
        self.gt = as_float(gt.to(self.device, non_blocking=True))
        self.features = {
            key: value.to(self.device, non_blocking=True) for key, value in data.items() if key.startswith(FEATURE)
        }
        self.sample_names = data.get("key", [])
        self._position = data.get("position")  # may be on a GPU, where reading it would wait

    def optimize_parameters(self, current_iter: int) -> None:
        """One optimizer step for the batch of `feed_data`; after a signal, save and stop.

        Args:
            current_iter: from 1.

        Raises:
            CSDError: the loss (with `grad_clip`, also the gradient) is not finite, and the limit of such batches is
                reached, or a weight is not finite. This step has not changed any weight.
            Stopped: after a signal, or when `train.max_seconds` have passed; the state is saved.
        """
        REQUEST.begin_step()
        self._seed_step(current_iter)
        self.optimizer_g.zero_grad()
        logged, losses_finite = self._backward(current_iter)
        for weight in frozen_at(self.layer_options, self.get_bare_model(self.net_g), current_iter):
            weight.grad = None
        if self.grad_clip > 0 and not self.scaler.is_enabled():
            logged["grad_norm"] = self._clip_gradient()
            losses_finite &= torch.isfinite(logged["grad_norm"])
        finite, stop = self._agree(losses_finite)
        if finite and self.grad_clip > 0 and self.scaler.is_enabled():
            self.scaler.unscale_(self.optimizer_g)  # the scaler itself skips steps that are not finite
            logged["grad_norm"] = self._clip_gradient()
        if finite:
            self.scaler.step(self.optimizer_g)
            self.scaler.update()
            self.after_step()
        else:
            self._skip(logged, current_iter)
        if self.skipped:
            logged["skipped"] = torch.full((), float(self.skipped), device=self.device)  # a copy would wait
        if current_iter % self.opt["logger"]["print_freq"] == 0:  # reading them waits for the GPU
            self.log_dict = self.reduce_loss_dict(OrderedDict(logged))
            self._warn_of_rounding(current_iter)
        if finite and self.ema_decay > 0:
            warms_up = self.opt["train"].get("ema_warmup", True)
            self.model_ema(decay_at(current_iter, self.ema_decay) if warms_up else self.ema_decay)
        if stop:
            self.save_and_stop(current_iter, stop)
        if self.clock is not None:
            if self.clock.is_over():
                self._end_by_the_clock(current_iter)
            self._warn_of_time_left(self.clock, current_iter)

    def _backward(self, current_iter: int) -> Computed:
        """Compute the gradient of the batch, which must not be used if a loss is not finite in any process.

        Returns:
            Losses and scalars to log, means over the clips; and whether all losses are finite, which a GPU may not have
            computed yet.
        """
        given = self.lq, self.gt, self.features
        batch = {"lq": self.lq, "gt": self.gt, **self.features}
        try:
            if self.step_graph is None:
                return self._compute(batch, current_iter)
            key = self.repeats(current_iter)
            return self.step_graph.run(lambda there: self._compute(there, current_iter), batch, key)
        except (RuntimeError, TypeError) as error:
            self.lq, self.gt, _ = given
            self._blame_precision(error)
            raise
        finally:
            self.lq, self.gt, self.features = given

    def _blame_precision(self, error: Exception) -> None:
        """Raise CSDError if it is the precision of `train.autocast` in which a network cannot compute this batch."""
        if self.autocast_dtype is None or out_of_memory(error):
            return
        for name, (network, interface) in self.called.items():
            if self._runs(network, interface, None) and not self._runs(network, interface, self.autocast_dtype):
                raise CSDError(
                    f"train.autocast: {name} cannot compute in {self.opt['train']['autocast']} ({first_line(error)}); "
                    f"leave it out, or let the network switch it off around that layer (torch.autocast, enabled=False)"
                ) from error

    @torch.no_grad()
    def _runs(self, network: nn.Module, interface: Interface, dtype: torch.dtype | None) -> bool:
        """Whether a network computes the first clip of the batch in this precision; None for that of its weights."""
        with suppress(RuntimeError, TypeError):
            run_network(network, self.lq[:1], self.gt.shape[1], interface, autocast=dtype)
            return True
        return False

    def repeats(self, current_iter: int) -> Hashable:
        """What this step's losses depend on besides the batch and the weights; None if it is like no other step.

        Subclasses with other losses override this.
        """
        return () if type(self).compute_losses is VideoDerainModel.compute_losses else None

    def _compute(self, batch: Mapping[str, Tensor], current_iter: int) -> Computed:
        """Losses and gradients of a batch, part by part; during a part, `lq`, `gt` and `features` are the part's."""
        lq, gt = batch["lq"], batch["gt"]
        features = {key: value for key, value in batch.items() if key.startswith(FEATURE)}
        count = min(self.accumulate, len(lq))
        split = {key: value.tensor_split(count) for key, value in features.items()}
        parts = list(zip(lq.tensor_split(count), gt.tensor_split(count), strict=True))
        sums: dict[str, Tensor] = {}
        shares: dict[str, float] = {}
        totals = []
        for number, (self.lq, self.gt) in enumerate(parts, start=1):
            self.features = {key: values[number - 1] for key, values in split.items()}
            share, last = len(self.lq) / len(lq), number == len(parts)
            with ExitStack() as stack:
                if not last:  # the backward pass of the last part adds the gradients of all processes
                    for network in self.synchronised_networks():
                        stack.enter_context(network.no_sync())
                losses, scalars = self.compute_losses(current_iter)
                total = torch.stack(list(losses.values())).sum()
                totals.append(total.detach())
                with graphs_apart():
                    self.scaler.scale(total if share == 1 else total * share).backward()
            for name, value in {**losses, **scalars}.items():
                part = value.detach() if count == 1 else value.detach() * share
                sums[name] = sums[name] + part if name in sums else part
                shares[name] = shares.get(name, 0) + share
        means = sums if count == 1 else {name: value / shares[name] for name, value in sums.items()}
        return means, torch.isfinite(torch.stack(totals)).all()

    def after_step(self) -> None:
        """Update what follows the weights without being learned."""

    def synchronised_networks(self) -> list[DistributedDataParallel]:
        """The networks whose gradients are added over all processes during a backward pass."""
        return [self.net_g] if isinstance(self.net_g, DistributedDataParallel) else []

    def _agree(self, finite: Tensor) -> tuple[bool, int]:
        """Whether this holds in all processes, and the signal that any has received, or 0. Waits for the GPU."""
        if not self.opt["dist"]:
            return bool(finite), REQUEST.signal
        flags = torch.stack([(~finite).long(), torch.full_like(finite, REQUEST.signal, dtype=torch.int64)])
        torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
        bad, stop = flags.tolist()
        return not bad, stop

    def _skip(self, logged: Mapping[str, Tensor], current_iter: int) -> None:
        """Skip this batch, with a line in the log and in `skipped.txt`. Raises CSDError at the limit."""
        self.skipped += 1
        bad = [name for name, value in logged.items() if "/" not in name and not torch.isfinite(value).all()]
        losses = [name for name in bad if name != "grad_norm"]  # never finite if a loss is not
        mine, hopeless = self._complaint(losses or bad or ["a loss"], current_iter)

        def of_those_with(names: Sequence[str]) -> list[str]:
            return [line for line in peers.of_all(mine if names else "") if line]

        # processes whose losses are finite have nothing to report
        lines = of_those_with(losses) or of_those_with(bad) or [mine]
        kept = Path(self.opt["path"]["experiments_root"]) / "skipped.txt"
        if self.opt["rank"] == 0:
            with kept.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.writelines(f"{line}\n" for line in lines)
        if hopeless or self.skipped > self.skip_limit:
            more = "" if hopeless else f"; {self.skipped} batches, more than train.skip_limit {self.skip_limit}"
            raise CSDError(f"{lines[0]}{more} ({kept})")
        for line in lines:
            get_root_logger().warning(
                f"{line}. The batch is skipped ({self.skipped} so far, at most {self.skip_limit})."
            )

    def _complaint(self, names: Sequence[str], current_iter: int) -> tuple[str, bool]:
        """What is not finite in this process's batch, why, and what to do; whether all later batches will fail, too."""
        clips = ", ".join(map(str, self.sample_names)) or "this batch"
        cause, hopeless = self._cause(names)
        return f"iteration {current_iter}: {', '.join(names)} not finite on {clips}: {cause}", hopeless

    def _seed_step(self, current_iter: int) -> None:
        """Seed from the iteration only, so that a resumed run draws the same random numbers inside its networks."""
        seed, rank = self.opt.get("manual_seed") or 0, self.opt["rank"]
        set_random_seed(int(np.random.default_rng((seed % 2**64, current_iter, rank)).integers(2**31)))

    def compute_losses(self, current_iter: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The weighted terms whose sum is minimised, and further scalars to log."""
        output = self.run_network(self.net_g, self.lq, self.gt.shape[1], self.interface_of(self.net_g))
        recon, parts = total_of(self.reconstruction(output, self.gt.flatten(0, 1)))
        return {"l_recon": recon}, {f"recon/{name}": part for name, part in parts.items()}

    @functools.cached_property
    def reconstruction(self) -> nn.Module:
        """The loss of `pixel_opt`, or, with `perceptual_opt` or `extra_opt`, all of these by name."""
        named = {"pixel": self.cri_pix, "perceptual": self.cri_perceptual, **self.extra_losses}
        given = {name: loss for name, loss in named.items() if loss is not None}
        return self.cri_pix if list(given) == ["pixel"] else SeveralLosses(given)

    def run_network(self, network: nn.Module, clips: Tensor, num_target: int, interface: Interface) -> Tensor:
        """`interface.run_network` in the precision of `train.autocast`: (B, N, 3, H, W) -> (B*L, 3, H, W)."""
        return run_network(network, clips, num_target, interface, autocast=self.autocast_dtype)

    def interface_of(self, network: nn.Module) -> Interface:
        """How `network_g`, or its average, is called."""
        return interface_of(self.get_bare_model(network), declared_interface(self.opt, "network_g"))

    @property
    def num_frame(self) -> int:
        """Frames of the longest window that any network needs for a target."""
        return self.interface_of(self.net_g).num_frame

    def _cause(self, names: Sequence[str]) -> tuple[str, bool]:
        """Why these are not finite, and what to do; and whether all later batches will fail, too."""
        state = self.get_bare_model(self.net_g).state_dict()
        broken = [name for name, value in state.items() if not torch.isfinite(value).all()]
        if broken:
            return f"the weight {broken[0]} is not finite; resume from an earlier checkpoint", True
        if not (torch.isfinite(self.lq).all() and torch.isfinite(self.gt).all()):
            return "the frames hold values that are not finite; check these clips", False
        if other := self.other_cause():
            return other, False
        if list(names) == ["grad_norm"]:
            return "although the loss is; lower train.optim_g.lr, or switch train.autocast off", False
        return "lower train.optim_g.lr, set train.grad_clip, or switch train.autocast off", False

    def other_cause(self) -> str:
        """What else than weights and frames keeps this batch's loss from being finite; empty where nothing does."""
        return ""

    def reduce_loss_dict(self, loss_dict: Mapping[str, Tensor]) -> OrderedDict[str, float]:
        """The toolbox's means over the processes, on the first one; all numbers are copied from the device together."""
        values = torch.stack([value.detach().float().mean() for value in loss_dict.values()])
        if self.opt["dist"]:
            torch.distributed.reduce(values, dst=0)
            if self.opt["rank"] == 0:
                values /= self.opt["world_size"]
        return OrderedDict(zip(loss_dict, values.cpu().tolist(), strict=True))

    def _warn_of_rounding(self, current_iter: int) -> None:
        """Warn if 1 - SSIM is below 0: as SSIM is at most 1, this shows rounding on the device."""
        recon = self.log_dict["l_recon"]
        if recon < 0 and isinstance(self.cri_pix, PyramidSSIMLoss):
            get_root_logger().warning(
                f"iteration {current_iter}: l_recon is {recon:.3g}, but 1 - SSIM cannot be below 0: the device rounds "
                f"float32 (TF32?); small losses are then wrong: set_float32_matmul_precision('highest') avoids it"
            )

    def _clip_gradient(self) -> Tensor:
        """Clip the gradient, and return its norm before clipping."""
        return nn.utils.clip_grad_norm_(self.optimized_parameters(), self.grad_clip)

    # ------------------------------------------------------------------ average, devices
    def model_ema(self, decay: float = 0.999) -> None:
        """The toolbox's moving average of the weights, updated together, and with the buffers, which it omits."""
        update_average(self.net_g_ema, self.get_bare_model(self.net_g), decay)

    def model_to_device(self, net: nn.Module, *, in_parts: bool = False) -> nn.Module:
        """Like the toolbox's, which assumes a GPU for several processes.

        Args:
            in_parts: whether some passes do not use some of its weights.
        """
        self.lay_out(net.to(self.device))
        if net is getattr(self, "net_g", None) and self.is_train:
            freeze_for_good(self.layer_options, net)
        if not self.opt["dist"]:
            return super().model_to_device(net)
        compat.keep_quiet_about_strides()
        devices = [torch.cuda.current_device()] if self.device.type == "cuda" else None
        in_parts = in_parts or self.opt.get("find_unused_parameters", False)
        return DistributedDataParallel(net, device_ids=devices, find_unused_parameters=in_parts)

    def lay_out(self, network: nn.Module) -> None:
        """Convert weights to the layout for a GPU's 16 bits; before wrappers that refer to them, such as DDP."""
        if self.device.type == "cuda" and self.is_train and self.opt["train"].get("autocast"):
            use_channels_last(network)
