"""Stage 1: one network trained with the reconstruction loss alone. Also all that stage 2 shares with it."""

from __future__ import annotations

import signal
import warnings
from collections import OrderedDict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from basicsr.data.data_sampler import EnlargedSampler
from basicsr.models.video_base_model import VideoBaseModel
from basicsr.utils import get_root_logger, set_random_seed
from basicsr.utils.dist_util import master_only
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from csd_plugin import compat, peers
from csd_plugin.archs.checkpoint import load_optimizer, load_weights, read_state_dict, save_plain
from csd_plugin.archs.interface import Interface, interface_of, run_network
from csd_plugin.atomic import remove_drafts
from csd_plugin.data.batches import FEATURE, as_clips, as_float
from csd_plugin.devices import half_precision_warnings, use_channels_last
from csd_plugin.distill.average import decay_at, update_average
from csd_plugin.distill.step_graph import Computed, StepGraph
from csd_plugin.errors import CSDError, first_line
from csd_plugin.losses.ssim import PyramidSSIMLoss
from csd_plugin.models.clock import Clock
from csd_plugin.models.idle_options import idle_options
from csd_plugin.models.resuming import (
    UNREADABLE,
    best_scores,
    by_options,
    changes_of_learning,
    check_form,
    learns_by,
    option_changes,
)
from csd_plugin.models.stopping import REQUEST, Stopped
from csd_plugin.models.validation import ValidationMixin

AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""By the values of `train.autocast`."""
_WHOLE = 0.95
"""Share of a time that counts as all of it."""


class VideoDerainModel(ValidationMixin, VideoBaseModel):
    """Trains and validates `network_g` on clips, called as its `interfaces` say.

    A batch holds `lq` (B, N, 3, H, W) and `gt` (B, L, 3, H, W), the clean frames of the clips' middle, or what
    `as_clips` turns into these; RGB in [0, 1], or bytes. All B*L targets go through the network as one batch.

    An iteration is one batch of the loader and one optimizer step, in however many parts `accumulate` computes it.
    Every loss is a mean over clips, so the parts' gradients, weighted by their numbers of clips, add up to the batch's.

    Args:
        opt: the options of a run. In addition to the toolbox's, `train` may hold `grad_clip`, `autocast`, `compile`,
            `cuda_graph`, `accumulate`, `skip_limit`, `ema_warmup` and `max_seconds`; see `options.TrainSection`.
    """

    features: Mapping[str, Tensor] = {}
    """The teacher's, where they come with the batch; see `data.batches`."""
    _position: Tensor | None = None
    """Places of the latest batch's samples in this process's part of the epoch; None where the data set has none."""
    _saved: tuple[int, int] = (-1, -1)
    """Epoch and iteration of the latest state."""
    step_graph: StepGraph | None = None
    """What records and replays steps, where that is wanted."""
    skipped = 0
    """Batches of this run whose loss or gradient was not finite."""

    schedulers: list[Any]
    _learns_by = ""
    _taught_by: Mapping[str, str] = {}
    """Label of each teacher -> `weights_digest` of it."""

    def init_training_settings(self) -> None:
        train_opt = self.opt["train"]
        self._learns_by = learns_by(self.opt, self._taught_by)
        for line in idle_options(self.opt):
            get_root_logger().warning(line)
        for key in ("models", "training_states") if self.opt["rank"] == 0 else ():
            remove_drafts(Path(self.opt["path"][key]))
        self.grad_clip: float = train_opt.get("grad_clip", 0.0)
        self.accumulate: int = train_opt.get("accumulate", 1)
        self.skip_limit: int = train_opt.get("skip_limit", 10)
        self.autocast_dtype: torch.dtype | None = None
        if train_opt.get("autocast"):
            self.autocast_dtype = AUTOCAST_DTYPES[train_opt["autocast"]]
            for line in half_precision_warnings(self.networks, self.autocast_dtype, self.device):
                get_root_logger().warning(f"train.autocast: {line}")
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=self.autocast_dtype == torch.float16 and self.device.type == "cuda"
        )
        seconds = train_opt.get("max_seconds")
        self.clock = Clock(seconds, self.opt.get("began")) if seconds else None
        super().init_training_settings()
        if train_opt.get("cuda_graph") and self.device.type == "cuda":
            warn = get_root_logger().warning
            self.step_graph = StepGraph(self.optimized_parameters(), lambda line: warn(f"train.cuda_graph: {line}"))
        if self.ema_decay > 0:
            self.lay_out(self.net_g_ema)
        self.compile_for_training(self.get_bare_model(self.net_g))

    @property
    def networks(self) -> list[nn.Module]:
        """The networks that a step runs."""
        return [self.net_g]

    def compile_for_training(self, network: nn.Module) -> None:
        """Compile a network in place if `train.compile` is set; hooks, weights and their names stay as they are."""
        if self.opt["train"].get("compile", False):
            compat.keep_graphs()  # the health monitor goes through one more than once
            network.compile()

    # ------------------------------------------------------------------ training step
    def feed_data(self, data: dict[str, Any]) -> None:
        """Take a batch of the training loader.

        Args:
            data: `lq` and `gt` as `as_clips` takes them; perhaps `key`, the samples' names, and `position`, their
                places in the epoch.

        Raises:
            CSDError: clips that do not fit the network, or that lack a part.
        """
        source = f"datasets.train: {self.opt['datasets']['train'].get('type', 'the loader')}"
        lq, gt = as_clips(data, self.num_frame, source)
        self.lq = as_float(lq.to(self.device, non_blocking=True))
        self.gt = as_float(gt.to(self.device, non_blocking=True))
        self.features = {
            key: value.to(self.device, non_blocking=True) for key, value in data.items() if key.startswith(FEATURE)
        }
        self.sample_names = data.get("key", [])
        self._position = data.get("position")  # may be on a GPU, so that reading it would wait

    @property
    def samples_done(self) -> int:
        """Of the epoch, by all processes, which are equally far; 0 where the data set does not say."""
        if self._position is None:
            return 0
        world_size = self.opt["world_size"]
        return (int(self._position.max()) // world_size + 1) * world_size

    def optimize_parameters(self, current_iter: int) -> None:
        """One optimizer step for the batch of `feed_data`; after a signal, save and stop.

        Args:
            current_iter: from 1.

        Raises:
            CSDError: the loss (with `grad_clip` also the gradient) is not finite, and either the limit of such batches
                is reached or a weight is not finite. This step has changed no weight.
            Stopped: after a signal, or when `train.max_seconds` are over; the state is saved.
        """
        REQUEST.begin_step()
        self._seed_step(current_iter)
        self.optimizer_g.zero_grad()
        logged, losses_finite = self._backward(current_iter)
        if self.grad_clip > 0 and not self.scaler.is_enabled():
            logged["grad_norm"] = self._clip_gradient()
            losses_finite &= torch.isfinite(logged["grad_norm"])
        finite, stop = self._agree(losses_finite)
        if finite and self.grad_clip > 0 and self.scaler.is_enabled():
            self.scaler.unscale_(self.optimizer_g)  # which skips steps that are not finite by itself
            logged["grad_norm"] = self._clip_gradient()
        if finite:
            self.scaler.step(self.optimizer_g)
            self.scaler.update()
            self.after_step()
        else:
            self._skip(logged, current_iter)
        if self.skipped:
            logged["skipped"] = torch.full((), float(self.skipped), device=self.device)  # a copy would wait
        if current_iter % self.opt["logger"]["print_freq"] == 0:  # reading them waits for a GPU
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
        """Compute the gradient of the batch. If a loss of any process is not finite, it is not to be used.

        Returns:
            Losses and scalars to log, means over the clips; whether all losses are finite, which a GPU does not know
            yet.
        """
        given = self.lq, self.gt, self.features
        batch = {"lq": self.lq, "gt": self.gt, **self.features}
        try:
            if self.step_graph is None:
                return self._compute(batch, current_iter)
            key = self.repeats(current_iter)
            return self.step_graph.run(lambda there: self._compute(there, current_iter), batch, key)
        finally:
            self.lq, self.gt, self.features = given

    def repeats(self, current_iter: int) -> Hashable:
        """What this step's losses depend on beside the batch and the weights; None where it is like no other.

        Subclasses with losses of their own say so for these.
        """
        return () if type(self).compute_losses is VideoDerainModel.compute_losses else None

    def _compute(self, batch: Mapping[str, Tensor], current_iter: int) -> Computed:
        """Losses and gradients of a batch, in parts, each of which is `lq`, `gt` and `features` meanwhile."""
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
                if not last:  # the last part's backward adds the gradients of all processes
                    for network in self.synchronised_networks():
                        stack.enter_context(network.no_sync())
                losses, scalars = self.compute_losses(current_iter)
                total = torch.stack(list(losses.values())).sum()
                totals.append(total.detach())
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
        """Whether this holds in all processes, and the signal that any of them has received, or 0. Waits for a GPU."""
        if not self.opt["dist"]:
            return bool(finite), REQUEST.signal
        flags = torch.stack([(~finite).long(), torch.full_like(finite, REQUEST.signal, dtype=torch.int64)])
        torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
        bad, stop = flags.tolist()
        return not bad, stop

    def _skip(self, logged: Mapping[str, Tensor], current_iter: int) -> None:
        """Leave this batch out, with a line in the log and in `skipped.txt`. Raises CSDError at the limit."""
        self.skipped += 1
        bad = [name for name, value in logged.items() if "/" not in name and not torch.isfinite(value).all()]
        losses = [name for name in bad if name != "grad_norm"]  # which is not finite either if a loss is not
        mine, hopeless = self._complaint(losses or bad or ["a loss"], current_iter)

        def of_those_with(names: Sequence[str]) -> list[str]:
            return [line for line in peers.of_all(mine if names else "") if line]

        # of several processes, those whose losses are finite have nothing to say
        lines = of_those_with(losses) or of_those_with(bad) or [mine]
        kept = Path(self.opt["path"]["experiments_root"]) / "skipped.txt"
        if self.opt["rank"] == 0:
            with kept.open("a", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in lines)
        if hopeless or self.skipped > self.skip_limit:
            more = "" if hopeless else f"; {self.skipped} batches, more than train.skip_limit {self.skip_limit}"
            raise CSDError(f"{lines[0]}{more} ({kept})")
        for line in lines:
            get_root_logger().warning(
                f"{line}. The batch is left out ({self.skipped} so far, at most {self.skip_limit})."
            )

    def _complaint(self, names: Sequence[str], current_iter: int) -> tuple[str, bool]:
        """What is not finite in this process's batch, why, and what to do; whether all that follow will be so, too."""
        clips = ", ".join(map(str, self.sample_names)) or "this batch"
        cause, hopeless = self._cause(names)
        return f"iteration {current_iter}: {', '.join(names)} not finite on {clips}: {cause}", hopeless

    def save(self, epoch: int, current_iter: int) -> None:
        with nullcontext() if self.clock is None else self.clock.saves():
            super().save(epoch, current_iter)

    def save_and_stop(self, current_iter: int, number: int) -> None:
        """Save the state of this iteration.

        Args:
            number: of the signal.

        Raises:
            Stopped: always.
        """
        self.save(EnlargedSampler.latest_epoch, current_iter)
        if self.opt["dist"]:
            torch.distributed.barrier()  # who leaves first ends the others
        if self.opt["rank"] == 0:
            state = Path(self.opt["path"]["training_states"]) / f"{current_iter}.state"
            name = signal.Signals(number).name
            get_root_logger().warning(
                f"{name}: stopped after iteration {current_iter}; --auto_resume resumes from {state}"
            )
        raise Stopped(128 + number, together=True)

    def _end_by_the_clock(self, current_iter: int) -> None:
        """Save the state, and the network as the latest, as after the last iteration. Raises Stopped."""
        self.save(EnlargedSampler.latest_epoch, current_iter)
        self.save(-1, -1)
        get_root_logger().info(f"train.max_seconds: ended after iteration {current_iter:,}")
        raise Stopped(0, together=True)

    def _warn_of_time_left(self, clock: Clock, current_iter: int) -> None:
        total = int(self.opt["train"]["total_iter"])
        if current_iter == total and (share := clock.iteration(total) / total) < _WHOLE:
            get_root_logger().warning(
                f"train.max_seconds: all {total:,} iterations were done in {share:.0%} of the time, before the "
                f"learning rate was at the end of its schedule: raise train.total_iter"
            )

    def update_learning_rate(self, current_iter: int, warmup_iter: float = -1) -> None:
        """As the toolbox's. With `train.max_seconds`, schedules follow the share of the time that is over, alone."""
        if self.clock is None or current_iter == 1:
            super().update_learning_rate(current_iter, warmup_iter)
            return
        due = self.clock.iteration(self.opt["train"]["total_iter"])
        for scheduler in self.schedulers:
            for _ in range(due - scheduler.last_epoch):
                scheduler.step()
        with self._schedulers_held():
            super().update_learning_rate(current_iter, warmup_iter)

    @contextmanager
    def _schedulers_held(self) -> Iterator[None]:
        """The toolbox's steps of schedulers inside are none."""
        schedulers, self.schedulers = self.schedulers, []
        try:
            yield
        finally:
            self.schedulers = schedulers

    def _replay_rates(self, done: int, warmup_iter: float) -> None:
        """Bring new schedulers to where they are after this many iterations."""
        if self.clock is None:
            for iteration in range(1, done + 1):
                self.update_learning_rate(iteration, warmup_iter)
            return
        with self._schedulers_held():  # milestones that are passed in the warm-up are lost with it
            for iteration in range(1, int(min(done, warmup_iter)) + 1):
                super().update_learning_rate(iteration, warmup_iter)
        self.update_learning_rate(max(done, 2), warmup_iter)

    def _seed_step(self, current_iter: int) -> None:
        """Seed by the iteration alone, so that a resumed run draws the same random numbers inside its networks."""
        seed, rank = self.opt.get("manual_seed") or 0, self.opt["rank"]
        set_random_seed(int(np.random.default_rng((seed % 2**64, current_iter, rank)).integers(2**31)))

    def compute_losses(self, current_iter: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The weighted terms whose sum is minimised, and further scalars to log."""
        output = self.run_network(self.net_g, self.lq, self.gt.shape[1], self.interface_of(self.net_g))
        return {"l_recon": self.cri_pix(output, self.gt.flatten(0, 1))}, {}

    def run_network(self, network: nn.Module, clips: Tensor, num_target: int, interface: Interface) -> Tensor:
        """`interface.run_network` in the precision of `train.autocast`: (B, N, 3, H, W) -> (B*L, 3, H, W)."""
        return run_network(network, clips, num_target, interface, autocast=self.autocast_dtype)

    def interface_of(self, network: nn.Module) -> Interface:
        """How `network_g`, or its average, is called."""
        return interface_of(self.get_bare_model(network), self.opt.get("interface_g"))

    @property
    def num_frame(self) -> int:
        """Frames of the longest window that a network needs for a target."""
        return self.interface_of(self.net_g).num_frame

    def optimized_parameters(self) -> list[nn.Parameter]:
        return [p for group in self.optimizer_g.param_groups for p in group["params"]]

    def _cause(self, names: Sequence[str]) -> tuple[str, bool]:
        """Why these are not finite, and what to do; and whether all later batches will be like this one."""
        state = self.get_bare_model(self.net_g).state_dict()
        broken = [name for name, value in state.items() if not torch.isfinite(value).all()]
        if broken:
            return f"the weight {broken[0]} is not finite; resume from an earlier checkpoint", True
        if not (torch.isfinite(self.lq).all() and torch.isfinite(self.gt).all()):
            return "the frames hold values that are not finite; check these clips", False
        if list(names) == ["grad_norm"]:
            return "though the loss is; lower train.optim_g.lr or switch train.autocast off", False
        return "lower train.optim_g.lr, set train.grad_clip, or switch train.autocast off", False

    def reduce_loss_dict(self, loss_dict: Mapping[str, Tensor]) -> OrderedDict[str, float]:
        """The toolbox's means over the processes, at the first of them; all numbers come from the device at once."""
        values = torch.stack([value.detach().float().mean() for value in loss_dict.values()])
        if self.opt["dist"]:
            torch.distributed.reduce(values, dst=0)
            if self.opt["rank"] == 0:
                values /= self.opt["world_size"]
        return OrderedDict(zip(loss_dict, values.cpu().tolist(), strict=True))

    def _warn_of_rounding(self, current_iter: int) -> None:
        """Warn if 1 - SSIM is below 0: as SSIM is at most 1, the device has rounded on the way."""
        recon = self.log_dict["l_recon"]
        if recon < 0 and isinstance(self.cri_pix, PyramidSSIMLoss):
            get_root_logger().warning(
                f"iteration {current_iter}: l_recon is {recon:.3g}, and 1 - SSIM cannot be below 0: the device rounds "
                f"float32 (TF32?); the loss teaches wrongly where it is small"
            )

    def _clip_gradient(self) -> Tensor:
        """Clip, and return the norm before."""
        return nn.utils.clip_grad_norm_(self.optimized_parameters(), self.grad_clip)

    # ------------------------------------------------------------------ optimizer, EMA, devices
    def setup_optimizers(self) -> None:
        optim_opt = self.opt["train"]["optim_g"]
        optim_type = optim_opt.pop("type")
        self.optimizer_g = self.get_optimizer(optim_type, self.parameters_to_optimize(), **optim_opt)
        self.optimizers.append(self.optimizer_g)

    def parameters_to_optimize(self) -> list[nn.Parameter]:
        return [p for p in self.net_g.parameters() if p.requires_grad]

    def get_optimizer(self, optim_type: str, params: list[nn.Parameter], lr: float, **kwargs: Any):
        return build_optimizer(optim_type, params, lr=lr, **kwargs)  # BasicSR 1.4.2 itself knows only Adam

    def model_ema(self, decay: float = 0.999) -> None:
        """The toolbox's moving average of the weights at once, with the buffers, which the toolbox leaves out."""
        update_average(self.net_g_ema, self.get_bare_model(self.net_g), decay)

    def model_to_device(self, net: nn.Module, *, in_parts: bool = False) -> nn.Module:
        """As the toolbox's, which assumes a GPU for several processes.

        Args:
            in_parts: whether some passes leave some of its weights unused.
        """
        self.lay_out(net.to(self.device))
        if not self.opt["dist"]:
            return super().model_to_device(net)
        devices = [torch.cuda.current_device()] if self.device.type == "cuda" else None
        in_parts = in_parts or self.opt.get("find_unused_parameters", False)
        return DistributedDataParallel(net, device_ids=devices, find_unused_parameters=in_parts)

    def lay_out(self, network: nn.Module) -> None:
        """Weights as a GPU's 16 bits want them; before what holds on to them, such as DistributedDataParallel."""
        if self.device.type == "cuda" and self.is_train and self.opt["train"].get("autocast"):
            use_channels_last(network)

    # ------------------------------------------------------------------ files
    def load_network(
        self, net: nn.Module, load_path: str, strict: bool = True, param_key: str | None = "params"
    ) -> None:
        """Load the weights of any file that `read_state_dict` reads.

        Args:
            net: the network, or a wrapper of it for several processes.
            strict: whether the file has to hold all weights; else the others stay as they are, with a warning.
            param_key: the file's entry; another one if it is not there.

        Raises:
            CSDError: a file that cannot be read, or does not fit.
        """
        logger = get_root_logger()
        net = net.module if isinstance(net, (DataParallel, DistributedDataParallel)) else net
        state = read_state_dict(load_path, param_key, fallback=True)
        missing = load_weights(net, state, source=f"checkpoint {load_path}", strict=strict)
        size = len(net.state_dict())
        logger.info(f"Loaded {size - len(missing)} of {size} tensors of {net.__class__.__name__} from {load_path}.")
        if missing:
            logger.warning(
                f"{load_path} lacks {len(missing)} of them, such as {missing[0]}; they keep their initial values."
            )

    @master_only
    def save_network(self, net, net_label: str, current_iter: int | str, param_key="params") -> None:
        """Write the toolbox's file, under another name first: an interruption leaves no half-written checkpoint.

        Args:
            net: one network, or a list with one for each key.
            net_label: first part of the file's name, `net_g`.
            current_iter: second part; -1 for `latest`.
            param_key: entry in the file, or a list of them.

        Raises:
            CSDError: the file cannot be written.
        """
        nets, keys = (net, param_key) if isinstance(net, list) else ([net], [param_key])
        content = {
            key: {name: value.cpu().contiguous() for name, value in self.get_bare_model(part).state_dict().items()}
            for part, key in zip(nets, keys, strict=True)
        }
        name = f"{net_label}_{'latest' if current_iter == -1 else current_iter}.pth"
        save_atomically(content, Path(self.opt["path"]["models"]) / name)

    @master_only
    def save_training_state(self, epoch: int, current_iter: int) -> None:
        """As the toolbox's, at once or not at all, with all that a resumed run needs. Raises CSDError."""
        if current_iter != -1:
            path = Path(self.opt["path"]["training_states"]) / f"{current_iter}.state"
            save_atomically(self.training_state(epoch, current_iter), path)
            self._saved = (epoch, current_iter)
            self._keep_newest(current_iter)

    def _keep_newest(self, current_iter: int) -> None:
        """Remove files of earlier iterations beyond `logger.keep_checkpoints`, each state before its networks."""
        number = self.opt["logger"].get("keep_checkpoints")
        states = compat.saved_states(Path(self.opt["path"]["training_states"]))
        earlier = [state for state in states if int(state.stem) <= current_iter]
        for state in earlier[number:] if number else []:
            state.unlink(missing_ok=True)
            for network in Path(self.opt["path"]["models"]).glob(f"*_{state.stem}.pth"):
                network.unlink(missing_ok=True)

    def remember_best(self, name: str, current_iter: int | str) -> None:
        """After a validation, save the network if it is the best so far, and the best scores with the state.

        Args:
            name: of the data set.
        """
        metric = self.opt["logger"].get("keep_best")
        if metric and name == self.opt["datasets"]["val"]["name"]:
            best = self.best_metric_results[name].get(metric)
            if best is None:
                get_root_logger().warning(f"logger.keep_best: {name} has no {metric}, so no best network is kept.")
            elif best[1] == current_iter:
                averaged = getattr(self, "net_g_ema", None)
                networks = [self.net_g] if averaged is None else [self.net_g, averaged]
                self.save_network(networks, "net_g", "best", ["params", "params_ema"][: len(networks)])
        if self._saved[1] == current_iter:  # which was saved before its validation
            self.save_training_state(*self._saved)

    def training_state(self, epoch: int, current_iter: int) -> dict[str, Any]:
        """The toolbox's entries, and those of ours: scaler, warm-up, place in the data, best scores."""
        return {
            "epoch": epoch,
            "iter": current_iter,
            "optimizers": [o.state_dict() for o in self.optimizers],
            "schedulers": [s.state_dict() for s in self.schedulers],
            "scaler": self.scaler.state_dict(),
            "manual_seed": self.opt.get("manual_seed"),
            "learns_by": self._learns_by,
            "samples": self.samples_done,
            "skipped": self.skipped,
            "best": {name: dict(best) for name, best in getattr(self, "best_metric_results", {}).items()},
            "warmup_iter": self.opt["train"].get("warmup_iter", -1),
            "seconds": self.clock.spent if self.clock is not None else 0.0,
        }

    def resume_training(self, resume_state: dict[str, Any]) -> None:
        """Resume from a saved state.

        The options of optimizer and schedule may have changed since. Then the learning rate is what it would be if they
        had been the same from the start.

        Raises:
            CSDError: the state of another run.
        """
        train, path, done = self.opt["train"], self.opt["path"]["resume_state"], resume_state["iter"]
        warmup, changes = train.get("warmup_iter", -1), []
        try:
            if done < train["total_iter"]:
                changes = option_changes(resume_state, self.optimizers, self.schedulers, warmup)
            if self._is_beyond_the_clock(resume_state):
                changes.append("train.max_seconds")
            if changes:
                resume_state = by_options(resume_state, self.optimizers, self.schedulers)
            check_form(resume_state, self.training_state(0, 0), "the state")
            for optimizer, saved in zip(self.optimizers, resume_state["optimizers"], strict=True):
                load_optimizer(optimizer, saved)
            super().resume_training(resume_state)
            self._resume_rest(resume_state)
            relearned = changes_of_learning(resume_state.get("learns_by"), self._learns_by)
        except UNREADABLE as error:
            raise CSDError(
                f"path.resume_state: {path} belongs to another run: "
                f"{first_line(error)}; give the options that it was made with, or another name"
            ) from error
        if relearned:
            get_root_logger().warning(
                f"{path}: options have changed since: {', '.join(relearned)}. The first {done} iterations have learned "
                f"by the earlier ones."
            )
        if changes:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
                self._replay_rates(done, warmup)
            get_root_logger().warning(
                f"{path}: options have changed since: {', '.join(changes)}. They apply as if set from the start: the "
                f"learning rate of iteration {done} is {self.get_current_learning_rate()[0]:.4g}."
            )

    def _is_beyond_the_clock(self, resume_state: Mapping[str, Any]) -> bool:
        """Whether schedules are further than the share of the time that is over; without a clock, than the iterations.

        So it is where `train.max_seconds` grew, or went.
        """
        if self.clock is None:
            due = resume_state["iter"]
        else:
            due = self.clock.iteration(self.opt["train"]["total_iter"], before=resume_state.get("seconds", 0.0))
        return any(saved.get("last_epoch", 0) > due for saved in resume_state["schedulers"])

    def _resume_rest(self, resume_state: Mapping[str, Any]) -> None:
        """What the toolbox does not know of. Raises one of `UNREADABLE` for what no run has saved."""
        self.skipped = resume_state.get("skipped", 0)
        if self.clock is not None:
            self.clock.resume(resume_state.get("seconds", 0.0))
        if resume_state.get("scaler"):
            self.scaler.load_state_dict(resume_state["scaler"])
        self.best_metric_results = best_scores(resume_state.get("best", {}))
        metric = self.opt.get("logger", {}).get("keep_best")
        if metric and not (Path(self.opt["path"]["models"]) / "net_g_best.pth").is_file():
            for best in self.best_metric_results.values():  # of the networks that are kept from here on
                best.pop(metric, None)


def build_optimizer(optim_type: Any, params: list[nn.Parameter], **keywords: Any) -> torch.optim.Optimizer:
    """An optimizer of torch.optim.

    Args:
        optim_type: name of its class.
        keywords: of its constructor, `lr` among them.

    Raises:
        CSDError: no such class, or keywords that it does not take.
    """
    cls = getattr(torch.optim, str(optim_type), None)
    if not (isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer)):
        raise CSDError(f"train.optim_g.type: {optim_type!r} is not in torch.optim; try Adam or AdamW")
    try:
        return cls(params, **keywords)  # type: ignore[call-arg]
    except (TypeError, ValueError, LookupError, ArithmeticError, RuntimeError) as error:
        raise CSDError(f"train.optim_g: {str(error).removeprefix('Optimizer.')}; check its keys") from error


def save_atomically(content: Any, path: Path) -> None:
    """torch.save to a temporary name in the same folder, to the disk, then rename. Raises CSDError."""
    try:
        save_plain(content, path, synced=True)
    except OSError as error:
        raise CSDError(
            f"{path}: cannot be written ({error.strerror or error}); make room there and resume with --auto_resume"
        ) from error
