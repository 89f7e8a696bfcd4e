"""Everything that depends on a version of BasicSR, torchvision or torch, in one place.

`prepare_imports()` must run before BasicSR is imported, in every process; `repair_toolbox()` after it.
Both may be called again. Each repair says what it repairs, and acts only if the fault is present.
"""

from __future__ import annotations

import functools
import http.client
import importlib
import logging
import os
import random
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, multiprocessing

from csd_plugin import peers, resume_states
from csd_plugin.data.stores.lmdb import DATA, environment
from csd_plugin.errors import CSDError, first_line
from csd_plugin.lifeline import lifeline
from csd_plugin.records import Board
from csd_plugin.toolbox_imports import import_torchvision, prepare_imports
from csd_plugin.versions import OPTIONS_OF_TODAY

__all__ = ["import_torchvision", "prepare_imports"]  # as the first repairs, from a module that imports less

_time_left: list[Callable[[], float]] = []
"""The clock of a model whose training has not begun, if it has one."""


def repair_toolbox() -> None:
    """Apply the repairs for everybody who uses our classes, in our launchers and in the toolbox's own train.py.

    Raises CSDError for a toolbox that is too old; a clone has no version that `versions` could check.
    """
    options = importlib.import_module("basicsr.utils.options")
    if not hasattr(options, OPTIONS_OF_TODAY):
        raise CSDError(f"{options.__file__}: this BasicSR is too old (no --force_yml); use 1.4.2 or newer")
    misc = importlib.import_module("basicsr.utils.misc")
    if hasattr(misc.check_resume, "__wrapped__"):
        return
    _sample_by_places()
    _share_stores()
    importlib.import_module("basicsr.data").worker_init_fn = seed_worker  # type: ignore[attr-defined]
    fixed = _resume_saved_networks(misc.check_resume)
    # train.py binds the name from basicsr.utils; if it has done so already, replace it there too
    for module in ("basicsr.utils.misc", "basicsr.utils", "basicsr.train"):
        if module in sys.modules and hasattr(sys.modules[module], "check_resume"):
            sys.modules[module].check_resume = fixed  # type: ignore[attr-defined]


def seed_worker(worker_id: int, num_workers: int, rank: int, seed: int) -> None:
    """Seed a process that loads data, with the toolbox's numbers.

    Where processes are not forked (Windows, macOS, Python 3.14), each unpickles this function. The toolbox's own would
    import all of the toolbox for it, before anything has repaired that import.
    """
    import numpy as np  # here, so that a program without torch is told that torch is what is missing

    own = num_workers * rank + worker_id + seed
    np.random.seed(own)
    random.seed(own)


def _sample_by_places() -> None:
    """Make the toolbox's sampler give `places` instead of indices, for data sets that have them.

    The toolbox itself starts the epoch of a resumed run from the beginning, and its processes draw independently. The
    method is replaced in place, as scripts have bound the class already.
    """
    sampler = importlib.import_module("basicsr.data.data_sampler").EnlargedSampler
    iterate = sampler.__iter__

    @functools.wraps(iterate)
    def __iter__(self: Any) -> Any:
        if not hasattr(self.dataset, "places"):
            return iterate(self)
        return self.dataset.places(epoch=self.epoch, rank=self.rank, world_size=self.num_replicas)

    sampler.__iter__ = __iter__
    set_epoch = sampler.set_epoch

    @functools.wraps(set_epoch)
    def record_epoch(self: Any, epoch: int) -> None:
        sampler.latest_epoch = (
            epoch  # for a model that saves its state when it is stopped: the training loop does not pass it on
        )
        set_epoch(self, epoch)

    sampler.set_epoch = record_epoch


def _share_stores() -> None:
    """Make the toolbox's LMDB reader share open handles, as LMDB cannot open a store twice in a process."""
    lmdb_module = importlib.import_module("lmdb")
    backend = importlib.import_module("basicsr.utils.file_client").LmdbBackend
    init, open_new = backend.__init__, lmdb_module.open

    def open_shared(path: str, *arguments: Any, readonly: bool = False, lock: bool = True, **keywords: Any) -> Any:
        if arguments or not readonly or lock or not (Path(path) / DATA).is_file():
            return open_new(path, *arguments, readonly=readonly, lock=lock, **keywords)
        return environment(Path(path))

    @functools.wraps(init)
    def __init__(self: Any, *arguments: Any, **keywords: Any) -> None:
        lmdb_module.open = open_shared  # type: ignore[attr-defined]
        try:
            init(self, *arguments, **keywords)
        finally:
            lmdb_module.open = open_new  # type: ignore[attr-defined]

    backend.__init__ = __init__


def _resume_saved_networks(check_resume: Any) -> Any:
    """Repair the paths of networks on resume: the toolbox points every network at a saved file, even a frozen teacher
    that was never saved.

    The toolbox changes the entry to be read only from params_ema to params, and for all networks alike. Here a saved
    network is read from params, as any other name could mean its average, and a network that was not saved keeps its
    file and entry.
    """

    @functools.wraps(check_resume)
    def wrapper(opt: dict, resume_iter: int) -> None:
        paths, before = opt["path"], dict(opt["path"])
        check_resume(opt, resume_iter)
        if not paths.get("resume_state"):
            return
        for key in [key for key in opt if key.startswith("network_")]:
            pretrain, param_key = f"pretrain_{key}", f"param_key_{key.removeprefix('network_')}"
            start, resumed = before.get(pretrain), paths.get(pretrain)
            ignored = key in (before.get("ignore_resume_networks") or ())
            there = resumed != start and Path(resumed or "").is_file()
            # every model saves network_g: a missing file must be an error, not a restart from its first weights
            if not ignored and (key == "network_g" or there):
                paths[param_key] = "params"
            elif start is not None:
                paths[pretrain] = start
                if resumed != start:  # the toolbox has just printed that
                    print(f"Set {pretrain} back to {start}, as runs do not save it")
                if param_key in before:
                    paths[param_key] = before[param_key]

    return wrapper


def repair_launch() -> None:
    """Apply the repairs for our launchers.

    Options are read as data only; resume and several processes work without a GPU; batches stay in GPU memory while
    they are read; losses refuse shapes that differ.
    """
    from csd_plugin.options.files import safe_ordered_yaml

    options = importlib.import_module("basicsr.utils.options")
    options.ordered_yaml = safe_ordered_yaml  # type: ignore[attr-defined]
    options.init_dist = init_dist  # type: ignore[attr-defined]
    train = importlib.import_module("basicsr.train")
    train.load_resume_state = resume_states.load_resume_state  # type: ignore[attr-defined]
    train.init_tb_logger = _optional_board(train.init_tb_logger)  # type: ignore[attr-defined]
    train.MessageLogger = _telling_the_time_left(train.MessageLogger)  # type: ignore[attr-defined]
    _record_streams()
    for name, module in list(sys.modules.items()):
        build_loss = getattr(module, "build_loss", None) if name.startswith("basicsr.models.") else None
        if build_loss is not None and not hasattr(build_loss, "__wrapped__"):
            module.build_loss = _checking_shapes(build_loss)  # type: ignore[attr-defined]


def count_down(seconds_left: Callable[[], float] | None) -> None:
    """Let the log of the training that is being built tell this time as left; None: that of the steps that are left."""
    _time_left[:] = [] if seconds_left is None else [seconds_left]


def _telling_the_time_left(message_logger: Any) -> Any:
    """Correct the time left in the log.

    The toolbox counts one step too few, so that its last time left is -1 day, 23:59:59, and does not know of clocks.
    """
    if hasattr(message_logger, "__wrapped__"):
        return message_logger

    class Telling(message_logger):  # type: ignore[misc]
        __wrapped__ = message_logger
        start_time: float
        max_iters: float

        def __init__(self, *given: Any, **keywords: Any) -> None:
            super().__init__(*given, **keywords)
            self.max_iters += 1
            self.seconds_left, _time_left[:] = list(_time_left), []

        def __call__(self, log_vars: dict[str, Any]) -> None:
            counted, done = (self.start_time, self.max_iters), log_vars["iter"]
            for seconds_left in self.seconds_left if done + 1 < self.max_iters else ():
                left = seconds_left() + 0.5  # the toolbox drops parts of a second
                # in the way in which the toolbox counts: one more step, and all of them take this time
                self.start_time, self.max_iters = time.time() - left * (done - self.start_iter + 1), done + 2
            super().__call__(log_vars)
            self.start_time, self.max_iters = counted

    return Telling


def _optional_board(init_tb_logger: Any) -> Any:
    """Let a training go on if its TensorBoard files cannot be written; the toolbox would end it."""
    if hasattr(init_tb_logger, "__wrapped__"):
        return init_tb_logger

    @functools.wraps(init_tb_logger)
    def wrapper(log_dir: str) -> Board:
        return Board(lambda: init_tb_logger(log_dir=log_dir))

    return wrapper


_ONE_SET = "Multiple validation datasets are *only* supported by SRModel."


def keep_quiet_about_sets() -> None:
    """Hide a warning of BasicSR that does not apply: our models take any number of validation sets."""
    log = logging.getLogger("basicsr")
    if _is_news not in log.filters:
        log.addFilter(_is_news)


def _is_news(record: logging.LogRecord) -> bool:
    return record.msg != _ONE_SET


def keep_quiet_about_strides() -> None:
    """Hide a warning of DistributedDataParallel that does not apply: both strides of a 1x1 kernel are one in memory."""
    message = r"Grad strides do not match bucket view strides[\s\S]*?grad\.sizes\(\) = \[\d+, \d+, 1, 1\]"
    warnings.filterwarnings("ignore", message, UserWarning)


@contextmanager
def named_downloads() -> Iterator[None]:
    """Around classes that fetch weights by torch.hub: a failure is one line that says which file, and where to put it.

    Raises:
        CSDError: a missing file cannot be downloaded.
    """
    fetch = torch.hub.download_url_to_file

    def named(url: str, dst: str, *arguments: Any, **keywords: Any) -> None:
        try:
            fetch(url, dst, *arguments, **keywords)
        except (OSError, http.client.HTTPException) as error:
            file = Path(dst)
            raise CSDError(
                f"{file.name} is not in {file.parent}, and cannot be downloaded ({first_line(error)}); get it from "
                f"{url}, and put it there"
            ) from error

    bound: list[Any] = [torch.hub, *filter(None, [sys.modules.get("basicsr.utils.download_util")])]
    for module in bound:
        module.download_url_to_file = named
    try:
        yield
    finally:
        for module in bound:
            module.download_url_to_file = fetch


@contextmanager
def without_log() -> Iterator[None]:
    """Inside, drop what the toolbox's classes log; for classes that are built as a trial.

    Their first message would start the logger before its file is known, and the run would have no log file.
    """
    started = importlib.import_module("basicsr.utils.logger").initialized_logger
    log = logging.getLogger("basicsr")
    before, disabled = dict(started), log.disabled
    started["basicsr"] = log.disabled = True
    try:
        yield
    finally:
        log.disabled = disabled
        started.clear()
        started.update(before)


def _record_streams() -> None:
    """Make the toolbox's CUDAPrefetcher record which streams read its batches.

    It copies batches on a stream of its own, so without the record the memory of a batch could be reused for the next
    one while the step still reads it.
    """
    prefetcher = importlib.import_module("basicsr.data.prefetch_dataloader").CUDAPrefetcher
    following = prefetcher.next
    if hasattr(following, "__wrapped__"):
        return

    @functools.wraps(following)
    def next(self: Any) -> Any:
        batch = following(self)
        for value in (batch or {}).values():
            if torch.is_tensor(value) and value.is_cuda:
                value.record_stream(torch.cuda.current_stream())
        return batch

    prefetcher.next = next


def _checking_shapes(build_loss: Any) -> Any:
    """Make losses refuse different shapes: torch would broadcast them, and so train on the wrong frames unnoticed."""

    def check(loss: torch.nn.Module, arguments: tuple[Any, ...]) -> None:
        shapes = [tuple(argument.shape) for argument in arguments[:2] if isinstance(argument, Tensor)]
        if len(shapes) == 2 and shapes[0] != shapes[1]:
            raise CSDError(
                f"{type(loss).__name__}: the network's output is {shapes[0]}, but the truth is {shapes[1]}; "
                f"{shape_advice(*shapes)}"
            )

    @functools.wraps(build_loss)
    def wrapper(opt: dict) -> torch.nn.Module:
        loss = build_loss(opt)
        loss.register_forward_pre_hook(check)
        return loss

    return wrapper


def shape_advice(output: tuple[int, ...], truth: tuple[int, ...]) -> str:
    """What to do if a model of the toolbox compares an output of one shape with a truth of another."""
    if output[-3:] != truth[-3:]:
        return "check that network_g and the data are of the same scale and colours"
    if len(output) == 4:
        return "it gives one frame per clip: set num_target of datasets.train to 1, or use REDSDataset or a similar set"
    return (
        "it gives all frames of each clip: set num_target of datasets.train to its num_frame, more than 1, or take "
        "REDSRecurrentDataset or a similar set"
    )


@contextmanager
def uncompiled(network: torch.nn.Module) -> Iterator[None]:
    """Inside, run the network uncompiled; torch has no public way to undo `network.compile()`."""
    compiled = getattr(network, "_compiled_call_impl", None)
    network._compiled_call_impl = None
    try:
        yield
    finally:
        network._compiled_call_impl = compiled


def init_dist(launcher: str, backend: str = "nccl", port: int | None = None) -> None:
    """Replaces the toolbox's init_dist, for processes with and without GPUs; from then on they watch each other.

    GPU tensors go through nccl, CPU tensors through gloo, so `num_gpu: 0` also works on machines with GPUs.

    Raises CSDError if the launcher has not set up several processes, or if they cannot connect.
    """
    if launcher == "slurm":
        _take_places_of_slurm(port)
    elif "RANK" not in os.environ:
        raise CSDError(
            "--launcher pytorch is for processes started by torchrun; "
            "use torchrun --nproc_per_node N -m csd_plugin.train .. --launcher pytorch, or leave --launcher out"
        )
    if torch.cuda.is_available():
        if multiprocessing.get_start_method(allow_none=True) is None:
            multiprocessing.set_start_method("spawn")  # workers cannot be forked from a process with a GPU
        local = int(os.environ.get("LOCAL_RANK", os.environ["RANK"]))
        torch.cuda.set_device(local % torch.cuda.device_count())
        backend = "cpu:gloo,cuda:nccl" if backend == "nccl" else backend
    else:
        backend = "gloo"
    try:
        distributed.init_process_group(backend, timeout=peers.TIME_LIMIT)
        peers.watch()
    except (distributed.DistNetworkError, distributed.DistStoreError) as error:
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise CSDError(
            f"rank {os.environ['RANK']}: the processes of this job cannot connect at {place} ({first_line(error)}); "
            f"check that the first host can be reached there"
        ) from error


def _take_places_of_slurm(port: int | None) -> None:
    """Set the environment variables that torch.distributed reads from those that srun sets."""
    slurm = {
        "RANK": "SLURM_PROCID",
        "WORLD_SIZE": "SLURM_NTASKS",
        "LOCAL_RANK": "SLURM_LOCALID",
        "GROUP_RANK": "SLURM_NODEID",
    }
    missing = [name for name in (*slurm.values(), "SLURM_JOB_NODELIST") if name not in os.environ]
    if missing:
        raise CSDError(
            f"--launcher slurm is for processes started by srun, which sets {missing[0]}; use srun python -m "
            f"csd_plugin.train .. --launcher slurm, or torchrun with --launcher pytorch"
        )
    os.environ |= {name: os.environ[theirs] for name, theirs in slurm.items()}
    if port is not None or "MASTER_PORT" not in os.environ:
        os.environ["MASTER_PORT"] = str(port or 29500)  # the default port of torch.distributed
    if "MASTER_ADDR" not in os.environ:
        command = ["scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]]
        try:
            with lifeline() as line_to_us:
                listed = subprocess.run(command, capture_output=True, text=True, check=True, **line_to_us)
            names = listed.stdout.split()
            os.environ["MASTER_ADDR"] = names[0]
        except (OSError, subprocess.CalledProcessError, IndexError) as error:
            raise CSDError("--launcher slurm: scontrol does not name the first host; set MASTER_ADDR to it") from error
