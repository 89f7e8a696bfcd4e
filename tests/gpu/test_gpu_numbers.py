"""Objectives, number formats and CUDA graphs on a GPU."""

from __future__ import annotations

import pytest
import torch


def test_objectives_and_formats(passes_on_a_gpu):
    passes_on_a_gpu("equality.py", "formats.py")


@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="CUDA graphs need a real GPU: the pretend one cannot record them"
)
def test_graphs(passes_on_a_gpu):
    passes_on_a_gpu("graphs.py")
