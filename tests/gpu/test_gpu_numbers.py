"""Objectives, number formats and CUDA graphs on a GPU."""

from __future__ import annotations

import pytest
import torch


def test_objectives_and_formats(passes_on_a_gpu):
    passes_on_a_gpu("equality.py", "formats.py")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a pretend GPU records no graphs")
def test_graphs(passes_on_a_gpu):
    passes_on_a_gpu("graphs.py")
