"""What `csd_plugin.train` and `csd_plugin.test` share: the toolbox's pipeline, with mistakes told in one line."""

from __future__ import annotations

import atexit
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from torch import distributed

from csd_plugin import registration
from csd_plugin.errors import CSDError, one_line, out_of_memory
from csd_plugin.inference.memory import keep_freed_memory
from csd_plugin.lifeline import end_with_starter
from csd_plugin.models.preflight import check_run
from csd_plugin.options import check_options
from csd_plugin.weights import NETWORKS, find_checkpoint


def run(pipeline: Callable[[str], None], module: ModuleType) -> int:
    """Run the toolbox's pipeline in the current folder, options checked before anything is written.

    Args:
        pipeline: `train_pipeline` or `test_pipeline`.
        module: where the pipeline looks `parse_options` up.

    Returns:
        0, or 2 after one line on stderr, or 130 when interrupted.
    """
    end_with_starter()
    keep_freed_memory()
    atexit.register(_leave_the_others)
    parse_options = module.parse_options

    def parse_and_check(root_path: str, is_train: bool = True):
        try:
            opt, args = parse_options(root_path, is_train)
        except (CSDError, UnicodeDecodeError):
            raise
        except (KeyError, TypeError, ValueError) as error:  # the file has been checked by now
            raise CSDError(f"--force_yml: {error} does not fit the option file; give section:key=value") from error
        registration.extend()
        check_options(opt, args.opt)
        find_shipped(opt["path"])
        check_run(opt)
        return opt, args

    module.parse_options = parse_and_check  # type: ignore[attr-defined]
    try:
        pipeline(str(Path.cwd()))
    except CSDError as error:
        return _fail(one_line(error))
    except FileNotFoundError as error:
        return _fail(f"{error.filename} does not exist; check the path")
    except (IsADirectoryError, NotADirectoryError, PermissionError) as error:
        return _fail(f"{error.filename}: {str(error.strerror).lower()}; check the path")
    except UnicodeDecodeError:
        return _fail("the option file is not text")
    except yaml.YAMLError as error:
        return _fail("the option file is not valid YAML: " + " ".join(str(error).split()))
    except (MemoryError, RuntimeError) as error:
        if not out_of_memory(error):
            raise
        return _fail(out_of_memory(error))
    except KeyboardInterrupt:
        return _fail("interrupted; --auto_resume resumes from the last saved state", 130)
    finally:
        module.parse_options = parse_options  # type: ignore[attr-defined]
    return 0


def _leave_the_others() -> None:
    """Several processes: their threads end before this one's interpreter does, which else may abort it."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


def find_shipped(paths: dict[str, Any]) -> None:
    """Put files in the place of names of networks that come with the package: `pretrain_network_g: student2`."""
    for key, value in paths.items():
        if key.startswith("pretrain_network") and value in NETWORKS:
            paths[key] = str(find_checkpoint(value))


def _fail(message: str, status: int = 2) -> int:
    print(f"error: {message}", file=sys.stderr, flush=True)
    return status
