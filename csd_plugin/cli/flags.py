"""Flags that several commands share, and types of flags; a value out of range ends in one line and exit status 2."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import TypeVar

from csd_plugin.errors import CSDError

Number = TypeVar("Number", int, float)

LARGEST = 2**31 - 1
"""The largest whole number that the libraries below take everywhere: a C int."""

MOST_JOBS = min(max(32, 4 * (os.cpu_count() or 1)), 61 if sys.platform == "win32" else LARGEST)
"""The most processes or threads of one command: a few per processor; process pools on Windows hold at most 61."""

_SLOWEST, _FASTEST = Fraction(1, 1000), Fraction(1000)
_RATE = re.compile(r"\d{1,9}/\d{1,9}|\d{1,9}(\.\d{0,15})?|\.\d{1,15}", re.ASCII)
"""A frame rate. No exponents: Fraction("1e999999999") would fill the memory. Containers hold rates as two C ints."""
_LARGEST_DENOMINATOR = 10**6

_SIZE = re.compile(r"([1-9]\d{0,4})x([1-9]\d{0,4})", re.ASCII)
_LONGEST_SIDE = 16384
"""The largest side of a frame: twice the width of 8K, beyond which frames would fill the memory."""


def whole(minimum: int, maximum: int | None = None) -> Callable[[str], int]:
    """The type of a flag that takes a whole number, bounds included; without a maximum, up to LARGEST."""
    maximum = LARGEST if maximum is None else maximum
    return _bounded(int, f"a whole number from {minimum} to {maximum}", minimum, maximum)


def number(minimum: float, maximum: float | None = None) -> Callable[[str], float]:
    """The type of a flag that takes a finite number, bounds included."""
    if maximum is None:
        return _bounded(float, f"a finite number of at least {minimum}", minimum, sys.float_info.max)
    return _bounded(float, f"a number from {minimum} to {maximum}", minimum, maximum)


def path_given(text: str) -> Path:
    """The type of every path. Refuses an empty one, such as an unset shell variable: it would be the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("the path is empty: give a name, or . for the current folder")
    return Path(text)


def jobs(text: str) -> int:
    """The type of a flag that takes a number of processes or threads."""
    return whole(1, MOST_JOBS)(text)


def minutes(text: str) -> float:
    """The type of a flag that takes a time budget in minutes: from half a second to about two years."""
    return number(0.01, 1_000_000)(text)


def rate(text: str) -> Fraction:
    """The type of a flag that takes a frame rate, from 1/1000 to 1000 frames per second: 25, 29.97 or 30000/1001."""
    if _RATE.fullmatch(text) and int(text.partition("/")[2] or 1):
        value = Fraction(text).limit_denominator(_LARGEST_DENOMINATOR)
        if _SLOWEST <= value <= _FASTEST:
            return value
    raise argparse.ArgumentTypeError(
        f"{text!r} is not a frame rate from 1/1000 to 1000 per second, such as 25, 29.97 or 30000/1001"
    )


def frame_size(text: str) -> tuple[int, int]:
    """The type of a flag that takes the size of frames: '640x480' -> (640, 480), sides up to 16384."""
    match = _SIZE.fullmatch(text)
    if match is None or max(map(int, match.groups())) > _LONGEST_SIDE:
        raise argparse.ArgumentTypeError(f"{text!r}: expected WIDTHxHEIGHT, e.g. 640x480, up to {_LONGEST_SIDE}")
    return int(match[1]), int(match[2])


def add_processes(parser: argparse.ArgumentParser) -> None:
    """`--nproc-per-node` of the commands that train rows, named as torchrun names it."""
    parser.add_argument(
        "--nproc-per-node",
        metavar="N",
        type=jobs,
        default=1,
        help="train each row in N processes of torchrun, which share its batch (default: 1)",
    )


def refuse_idle(
    args: argparse.Namespace, add_arguments: Callable[[argparse.ArgumentParser], None], names: Iterable[str], why: str
) -> None:
    """Raise CSDError if one of these flags was given although it has no effect here.

    Args:
        add_arguments: the command's function, which sets the flags' defaults.
        names: of the flags, as attributes of `args`.
        why: the reason, as the message gives it after "as".
    """
    parser = argparse.ArgumentParser(add_help=False)
    add_arguments(parser)
    given = [f"--{name.replace('_', '-')}" for name in names if getattr(args, name) != parser.get_default(name)]
    if given:
        plural = len(given) > 1
        raise CSDError(f"{' '.join(given)}: without effect, as {why}; leave {'them' if plural else 'it'} out")


def _bounded(convert: type[Number], wanted: str, minimum: Number, maximum: Number) -> Callable[[str], Number]:
    def parse(text: str) -> Number:
        with suppress(ValueError):
            value = convert(text)
            if minimum <= value <= maximum:  # NaN fails this
                return value
        raise argparse.ArgumentTypeError(f"{text!r} is not {wanted}")

    return parse
