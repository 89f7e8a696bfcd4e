"""The page about an adaptation."""

from __future__ import annotations

import os
import re
import sys
from urllib.parse import unquote_to_bytes

import numpy as np
import pytest

from csd_plugin.adapt.page import picture_of, write_page


@pytest.mark.parametrize("name", ["page.md", "my garden.md", "100% (new).md", "j\u00e4rn#2.md", "a\udcff.md"])
def test_the_picture_of_any_name_is_found_from_the_page(tmp_path, name):
    """A destination in Markdown ends at a space or a bracket, and is an address, in which # and % have a meaning."""
    frame = np.random.default_rng(0).integers(0, 256, (24, 32, 3), np.uint8)
    if sys.platform != "linux" and not name.isprintable():
        pytest.skip("other systems take no such names")
    page = tmp_path / name
    write_page(page, title="t", rows={}, size=(32, 24), pictures={"rain": frame, "after": frame // 2}, lines=[])
    found = re.search(r"!\[rain, after\]\(([^\s()#]+)\)", page.read_text(encoding="utf-8"))
    assert found and os.fsdecode(unquote_to_bytes(found[1])) == picture_of(page).name
