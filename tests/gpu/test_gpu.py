"""The launchers on a GPU."""

from __future__ import annotations


def test_launchers(passes_on_a_gpu):
    passes_on_a_gpu("cases.py")
