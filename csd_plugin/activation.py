"""The plugin in training scripts that are not ours: `csd_plugin.activate()`.

It wraps the toolbox's `parse_options`, which every script calls first. Only for option files of our models, options
are read as data, checked, and completed with the paths of shipped networks, and training resumes without a GPU. All
other files are handled as before.
"""

from __future__ import annotations

import argparse
import atexit
import functools
import importlib
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml

from csd_plugin import compat, peers, registration
from csd_plugin.errors import CSDError, one_line
from csd_plugin.limited_yaml import LimitedLoader
from csd_plugin.locks import alone
from csd_plugin.options import force_yml
from csd_plugin.options.checks import find_problems, meant_model
from csd_plugin.options.files import safe_ordered_yaml
from csd_plugin.options.problems import FILE_ERRORS, Problems, named_in, reading_error
from csd_plugin.options.sections import MODELS, known_keys
from csd_plugin.resume_states import load_resume_state
from csd_plugin.weights import NETWORKS, find_checkpoint

Parsed = tuple[dict[str, Any], argparse.Namespace]
Parse = Callable[..., Parsed]

_DEBUG_INTERVALS = {"val": ("val_freq",), "logger": ("print_freq", "save_checkpoint_freq")}
"""The intervals that BasicSR shortens with --debug, and for names that contain `debug`."""
_SAME_EVERYWHERE = ("model_type", "network_", "train", "datasets")
"""Beginnings of the keys whose values must be equal in all processes of a job, except for file paths."""
_held = ExitStack()
"""The locks that a script other than ours holds until its process ends."""
atexit.register(_held.close)
_outputs: set[Path] = set()
"""The outputs that are locked already: a notebook may train the same run twice."""
_MODEL_TYPE = re.compile(r"""(?:^|[{,])[ \t]*['"]?model_type['"]?\s*:\s*['"]?(\w+)""", re.MULTILINE)


def activate(*, extensions: bool = True) -> None:
    """Register our classes with BasicSR, and let its scripts check our option files. May be called again.

    Call it in your own train.py and test.py, before the pipeline runs; before or after `import basicsr`. Mistakes in
    option files of our models end the script in one line with exit status 2.

    Args:
        extensions: load other packages' classes now. If not, they are loaded when a script reads its options. This is
            needed while the toolbox itself is being imported, as their classes may need all of it.

    Raises:
        CSDError: classes of another package cannot be loaded.
    """
    registration.install()
    if extensions:
        registration.extend()
    parse_options = importlib.import_module("basicsr.utils.options").parse_options
    if hasattr(parse_options, "__wrapped__"):
        return
    checking = _checking(parse_options)
    for module in list(sys.modules.values()):  # scripts, the running one among them, have bound the name by now
        if getattr(module, "parse_options", None) is parse_options:
            module.parse_options = checking  # type: ignore[attr-defined]
    sys.excepthook = functools.partial(_in_one_line, sys.excepthook)


def parse_checked(parse_options: Parse, root_path: str, is_train: bool) -> Parsed:
    """The toolbox's `parse_options` for a file of our models: options read as data, checked, shipped names resolved.

    Raises CSDError, UnicodeDecodeError or yaml.YAMLError if the file is not an option file, and OSError if unreadable.
    """
    changes = named_in(sys.argv[1:])[1]
    force_yml.check_changes(changes, *known_keys())
    # not at the top: it needs the toolbox, whose own import may end in a call of `activate`
    from csd_plugin.models.preflight import check_parts, check_run

    reading = importlib.import_module("basicsr.utils.options")
    value_of = force_yml.reader(reading._postprocess_yml_value)
    ordered_yaml = functools.partial(safe_ordered_yaml, check_parts)
    try:
        with _replaced(reading, ordered_yaml=ordered_yaml, _postprocess_yml_value=value_of):
            opt, args = parse_options(root_path, is_train)
    except (CSDError, UnicodeDecodeError):
        raise
    except (KeyError, TypeError, ValueError) as error:  # the file has been checked by now
        raise CSDError(f"--force_yml: {error} does not fit the option file; give section:key=value") from error
    _force_intervals(opt, changes, value_of)
    problems = Problems(args.opt, changes)
    find_problems(opt, problems)
    find_shipped(opt["path"])
    if opt["dist"]:
        opt["manual_seed"] = peers.of_the_first(opt["manual_seed"])  # without one in the file, each has drawn its own
        peers.check_same({key: value for key, value in opt.items() if key.startswith(_SAME_EVERYWHERE)})
    check_run(opt, problems)
    return opt, args


def _force_intervals(opt: dict[str, Any], changes: list[str], value_of: Callable[[str], Any]) -> None:
    """Restore the intervals that --force_yml gives, which --debug has replaced with its own."""
    for change in changes:
        name, _, value = (part.strip() for part in change.partition("="))
        section, _, key = name.partition(":")
        if key in _DEBUG_INTERVALS.get(section, ()) and section in opt:
            opt[section][key] = value_of(value)


def output_of(opt: dict[str, Any]) -> Path:
    """The folder that a run locks and writes to; each process but the first has a lock of its own."""
    folder = opt["path"]["experiments_root" if opt["is_train"] else "results_root"]
    return Path(folder if opt["rank"] == 0 else f"{folder}_{opt['rank']}")


def find_shipped(paths: dict[str, Any]) -> None:
    """Replace names of shipped networks with their files, as in `pretrain_network_g: realtime`."""
    for key, value in paths.items():
        if key.startswith("pretrain_network") and value in NETWORKS:
            paths[key] = str(find_checkpoint(value))


def _checking(parse_options: Parse) -> Parse:
    options = importlib.import_module("basicsr.utils.options")
    their_resume: dict[str, Any] = {}  # of each script that has called

    @functools.wraps(parse_options)
    def wrapper(root_path: str, is_train: bool = True) -> Parsed:
        script = sys._getframe(1).f_globals
        ours = _is_ours()
        if "load_resume_state" in script:  # where the pipeline that calls us will look it up
            theirs = their_resume.setdefault(script["__name__"], script["load_resume_state"])
            script["load_resume_state"] = load_resume_state if ours else theirs
        if not ours:
            try:
                registration.extend()
            except CSDError as error:
                print(f"warning: {one_line(error)}", file=sys.stderr, flush=True)
            return parse_options(root_path, is_train)
        try:
            registration.extend()
            with _replaced(options, init_dist=compat.init_dist):
                parsed = parse_checked(parse_options, root_path, is_train)
        except (CSDError, *FILE_ERRORS) as error:
            peers.fail(reading_error(error))
            raise SystemExit(2) from error
        output = output_of(parsed[0]).resolve()
        if output not in _outputs:
            _held.enter_context(alone(output))
            _outputs.add(output)
        if is_train:
            from csd_plugin.stopping import REQUEST  # here as well

            REQUEST.listen()
        return parsed

    return wrapper


def _is_ours() -> bool:
    """Whether the options of the command line are for a model of ours, as far as they can be read at all."""
    file, changes = named_in(sys.argv[1:])
    pairs = [change.partition("=") for change in changes]
    named = [value.strip() for key, _, value in pairs if key.strip() == "model_type"]
    if not named and file:
        try:
            named = [_model_type(file.read_text(encoding="utf-8-sig", errors="replace"))]
        except OSError:
            return False
    return bool(named) and _is_meant(named[-1])


class _Lenient(LimitedLoader):
    """Accepts Python tags in a file, but does not run them."""


_Lenient.add_multi_constructor("", lambda loader, suffix, node: None)


def _model_type(text: str) -> str:
    """The model_type of an option file; if the file is not valid YAML, the first text that looks like one."""
    with suppress(CSDError, yaml.YAMLError):
        content = yaml.load(text, Loader=_Lenient)
        return str(content.get("model_type")) if isinstance(content, dict) else ""
    found = _MODEL_TYPE.search(text)
    return found[1] if found else ""


def _is_meant(model_type: str) -> bool:
    """Whether it is a model of ours, or a near miss of one that nobody else has."""
    return model_type in MODELS or bool(meant_model(model_type))


@contextmanager
def _replaced(module: Any, **attributes: Any) -> Iterator[None]:
    before = {name: getattr(module, name) for name in attributes}
    for name, value in attributes.items():
        setattr(module, name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            setattr(module, name, value)


def _in_one_line(
    usual: Callable[..., Any], kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """What our models raise while they train needs no traceback."""
    if isinstance(error, CSDError):
        peers.fail(one_line(error))
    else:
        peers.report(kind, error, trace)
        usual(kind, error, trace)
