"""The training state that a run resumes from: found, checked and loaded, with the networks that were saved with it."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from csd_plugin import peers
from csd_plugin.archs.checkpoint import load_plain
from csd_plugin.errors import CSDError

_NEVER_REACHED = 10**12
"""The largest number of iterations, epochs or samples of an epoch."""
_SEEDS = 2**32
"""Seeds are smaller: numpy's bound."""


def load_resume_state(opt: dict) -> dict | None:
    """Replaces the toolbox's function, which needs a GPU: this one loads the state to the CPU, and as data only.

    A state of another experiment starts a new experiment from the networks that were saved with it.

    Raises:
        CSDError: the state file does not exist, cannot be read or is not a training state, or its networks are missing.
    """
    from basicsr.utils import check_resume, set_random_seed

    content = opt["datasets"]["train"]
    content["manual_seed"] = opt["manual_seed"]
    path, damage = peers.of_the_first(find_resume_state(opt))
    for line in damage if opt["rank"] == 0 else []:
        print(f"warning: {line}; resuming from {path}", file=sys.stderr, flush=True)
    if path is None:
        if opt["auto_resume"] and opt["rank"] == 0:
            print(
                f"no state in {opt['path']['training_states']}; training starts from the beginning",
                file=sys.stderr,
                flush=True,
            )
        return None
    if opt["rank"] and not Path(path).is_file():
        raise CSDError(
            f"{path} is not on this host, and rank 0 resumes from it; let all hosts share the folder experiments/, or "
            f"copy it"
        )
    opt["path"]["resume_state"] = path
    state = _read_state(path)
    own = opt["path"]["models"]
    opt["path"]["models"] = str(networks_with(Path(path), Path(own)))
    check_resume(opt, state["iter"])
    opt["path"]["models"] = own
    if opt["rank"] == 0 and not Path(opt["path"]["experiments_root"]).exists():
        _make_folders(opt["path"])
    seed = state.get("manual_seed")
    if seed is not None and seed != opt["manual_seed"]:  # the file has another one, or none and it was drawn anew
        if opt["rank"] == 0:
            print(f"{path}: the run continues with its manual_seed {seed}", file=sys.stderr, flush=True)
        opt["manual_seed"] = content["manual_seed"] = seed
    if state.get("samples"):
        content["resumed_at"] = (state["epoch"], state["samples"])
    else:
        if opt["rank"] == 0 and state["iter"] < opt["train"]["total_iter"]:
            print(
                f"warning: {path} has no position in the data of {content.get('type')}: epoch {state['epoch']} starts "
                f"again, so the run differs from an uninterrupted one",
                file=sys.stderr,
                flush=True,
            )
        # other packages' data sets use the global generator, and would repeat the draws of the first iterations
        set_random_seed(opt["manual_seed"] + opt["rank"] + state["iter"])
    return state


def find_resume_state(opt: Mapping[str, Any]) -> tuple[str | None, list[str]]:
    """The state to resume from: with --auto_resume this experiment's newest complete one, else `path.resume_state`.

    Complete: the state and the networks saved with it can be read. Also returns what is wrong with newer states.

    Raises:
        CSDError: there are states, but none is complete.
    """
    damage: list[str] = []
    for path in saved_states(Path(opt["path"]["training_states"])) if opt["auto_resume"] else []:
        try:
            _check_set(path, Path(opt["path"]["models"]))
        except CSDError as error:
            damage.append(str(error))
        else:
            return str(path), damage
    if damage:
        raise CSDError(f"{damage[0]}; no state of {opt['path']['training_states']} can be resumed")
    return opt["path"].get("resume_state"), []


def saved_states(folder: Path) -> list[Path]:
    """The training states of an experiment, newest first."""
    return sorted(
        (path for path in folder.glob("*.state") if path.stem.isdigit()), key=lambda path: int(path.stem), reverse=True
    )


def networks_with(state: Path, own: Path) -> Path:
    """The folder of the networks that were saved with a training state, which may be another experiment's.

    Args:
        own: the folder of the experiment that resumes, which is returned if the state lies in no experiment.
    """
    there = state.parent.parent / own.name
    return there if state.parent.name == "training_states" and there.is_dir() else own


def _make_folders(paths: Mapping[str, Any]) -> None:
    """Make the folders of an experiment that begins with another's state; the toolbox makes them for new runs only."""
    network = paths.get("pretrain_network_g")  # None if it is ignored
    if network and not Path(network).is_file():
        raise CSDError(
            f"path.resume_state: {paths['resume_state']}: {network}, which was saved with it, does not exist; copy "
            f"both files, or give the state in its experiment's own folder"
        )
    for key in ("experiments_root", "models", "training_states", "log", "visualization"):
        Path(paths[key]).mkdir(parents=True, exist_ok=True)


def _check_set(state: Path, models: Path) -> None:
    """Raise CSDError unless a state and the networks of its iteration can be read."""
    iteration = _read_state(state)["iter"]
    network = models / f"net_g_{iteration}.pth"  # every model saves this one
    for path in {network, *models.glob(f"*_{iteration}.pth")}:
        load_plain(path, "checkpoint")


def _read_state(path: str | Path) -> dict[str, Any]:
    state = load_plain(path, "path.resume_state:")
    if not isinstance(state, dict) or not {"iter", "epoch", "optimizers", "schedulers"} <= state.keys():
        raise CSDError(f"path.resume_state: {path} is not a training state; give a file from training_states/")
    for key, needed in {"iter": True, "epoch": True, "samples": False}.items():
        value = state.get(key)
        if not (type(value) is int and 0 <= value < _NEVER_REACHED) and (needed or value is not None):
            raise CSDError(
                f"path.resume_state: {path}: {key} is {value!r:.60}, which is not possible; use another copy"
            )
    seed = state.get("manual_seed")
    if seed is not None and not (type(seed) is int and 0 <= seed < _SEEDS):
        raise CSDError(f"path.resume_state: {path}: manual_seed is {seed!r:.60}, which is not a seed; use another copy")
    name = Path(path).stem
    if name.isdigit() and int(name) != state["iter"]:
        raise CSDError(f"path.resume_state: {path} is of iteration {state['iter']}; use another copy, or rename it")
    return state
