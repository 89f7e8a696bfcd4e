"""Run a config with MMEngine's Runner: train it, resume it, or test one of its checkpoints.

    python -m csd_plugin.integrate.run_mmengine options/mmengine/tiny_csd_cpu.py
    torchrun --nproc_per_node 2 -m csd_plugin.integrate.run_mmengine CONFIG.py --launcher pytorch

Without a GPU, several processes communicate through gloo. They watch each other: if one dies, all end, and name it.
Mistakes are reported in one line, with exit status 2. Ctrl-C and SIGTERM end a training after its step, which is saved.
"""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from csd_plugin import peers
from csd_plugin.distill.processes import are_several
from csd_plugin.errors import CSDError, first_line, one_line, out_of_memory, users_line
from csd_plugin.lifeline import ending, endings_interrupt
from csd_plugin.locks import alone
from csd_plugin.stopping import REQUEST, Stopped
from csd_plugin.weights import find_checkpoint

_OF_CONFIGS = (
    *(SyntaxError, NameError, OSError, ImportError),
    *(LookupError, TypeError, ValueError, AttributeError, AssertionError, RuntimeError),
)
"""What a config raises that cannot be run, in Python or in the classes that it names."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a config.

    Args:
        argv: the command line; by default that of the process.

    Returns:
        The exit status: 0, 2 after one line on stderr, or 128 + the number of the signal that ended it.
    """
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("config", type=Path, help="config file of MMEngine, .py")
    parser.add_argument("--work-dir", help="folder to write to, instead of the config's work_dir")
    parser.add_argument("--resume", action="store_true", help="continue from the last checkpoint in the folder")
    parser.add_argument("--test", metavar="CHECKPOINT", help="score this checkpoint on the config's test set")
    parser.add_argument("--launcher", choices=("none", "pytorch"), default="none", help="pytorch: under torchrun")
    try:
        with ExitStack() as stack:
            stack.push(peers.report)
            stack.enter_context(peers.explained())
            stack.enter_context(endings_interrupt())
            _run(parser.parse_args(argv), stack)
            if are_several():
                gc.collect()  # wrappers for several processes must be deleted before their threads end
                distributed.barrier()  # a process that leaves early may abort the others
    except CSDError as error:
        return _fail(one_line(error))
    except (MemoryError, RuntimeError, OSError) as error:
        if not users_line(error):
            raise
        return _fail(users_line(error))
    except Stopped as stopped:
        return peers.stopped(stopped)
    except KeyboardInterrupt as interrupt:
        number, how = ending(interrupt)
        return _fail(how, 128 + number)
    finally:
        peers.leave()
    return 0


def _run(arguments: argparse.Namespace, locks: ExitStack) -> None:
    # Imported first: it reports missing packages, and repairs torchvision before the Runner imports it.
    import csd_plugin.integrate.mmengine  # noqa: F401

    config = _read(arguments.config)
    for key in ("model", *(("test_dataloader", "test_cfg", "test_evaluator") if arguments.test else ())):
        if config.get(key) is None:
            raise CSDError(
                f"{arguments.config}: {key} is missing; see options/mmengine/tiny_csd_cpu.py for a whole config"
            )
    if arguments.launcher == "pytorch" and "RANK" not in os.environ:
        raise CSDError(
            "--launcher pytorch is for torchrun: torchrun --nproc_per_node 2 -m csd_plugin.integrate.run_mmengine .."
        )
    config.launcher = arguments.launcher
    config.work_dir = arguments.work_dir or config.get("work_dir") or f"work_dirs/{arguments.config.stem}"
    if not arguments.test and (arguments.launcher == "none" or os.environ["RANK"] == "0"):
        locks.enter_context(alone(Path(config.work_dir)))
    if arguments.launcher == "pytorch" and not torch.cuda.is_available():
        distributed.init_process_group("gloo")  # MMEngine would set a CUDA device first
        config.model_wrapper_cfg = {
            "type": "MMDistributedDataParallel",
            "find_unused_parameters": config.get("find_unused_parameters", False),
            **config.get("model_wrapper_cfg", {}),
            "device_ids": None,
        }
    from mmengine.runner import Runner

    from csd_plugin.integrate.mmengine.stopping import StoppingHook

    if arguments.test:
        config.load_from, config.resume = str(find_checkpoint(arguments.test)), False
    else:
        config.resume = arguments.resume or config.get("resume", False)
    with nullcontext() if arguments.test else REQUEST.listening():  # before loaders start workers, which take note
        with _mistakes(arguments.config):
            runner = _built(Runner.from_cfg(config), tests=bool(arguments.test))
        peers.watch("--resume")
        if arguments.test:
            runner.test()
        else:
            runner.register_hook(StoppingHook())
            runner.train()


def _read(path: Path) -> Any:
    from mmengine.config import Config

    if not path.is_file():
        raise CSDError(f"{path} does not exist; check the path")
    try:
        return Config.fromfile(str(path))
    except _OF_CONFIGS as error:
        raise CSDError(f"{path}: cannot be read as a config of MMEngine: {first_line(_origin(error))}") from error


def _origin(error: Exception) -> Exception:
    """Of an import in `custom_imports` that failed, the error of the module itself: MMEngine's names only the list."""
    while isinstance(error, ImportError) and isinstance(earlier := error.__cause__ or error.__context__, Exception):
        error = earlier
    return error


def _built(runner: Any, *, tests: bool) -> Any:
    """The Runner, with the parts built that it would build later, in its own order."""
    if tests:
        _ = runner.test_loop
    elif runner._train_loop is None:
        raise CSDError("train_dataloader, train_cfg and optim_wrapper are missing: there is nothing to train")
    else:
        _ = runner.train_loop
        runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
        _ = runner.val_loop
    return runner


@contextmanager
def _mistakes(path: Path) -> Iterator[None]:
    """What the Runner does not accept of a config is one line."""
    try:
        yield
    except CSDError as error:
        raise CSDError(f"{path}: {one_line(error)}") from error
    except _OF_CONFIGS as error:
        if isinstance(error, OSError) or out_of_memory(error):
            raise
        said = error.args[0] if isinstance(error, KeyError) and error.args else first_line(error)
        raise CSDError(f"{path}: {str(said).split('. ')[0].rstrip('.')}; check the config") from error


def _fail(message: str, status: int = 2) -> int:
    peers.fail(message)
    return status


if __name__ == "__main__":
    sys.exit(main())
