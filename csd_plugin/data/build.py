"""Building of LMDB stores from folders of image files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class BuildReport:
    """frames: in the store; new: of these, written by this run; source_bytes, store_bytes: sizes on disk."""

    frames: int
    new: int
    source_bytes: int
    store_bytes: int


def build_store(source: str | Path, out: str | Path, encoding: str = "source", jobs: int = 1) -> BuildReport:
    """Build the store `out` (a new folder NAME.lmdb) from all images in folders below `source`.

    encoding: source (the files' own bytes), png or raw (decoded pixels).
    jobs:     processes that read and encode.

    Until all frames are in it, the store is OUT.partial: a run that was interrupted, however, is taken up by the next
    one with the frames that are missing. A store that is there already and has the same frames is left as it is.
    Raises CSDError for frames that cannot be decoded, for an OUT that holds something else, and where nothing can be
    written; `source` and earlier stores stay as they are.
    """
    raise NotImplementedError
