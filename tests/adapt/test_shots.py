"""Which frames are used: spread over long clips, never across cuts, those held back apart from the others."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from synthetic import moving_scene, write_image

from csd_plugin.adapt.shots import Shot, as_noted, find_shots, from_notes
from csd_plugin.data.images import read_image
from csd_plugin.data.layout import find_sequences
from csd_plugin.errors import CSDError


def clip(folder: Path, *scenes: int) -> Path:
    """A folder of tiny frames: as many of each scene as its number says."""
    frames = [frame for seed, length in enumerate(scenes) for frame in moving_scene(length, 32, 40, seed)]
    shade = np.repeat(np.arange(len(scenes)) * 120, scenes)
    for number, (frame, light) in enumerate(zip(frames, shade, strict=True), start=1):
        write_image(folder / f"{number:05d}.png", (frame // 3 + light).clip(0, 255).astype(np.uint8))
    return folder


def test_a_short_clip_is_used_whole_and_its_end_held_back(tmp_path):
    [shot] = find_shots([clip(tmp_path / "garden", 20)], most=300)
    assert (shot.start, shot.length, shot.held) == (0, 20, 3)
    rain, truth = shot.keys("Rain"), shot.keys("GT")
    assert len(rain) == len(truth) == len(set(rain)) == 20
    [learned] = find_sequences(rain + truth, "train")
    [held] = find_sequences(rain + truth, "test")
    assert list(learned.lq) == rain[:17] and list(held.lq) == rain[17:]
    assert len(list(shot.read())) == 20


def test_of_a_long_clip_runs_from_all_over_it(tmp_path):
    shots = find_shots([clip(tmp_path / "long", 250)], most=120)
    assert [(shot.start, shot.length) for shot in shots] == [(0, 60), (190, 60)]
    assert len({shot.name for shot in shots}) == 2


def test_several_inputs_have_equal_parts_and_names_of_their_own(tmp_path):
    first, second = clip(tmp_path / "a" / "rain", 70), clip(tmp_path / "b" / "rain", 30)
    shots = find_shots([first, second], most=60)
    assert [shot.length for shot in shots] == [30, 30]
    assert len({shot.name for shot in shots}) == 2
    assert [shot.source for shot in shots] == [str(first), str(second)]


def test_no_shot_holds_a_cut_and_short_ones_are_left_out(tmp_path, caplog):
    shots = find_shots([clip(tmp_path / "cuts", 20, 11, 12)], most=300)
    assert [(shot.start, shot.length, shot.held) for shot in shots] == [(0, 20, 3), (31, 12, 3)]
    assert "1 shot of fewer than 12 frames, left out" in caplog.text


@pytest.mark.parametrize(
    ("start", "length", "context", "first", "last"),
    [
        (7, 9, 2, 5, 17),
        (7, 9, 5, 5, 19),  # cuts before frames 5 and 20
        (5, 15, 3, 5, 19),
        (0, 5, 3, 0, 4),
        (22, 9, 40, 20, 33),
        (7, 9, 0, 7, 15),
    ],
)
def test_frames_around_a_shot_are_those_of_its_scene(tmp_path, start, length, context, first, last):
    folder = clip(tmp_path / "cuts", 5, 15, 14)
    shot = Shot("1-cuts-000000", str(folder), start, length, 0)
    frames, own = zip(*shot.read(context), strict=True)
    assert [*own] == [start <= number < start + length for number in range(first, last + 1)]
    for number, frame in enumerate(frames, start=first + 1):
        np.testing.assert_array_equal(frame, read_image(folder / f"{number:05d}.png"))
    before, after = shot.around(context)
    assert (len(before), len(after)) == (start - first, last + 1 - start - length)


def test_what_cannot_be_used(tmp_path, caplog):
    with pytest.raises(CSDError, match="no shot of 12 frames or more"):
        find_shots([clip(tmp_path / "short", 11), clip(tmp_path / "shorter", 5)], most=300)
    assert not caplog.text  # one limit, said once
    for source in ("-", "camera:0"):
        with pytest.raises(CSDError, match="cannot be read twice"):
            find_shots([Path(source)], most=300)
    with pytest.raises(CSDError, match="does not exist"):
        find_shots([tmp_path / "nothing.mp4"], most=300)


def test_shots_are_read_as_they_were_noted(tmp_path):
    inputs = [clip(tmp_path / "one", 20), clip(tmp_path / "two", 12)]
    shots = find_shots(inputs, most=30)
    moved = [path.rename(path.with_name(f"moved_{path.name}")) for path in inputs]
    read = from_notes(as_noted(shots, inputs), moved, 30)
    assert [shot.source for shot in read] == [str(moved[0]), str(moved[1])]
    assert as_noted(read, moved) == as_noted(shots, inputs)
    assert read[0].keys("Rain") == shots[0].keys("Rain")


@pytest.mark.parametrize(
    "change",
    [
        *({"length": length} for length in (1.5, float("nan"), 0, -5, 11, 151, 10**8, True, None)),
        *({"held": held} for held in ("3", 0, 2, 12, 16, 99, -4, True)),
        *({"start": start} for start in (-3, "0", 10**30, 0.0)),
        *(
            {"name": name}
            for name in ("../../outside", "..", "a\0b", 5, "", "1-a-0/x", "garden", "1-a-0\n", "1-\ud800-0")
        ),
        *({"source": source} for source in (-1, 1, "0", True, 0.0, 10**30)),
        {"more": 1},
    ],
)
def test_shots_that_were_not_found_are_not_read(change):
    note = {"name": "1-a-000000", "source": 0, "start": 0, "length": 20, "held": 3}
    assert from_notes([note], [Path("a")], 30)[0].length == 20
    with pytest.raises(ValueError, match=r"shots\.0"):
        from_notes([{**note, **change}], [Path("a")], 30)


@pytest.mark.parametrize("notes", ["none", None, [], {}, [3], "twice", "long", "lacking"])
def test_lists_of_shots_are_whole(notes):
    note = {"name": "1-a-000000", "source": 0, "start": 0, "length": 20, "held": 3}
    lists = {
        "twice": [note, note],
        "long": [note, {**note, "name": "1-a-000020"}],
        "lacking": [{key: note[key] for key in ("name", "source", "start", "length")}],
    }
    with pytest.raises(ValueError, match="shots"):
        from_notes(lists.get(notes, notes) if isinstance(notes, str) else notes, [Path("a")], 30)
