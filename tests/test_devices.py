"""Devices by name: one that cannot compute here is refused at once."""

from __future__ import annotations

import pytest
import torch

from csd_plugin.devices import pick_device
from csd_plugin.errors import CSDError


@pytest.mark.parametrize("name", ["", "-1", "cuda:-1", "cuda:9999", "cuda:1e30", "cpu:-3", "cpu:99", "meta", "mps:77"])
def test_a_device_that_is_not_there_is_refused(name):
    with pytest.raises(CSDError, match="device") as error:
        pick_device(name)
    assert "\n" not in str(error.value)


def test_the_cpu_is_always_there():
    assert [pick_device(name).type for name in ("cpu", "cpu:0", torch.device("cpu"))] == ["cpu"] * 3
