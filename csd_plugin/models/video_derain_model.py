"""Stage 1: one network trained with the reconstruction loss alone. Also all that stage 2 shares with it."""

from __future__ import annotations

import io
import signal
import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from basicsr.data.data_sampler import EnlargedSampler
from basicsr.models.video_base_model import VideoBaseModel
from basicsr.utils import get_root_logger, set_random_seed
from basicsr.utils.dist_util import master_only
from torch import Tensor, nn
from torch._functorch import config as functorch_config
from torch.nn.parallel import DataParallel, DistributedDataParallel

from csd_plugin import compat
from csd_plugin.archs.checkpoint import load_weights, read_state_dict
from csd_plugin.archs.interface import Interface, interface_of, run_network
from csd_plugin.atomic import remove_drafts, replacing
from csd_plugin.data.batches import as_clips, as_float
from csd_plugin.devices import half_precision_warnings, use_channels_last
from csd_plugin.distill.average import average_warnings, decay_at, update_average
from csd_plugin.errors import CSDError
from csd_plugin.losses.ssim import PyramidSSIMLoss
from csd_plugin.models.clock import Clock
from csd_plugin.models.resuming import by_options, option_changes
from csd_plugin.models.stopping import REQUEST, Stopped
from csd_plugin.models.validation import ValidationMixin

AUTOCAST_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


class VideoDerainModel(ValidationMixin, VideoBaseModel):
    """Trains and validates `network_g` on clips, called as its `interfaces` say.

    A batch holds `lq` (B, N, 3, H, W) and `gt` (B, L, 3, H, W), the targets of the clip's middle, or what `as_clips`
    makes such. All B*L targets go through the network as one batch. Options of its own, all in `train`:
    `grad_clip` (largest gradient norm, 0 for none), `autocast` (bf16 or fp16 around the networks; losses stay in
    float32), `compile` (the networks by torch.compile; the average that is validated, and what is saved, are not),
    `accumulate` (parts in which a batch goes through the networks) and `skip_limit`. An iteration is always one batch
    of the loader and one optimizer step, in however many parts: schedules, average, checkpoints and data do not see
    them. Every loss is a mean over clips, so the parts' gradients, weighted by their clips, add to the batch's.
    """

    _position: Tensor | None = None
    """Of the samples of the latest batch in this process's part of the epoch; None where the data set does not say."""
    _saved: tuple[int, int] = (-1, -1)
    """Epoch and iteration of the latest state."""
    skipped = 0
    """Batches of this run whose loss or gradient was not finite."""

    def init_training_settings(self) -> None:
        train_opt = self.opt["train"]
        for line in average_warnings(train_opt):
            get_root_logger().warning(line)
        for key in ("models", "training_states") if self.opt["rank"] == 0 else ():
            remove_drafts(Path(self.opt["path"][key]))
        self.grad_clip: float = train_opt.get("grad_clip", 0.0)
        self.accumulate: int = train_opt.get("accumulate", 1)
        self.skip_limit: int = train_opt.get("skip_limit", 10)
        self.autocast_dtype: torch.dtype | None = None
        if train_opt.get("autocast"):
            self.autocast_dtype = AUTOCAST_DTYPES[train_opt["autocast"]]
            if self.device.type == "cpu":
                compat.repair_bf16_conv3d()
            for line in half_precision_warnings(self.networks, self.autocast_dtype, self.device):
                get_root_logger().warning(f"train.autocast: {line}")
        self.scaler = torch.amp.GradScaler(
            self.device.type, enabled=self.autocast_dtype == torch.float16 and self.device.type == "cuda"
        )
        seconds = train_opt.get("max_seconds")
        self.clock = Clock(seconds, self.opt.get("began")) if seconds else None
        super().init_training_settings()
        if self.ema_decay > 0:
            self.lay_out(self.net_g_ema)
        self.compile_for_training(self.get_bare_model(self.net_g))

    @property
    def networks(self) -> list[nn.Module]:
        """All that a step runs."""
        return [self.net_g]

    def compile_for_training(self, network: nn.Module) -> None:
        """Where `train.compile` says so, in place: hooks, weights and their names stay what they are."""
        if self.opt["train"].get("compile", False):
            functorch_config.donated_buffer = False  # the health monitor goes through a graph more than once
            network.compile()

    # ------------------------------------------------------------------ training step
    def feed_data(self, data: dict[str, Any]) -> None:
        source = f"datasets.train: {self.opt['datasets']['train'].get('type', 'the loader')}"
        lq, gt = as_clips(data, self.num_frame, source)
        self.lq = as_float(lq.to(self.device, non_blocking=True))
        self.gt = as_float(gt.to(self.device, non_blocking=True))
        self.sample_names = data.get("key", [])
        self._position = data.get("position")  # may be on a GPU, so that reading it would wait

    @property
    def samples_done(self) -> int:
        """Of the epoch, by all processes, which are equally far; 0 where the data set does not say."""
        world_size = self.opt["world_size"]
        return 0 if self._position is None else (int(self._position.max()) // world_size + 1) * world_size

    def optimize_parameters(self, current_iter: int) -> None:
        """One optimizer step for the batch of `feed_data`, then, where a signal has asked for it, save and stop.

        Raises:
            CSDError: the loss is not finite, or with grad_clip the gradient, and the limit of such batches is reached
                or a weight is not finite either; this step has touched no weight.
            Stopped: after a signal; the state is saved.
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
            logged["skipped"] = torch.tensor(float(self.skipped), device=self.device)
        if current_iter % self.opt["logger"]["print_freq"] == 0:  # reading them waits for a GPU
            self.log_dict = self.reduce_loss_dict(OrderedDict(logged))
            self._warn_of_rounding(current_iter)
        if finite and self.ema_decay > 0:
            warms_up = self.opt["train"].get("ema_warmup", True)
            self.model_ema(decay_at(current_iter, self.ema_decay) if warms_up else self.ema_decay)
        if stop:
            self.save_and_stop(current_iter, stop)
        if self.clock is not None and self.clock.is_over():
            self._end_by_the_clock(current_iter)

    def _backward(self, current_iter: int) -> tuple[dict[str, Tensor], Tensor]:
        """The gradient of the batch, in parts.

        Returns the losses and scalars to log, means over the clips; and whether all losses are finite, which a GPU does
        not know yet.
        """
        lq, gt = self.lq, self.gt
        count = min(self.accumulate, len(lq))
        parts = list(zip(lq.tensor_split(count), gt.tensor_split(count), strict=True))
        sums: dict[str, Tensor] = {}
        shares: dict[str, float] = {}
        totals = []
        for number, (self.lq, self.gt) in enumerate(parts, start=1):
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
        self.lq, self.gt = lq, gt
        means = sums if count == 1 else {name: value / shares[name] for name, value in sums.items()}
        return means, torch.isfinite(torch.stack(totals)).all()

    def after_step(self) -> None:
        """What follows the weights without being learned."""

    def synchronised_networks(self) -> list[DistributedDataParallel]:
        """What adds its gradients over the processes when a backward passes it."""
        return [self.net_g] if isinstance(self.net_g, DistributedDataParallel) else []

    def _agree(self, finite: Tensor) -> tuple[bool, int]:
        """Whether this holds in all processes, and the signal that any has received; a step's only wait for a GPU."""
        if not self.opt["dist"]:
            return bool(finite), REQUEST.signal
        flags = torch.stack([(~finite).long(), torch.full_like(finite, REQUEST.signal, dtype=torch.int64)])
        torch.distributed.all_reduce(flags, torch.distributed.ReduceOp.MAX)
        bad, stop = flags.tolist()
        return not bad, stop

    def _skip(self, logged: Mapping[str, Tensor], current_iter: int) -> None:
        """Leave this batch out, and say so, in the log and in `skipped.txt`; raise CSDError at the limit."""
        self.skipped += 1
        names = [name for name, value in logged.items() if not torch.isfinite(value).all()] or ["a loss"]
        names = [name for name in names if name != "grad_norm"] or names  # that follows from a loss
        clips = ", ".join(map(str, self.sample_names)) or "this batch"
        cause, hopeless = self._cause(names)
        line = f"iteration {current_iter}: {', '.join(names)} not finite on {clips}: {cause}"
        kept = Path(self.opt["path"]["experiments_root"]) / f"skipped{self.opt['rank'] or ''}.txt"
        with kept.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
        if hopeless or self.skipped > self.skip_limit:
            more = "" if hopeless else f"; {self.skipped} batches, more than train.skip_limit {self.skip_limit}"
            raise CSDError(f"{line}{more} ({kept})")
        get_root_logger().warning(f"{line}. The batch is left out: {self.skipped} so far, {self.skip_limit} may be.")

    def save(self, epoch: int, current_iter: int) -> None:
        with nullcontext() if self.clock is None else self.clock.saves():
            super().save(epoch, current_iter)

    def save_and_stop(self, current_iter: int, number: int) -> None:
        """Save all of this iteration, and raise Stopped."""
        self.save(EnlargedSampler.latest_epoch, current_iter)
        if self.opt["dist"]:
            torch.distributed.barrier()  # who leaves first ends the others
        if self.opt["rank"] == 0:
            state = Path(self.opt["path"]["training_states"]) / f"{current_iter}.state"
            name = signal.Signals(number).name
            get_root_logger().warning(
                f"{name}: stopped after iteration {current_iter}; --auto_resume resumes from {state}"
            )
        raise Stopped(128 + number)

    def _end_by_the_clock(self, current_iter: int) -> None:
        """As after the last iteration: all is saved, and the network as the latest."""
        self.save(EnlargedSampler.latest_epoch, current_iter)
        self.save(-1, -1)
        get_root_logger().info(f"train.max_seconds: ended after iteration {current_iter:,}")
        raise Stopped(0)

    def update_learning_rate(self, current_iter: int, warmup_iter: float = -1) -> None:
        """The toolbox's; by the clock, schedules are as far in `total_iter` as the run is in its time."""
        if self.clock is not None and current_iter > 1:
            due = self.clock.iteration(self.opt["train"]["total_iter"])
            for scheduler in self.schedulers:
                for _ in range(due - scheduler.last_epoch - 1):
                    scheduler.step()
        super().update_learning_rate(current_iter, warmup_iter)

    def _seed_step(self, current_iter: int) -> None:
        """Random numbers inside a network depend on the step, not on how the run came to it."""
        seed, rank = self.opt.get("manual_seed") or 0, self.opt["rank"]
        set_random_seed(int(np.random.default_rng((seed % 2**64, current_iter, rank)).integers(2**31)))

    def compute_losses(self, current_iter: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The weighted terms whose sum is minimised, and scalars to log beside them."""
        output = self.run_network(self.net_g, self.lq, self.gt.shape[1], self.interface_of(self.net_g))
        return {"l_recon": self.cri_pix(output, self.gt.flatten(0, 1))}, {}

    def run_network(self, network: nn.Module, clips: Tensor, num_target: int, interface: Interface) -> Tensor:
        """The middle L frames of clips (B, N, 3, H, W) by a network of this interface -> (B*L, 3, H, W)."""
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
        """Why these are not finite, and what to do; and whether all that follow will be so, too."""
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
        """SSIM is at most 1, so that 1 - SSIM below 0 is numbers that were rounded on the way."""
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
        """The toolbox's moving average of the weights in one go, and the buffers, which it leaves out."""
        update_average(self.net_g_ema, self.get_bare_model(self.net_g), decay)

    def model_to_device(self, net: nn.Module, *, in_parts: bool = False) -> nn.Module:
        """The toolbox's, which assumes a GPU under DDP.

        in_parts: not every pass uses all weights of it.
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
        """Weights of any file that `read_state_dict` reads; the entry `param_key` if it is there, else another."""
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
        """The toolbox's file, written beside and renamed: an interrupted run leaves no half-written checkpoint.

        current_iter: of the name; -1 for `latest`.
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
        """As the toolbox's, atomic, and with what else a resumed run needs."""
        if current_iter != -1:
            path = Path(self.opt["path"]["training_states"]) / f"{current_iter}.state"
            save_atomically(self.training_state(epoch, current_iter), path)
            self._saved = (epoch, current_iter)
            self._keep_newest(current_iter)

    def _keep_newest(self, current_iter: int) -> None:
        """Remove the sets of files of earlier iterations beyond `logger.keep_checkpoints`: first what is resumed."""
        number = self.opt["logger"].get("keep_checkpoints")
        states = compat.saved_states(Path(self.opt["path"]["training_states"]))
        earlier = [state for state in states if int(state.stem) <= current_iter]
        for state in earlier[number:] if number else []:
            state.unlink(missing_ok=True)
            for network in Path(self.opt["path"]["models"]).glob(f"*_{state.stem}.pth"):
                network.unlink(missing_ok=True)

    def remember_best(self, name: str, current_iter: int | str) -> None:
        """After a validation: save the network where it is the best so far, and the best scores with the state."""
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
        """The toolbox's entries, and what else goes on: scaler, warm-up, place in the data, best scores."""
        return {
            "epoch": epoch,
            "iter": current_iter,
            "optimizers": [o.state_dict() for o in self.optimizers],
            "schedulers": [s.state_dict() for s in self.schedulers],
            "scaler": self.scaler.state_dict(),
            "manual_seed": self.opt.get("manual_seed"),
            "samples": self.samples_done,
            "skipped": self.skipped,
            "best": {name: dict(best) for name, best in getattr(self, "best_metric_results", {}).items()},
            "warmup_iter": self.opt["train"].get("warmup_iter", -1),
            "seconds": self.clock.spent if self.clock is not None else 0.0,
        }

    def resume_training(self, resume_state: dict[str, Any]) -> None:
        """Go on from a saved state, by the options of now: those of optimizer and schedule may have changed.

        Where they have, the learning rate is what it would be if they had been so from the start.
        """
        train, path, done = self.opt["train"], self.opt["path"]["resume_state"], resume_state["iter"]
        warmup, changes = train.get("warmup_iter", -1), []
        try:
            if done < train["total_iter"]:
                changes = option_changes(resume_state, self.optimizers, self.schedulers, warmup)
            if changes:
                resume_state = by_options(resume_state, self.optimizers, self.schedulers)
            super().resume_training(resume_state)
        except (ValueError, AssertionError) as error:
            raise CSDError(
                f"path.resume_state: {path} belongs to another run: "
                f"{str(error).splitlines()[0]}; give the options that it was made with, or another name"
            ) from error
        if changes:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
                for iteration in range(1, done + 1):
                    self.update_learning_rate(iteration, warmup_iter=warmup)
            get_root_logger().warning(
                f"{path}: options have changed since: {', '.join(changes)}. They apply as if set from the start: the "
                f"learning rate of iteration {done} is {self.get_current_learning_rate()[0]:.4g}."
            )
        self.skipped = resume_state.get("skipped", 0)
        if self.clock is not None:
            self.clock.resume(resume_state.get("seconds", 0.0))
        if resume_state.get("scaler"):
            self.scaler.load_state_dict(resume_state["scaler"])
        self.best_metric_results = {name: dict(best) for name, best in resume_state.get("best", {}).items()}


def build_optimizer(optim_type: Any, params: list[nn.Parameter], **keywords: Any) -> torch.optim.Optimizer:
    """Any optimizer of torch.optim by its name and keywords. Raises CSDError."""
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
        # By way of memory: where a write fails in the middle, torch's writer ends the whole process.
        file = io.BytesIO()
        torch.save(content, file)
        with replacing(path, synced=True) as draft:
            draft.write_bytes(file.getbuffer())
    except OSError as error:
        raise CSDError(
            f"{path}: cannot be written ({error.strerror or error}); make room there and resume with --auto_resume"
        ) from error
