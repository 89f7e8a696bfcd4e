"""Whether an LMDB store still holds what was put into it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Problem:
    """One frame or file of a store that is not as it was built; `str` is a line that says so.

    kind: changed, missing, extra or truncated. key: the frame, or a file of the store. detail: in words.
    """

    kind: str
    key: str
    detail: str

    def __str__(self) -> str:
        return f"{self.key}: {self.kind}: {self.detail}"


def verify_store(path: str | Path, source: str | Path | None = None, jobs: int = 1) -> list[Problem]:
    """Compare all frames of a store with their checksums, and with the files below `source` where it is given.

    Returns what is wrong, nothing for a whole store.
    Raises CSDError where there is no finished store at `path`.
    """
    raise NotImplementedError
