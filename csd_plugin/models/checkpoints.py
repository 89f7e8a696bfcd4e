"""A run's files: networks and states, written completely or not at all, and read by a resumed run."""

from __future__ import annotations

import signal
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from basicsr.data.data_sampler import EnlargedSampler
from basicsr.utils import get_root_logger
from basicsr.utils.dist_util import master_only
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from csd_plugin.archs.checkpoint import entry_name, load_optimizer, load_plain, load_weights, save_plain, weights_in
from csd_plugin.atomic import remove_drafts
from csd_plugin.errors import CSDError, first_line
from csd_plugin.models.resuming import (
    UNREADABLE,
    best_scores,
    by_options,
    changes_of_learning,
    check_form,
    learns_by,
    option_changes,
)
from csd_plugin.models.schedules import ScheduledModel
from csd_plugin.resume_states import saved_states
from csd_plugin.stopping import Stopped


class CheckpointedModel(ScheduledModel):
    """The toolbox's model, for runs that can be interrupted at any moment and continue as if they had not been."""

    scaler: torch.amp.GradScaler
    skipped = 0
    """The number of this run's batches whose loss or gradient was not finite."""
    _position: Tensor | None = None
    """Places of the latest batch's samples in this process's part of the epoch; None if the data set has none."""
    _saved: tuple[int, int] = (-1, -1)
    """Epoch and iteration of the latest saved state."""
    _learns_by = ""
    _taught_by: Mapping[str, str] = {}
    """Label of each teacher -> its `weights_digest`."""

    def init_training_settings(self) -> None:
        self._learns_by = learns_by(self.opt, self._taught_by)
        for key in ("models", "training_states") if self.opt["rank"] == 0 else ():
            remove_drafts(Path(self.opt["path"][key]))
        super().init_training_settings()

    def load_network(
        self, net: nn.Module, load_path: str, strict: bool = True, param_key: str | None = "params"
    ) -> None:
        """Load the weights of any file that `read_state_dict` reads.

        Args:
            net: the network, or a wrapper of it for several processes.
            strict: whether the file must hold all weights; otherwise the missing ones do not change, with a warning.
            param_key: the file's entry; another one if it is missing.

        Raises:
            CSDError: the file cannot be read, or does not fit.
        """
        logger = get_root_logger()
        net = net.module if isinstance(net, (DataParallel, DistributedDataParallel)) else net
        content = load_plain(load_path, "checkpoint")
        state = weights_in(content, str(load_path), param_key, fallback=True)
        missing = load_weights(net, state, source=f"checkpoint {load_path}", strict=strict)
        size = len(net.state_dict())
        entry = entry_name(content, param_key, fallback=True)
        of_file = f"{load_path} ({entry})" if entry else load_path
        logger.info(f"Loaded {size - len(missing)} of {size} tensors of {net.__class__.__name__} from {of_file}.")
        if unused := len(state) - (size - len(missing)):
            logger.warning(f"{load_path} has {unused} tensors more, which {net.__class__.__name__} has no place for.")
        if missing:
            logger.warning(
                f"{load_path} lacks {len(missing)} of them, such as {missing[0]}; these keep their initial values."
            )

    @master_only
    def save_network(self, net, net_label: str, current_iter: int | str, param_key="params") -> None:
        """Write the toolbox's file, first under a temporary name: an interruption leaves no incomplete checkpoint.

        Args:
            net: one network, or a list with one network per key.
            net_label: first part of the file's name, `net_g`.
            current_iter: second part; -1 for `latest`.
            param_key: the entry in the file, or a list of entries.

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

    def save(self, epoch: int, current_iter: int) -> None:
        """Save like the toolbox, which passes -1 at the end of a training.

        Raises:
            CSDError: the training has ended before `train.total_iter`; the state of the last iteration is saved.
        """
        if current_iter == -1:
            self._check_complete()
        self._save(epoch, current_iter)

    def _save(self, epoch: int, current_iter: int) -> None:
        with nullcontext() if self.clock is None else self.clock.saves():
            self.save_files(epoch, current_iter)

    def save_files(self, epoch: int, current_iter: int) -> None:
        """Write networks and state; for -1, the latest networks without a state. Raises CSDError."""
        super().save(epoch, current_iter)

    def _check_complete(self) -> None:
        """Raise CSDError if iterations are missing: the toolbox counts epochs, and regards the last one as the end."""
        done, total = self.iteration, int(self.opt["train"]["total_iter"])
        if done >= total:
            return
        if done and done != self._saved[1]:
            self._save(EnlargedSampler.latest_epoch, done)
        raise CSDError(
            f"datasets.train: training has ended after {done} of {total} iterations, as its epochs are over; start "
            f"with a larger dataset_enlarge_ratio, or resume with the batch_size_per_gpu and dataset_enlarge_ratio "
            f"that the run began with"
        )

    @master_only
    def save_training_state(self, epoch: int, current_iter: int) -> None:
        """Save like the toolbox, but completely or not at all, with all that a resumed run needs. Raises CSDError."""
        if current_iter != -1:
            path = Path(self.opt["path"]["training_states"]) / f"{current_iter}.state"
            save_atomically(self.training_state(epoch, current_iter), path)
            self._saved = (epoch, current_iter)
            self._keep_newest(current_iter)

    def _keep_newest(self, current_iter: int) -> None:
        """Remove files of earlier iterations beyond `logger.keep_checkpoints`, each state before its networks."""
        number = self.opt["logger"].get("keep_checkpoints")
        states = saved_states(Path(self.opt["path"]["training_states"]))
        earlier = [state for state in states if int(state.stem) <= current_iter]
        for state in earlier[number:] if number else []:
            state.unlink(missing_ok=True)
            for network in Path(self.opt["path"]["models"]).glob(f"*_{state.stem}.pth"):
                network.unlink(missing_ok=True)

    def remember_best(self, name: str, current_iter: int | str) -> None:
        """After a validation, save the network if it is the best so far, and the best scores with the state.

        Args:
            name: of the data set that was validated.
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
        if self._saved[1] == current_iter:  # its state was saved before its validation
            self.save_training_state(*self._saved)

    @property
    def samples_done(self) -> int:
        """Samples of the epoch done by all processes together, at equal pace; 0 if the data set has no places."""
        if self._position is None:
            return 0
        world_size = self.opt["world_size"]
        return (int(self._position.max()) // world_size + 1) * world_size

    def training_state(self, epoch: int, current_iter: int) -> dict[str, Any]:
        """The toolbox's entries, and ours: scaler, warm-up, place in the data, best scores."""
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

    def save_and_stop(self, current_iter: int, number: int) -> None:
        """Save the state of this iteration.

        Args:
            number: the signal's.

        Raises:
            Stopped: always.
        """
        self.save(EnlargedSampler.latest_epoch, current_iter)
        if self.opt["dist"]:
            torch.distributed.barrier()  # a process that leaves early would end the others
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
        self._save(-1, -1)
        get_root_logger().info(f"train.max_seconds: ended after iteration {current_iter:,}")
        raise Stopped(0, together=True)

    def resume_training(self, resume_state: dict[str, Any]) -> None:
        """Resume from a saved state.

        The options of optimizer and schedule may have changed since. The learning rate is then what it would be with
        the new options from the start.

        Raises:
            CSDError: the state belongs to another run.
        """
        train, path, done = self.opt["train"], self.opt["path"]["resume_state"], resume_state["iter"]
        self.iteration = done
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
                f"path.resume_state: {path} belongs to another run: {first_line(error)}; "
                f"{self.changed_since(resume_state)}give the options with which it was made, or another name"
            ) from error
        if done >= train["total_iter"]:
            get_root_logger().warning(
                f"{path} is of iteration {done:,}, and train.total_iter is {int(train['total_iter']):,}: nothing is "
                f"left to train; a larger total_iter trains on"
            )
        if relearned:
            get_root_logger().warning(
                f"{path}: options have changed since: {', '.join(relearned)}. The first {done} iterations have learned "
                f"with the earlier ones."
            )
        if changes:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Detected call of `lr_scheduler.step", UserWarning)
                self._replay_rates(done, warmup)
            get_root_logger().warning(
                f"{path}: options have changed since: {', '.join(changes)}. They apply as if set from the start: the "
                f"learning rate of iteration {done} is {self.get_current_learning_rate()[0]:.4g}."
            )

    def changed_since(self, resume_state: Mapping[str, Any]) -> str:
        """The changed options of data, networks and losses, for a message that goes on; empty if none have changed."""
        changes = changes_of_learning(resume_state.get("learns_by"), self._learns_by)
        return f"options have changed since: {', '.join(changes)}; " if changes else ""

    def _is_beyond_the_clock(self, resume_state: Mapping[str, Any]) -> bool:
        """Whether schedules are further than the elapsed share of the time, or, without a clock, than the iterations.

        This happens if `train.max_seconds` was raised or removed.
        """
        if self.clock is None:
            due = resume_state["iter"]
        else:
            due = self.clock.iteration(self.opt["train"]["total_iter"], before=resume_state.get("seconds", 0.0))
        return any(saved.get("last_epoch", 0) > due for saved in resume_state["schedulers"])

    def _resume_rest(self, resume_state: Mapping[str, Any]) -> None:
        """Resume what the toolbox does not know of. Raises one of `UNREADABLE` for what no run has saved."""
        self.skipped = resume_state.get("skipped", 0)
        if self.clock is not None:
            self.clock.resume(resume_state.get("seconds", 0.0))
        if resume_state.get("scaler"):
            self.scaler.load_state_dict(resume_state["scaler"])
        self.best_metric_results = best_scores(resume_state.get("best", {}))
        metric = self.opt.get("logger", {}).get("keep_best")
        if metric and not (Path(self.opt["path"]["models"]) / "net_g_best.pth").is_file():
            for best in self.best_metric_results.values():  # for the networks that are kept from here on
                best.pop(metric, None)


def save_atomically(content: Any, path: Path) -> None:
    """torch.save to a temporary file in the same folder, flushed to the disk, then renamed. Raises CSDError."""
    try:
        save_plain(content, path, synced=True)
    except OSError as error:
        raise CSDError(
            f"{path}: cannot be written ({error.strerror or error}); make room there and resume with --auto_resume"
        ) from error
