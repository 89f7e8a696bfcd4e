"""Files that appear whole or not at all."""

from __future__ import annotations

import pytest

from csd_plugin.atomic import replacing, write_text


def test_a_file_is_replaced_at_the_end(tmp_path):
    path = tmp_path / "table.md"
    path.write_text("old")
    with replacing(path) as draft:
        draft.write_text("new")
        assert path.read_text() == "old" and draft.suffix == ".md" and draft.name.startswith(".")
    assert path.read_text() == "new" and list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_what_was_there_stays_after_an_error(tmp_path, error):
    path = tmp_path / "table.md"
    path.write_text("old")
    with pytest.raises(error), replacing(path) as draft:
        draft.write_text("half")
        raise error
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_text_is_the_same_bytes_everywhere(tmp_path):
    write_text(tmp_path / "a.txt", "é\nb\n")
    assert (tmp_path / "a.txt").read_bytes() == b"\xc3\xa9\nb\n"


def test_a_disk_without_room_is_told_by_the_file(tmp_path):
    resource = pytest.importorskip("resource", reason="limits of a file's size")
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, old[1]))  # a write that fails, as on a full disk, without a name
    try:
        with pytest.raises(OSError, match=r"page\.md") as caught:
            write_text(tmp_path / "page.md", "x" * 100_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert caught.value.filename == str(tmp_path / "page.md")
    assert not list(tmp_path.iterdir())
