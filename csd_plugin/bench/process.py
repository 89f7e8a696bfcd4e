"""Runs a measurement in a separate process, whose memory and threads nothing else uses."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from csd_plugin.errors import CSDError
from csd_plugin.lifeline import end_with_starter, lifeline


def measured_apart(module: str, arguments: list[str], what: str) -> Any:
    """The result that `python -m module ARGUMENTS` gives to `answer`. Raises CSDError, beginning with `what`."""
    with lifeline() as line_to_us:
        command = [sys.executable, "-m", module, *arguments]
        run = subprocess.run(command, capture_output=True, text=True, **line_to_us)
    if run.returncode:
        reason = (run.stderr.strip().splitlines() or ["it was killed, perhaps for lack of memory"])[-1]
        raise CSDError(f"{what}: {reason}")
    return json.loads(run.stdout.splitlines()[-1])


def answer(measure: Callable[[], Any]) -> None:
    """The main function of such a process: measure, and print the result as JSON, or an error in one line."""
    end_with_starter()
    try:
        print(json.dumps(measure()))
    except CSDError as error:
        sys.exit(str(error))
