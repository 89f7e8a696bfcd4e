import logging

import pytest

from csd_plugin.data.layout import find_sequences, first_gap, frame_numbers, natural_key
from csd_plugin.errors import CSDError

TRAIN, TEST, REAL = "Dataset_Training_Synthetic", "Dataset_Testing_Synthetic", "Dataset_Testing_RealRain"


def clip(folder, count=3, start=1, pattern="{:05d}.jpg"):
    return [f"{folder}/{pattern.format(i)}" for i in range(start, start + count)]


NTU_RAIN = [
    *clip(f"{TRAIN}/t1_GT"),
    *clip(f"{TRAIN}/t1_Rain_01"),
    *clip(f"{TRAIN}/t1_Rain_02"),
    *clip(f"{TRAIN}/t10_GT"),
    *clip(f"{TRAIN}/t10_Rain_01"),
    *clip(f"{TRAIN}/t2_GT"),
    *clip(f"{TRAIN}/t2_Rain_01"),
    *clip(f"{TEST}/a1_GT"),
    *clip(f"{TEST}/a1_Rain"),
    *clip(f"{TEST}/davis_goat_GT"),
    *clip(f"{TEST}/davis_goat_Rain"),
    *clip(f"{REAL}/ra1_Rain"),
]


def names(*args, **kwargs):
    return [sequence.name for sequence in find_sequences(*args, **kwargs)]


def test_splits_in_natural_order():
    assert names(NTU_RAIN, "train") == ["t1_Rain_01", "t1_Rain_02", "t2_Rain_01", "t10_Rain_01"]
    assert names(NTU_RAIN, "test") == ["a1", "davis_goat"]
    assert names(NTU_RAIN, "real") == ["ra1"]


def test_pairs():
    first, second = find_sequences(NTU_RAIN, "train", clips=["t1"])
    assert first.lq == tuple(clip(f"{TRAIN}/t1_Rain_01"))
    assert second.lq == tuple(clip(f"{TRAIN}/t1_Rain_02"))
    assert first.gt == second.gt == tuple(clip(f"{TRAIN}/t1_GT"))
    assert find_sequences(NTU_RAIN, "real")[0].gt is None


def test_order_of_the_keys_does_not_matter():
    assert find_sequences(NTU_RAIN[::-1], "train") == find_sequences(NTU_RAIN, "train")


def test_natural_order_of_frames():
    keys = clip(f"{TEST}/a_Rain", 12, 0, "f{}.png")
    assert find_sequences(sorted(keys), "test")[0].lq == tuple(keys)
    assert sorted(["b", "a10", "a9", "a09", "10", "9"], key=natural_key) == ["9", "10", "a09", "a9", "a10", "b"]


@pytest.mark.parametrize(
    "pattern", ["{:05d}.png", "{}.jpg", "clean-{:03d}.png", "{:05d}"], ids=["suffix", "padding", "prefix", "archive"]
)
def test_frames_pair_by_number(pattern):
    truth = clip(f"{TEST}/a_GT", 12, 1, pattern)
    (sequence,) = find_sequences([*clip(f"{TEST}/a_Rain", 12), *truth], "test")
    assert sequence.lq == tuple(clip(f"{TEST}/a_Rain", 12))
    assert sequence.gt == tuple(truth)


@pytest.mark.parametrize("pattern", ["{:05d}_x2.png", "f{}_k3_of_12.png"])
def test_frames_pair_by_the_number_that_changes(pattern):
    rainy, truth = clip(f"{TEST}/a_Rain", 12), clip(f"{TEST}/a_GT", 12, 1, pattern)
    for lq, gt in ((rainy, truth), (clip(f"{TEST}/a_Rain", 12, 1, pattern), clip(f"{TEST}/a_GT", 12))):
        (sequence,) = find_sequences([*lq, *gt], "test")
        assert (sequence.lq, sequence.gt) == (tuple(lq), tuple(gt))


@pytest.mark.parametrize(
    "names, numbers",
    [
        (["00000_x2", "00001_x2"], (0, 1)),
        (["x2_9", "x2_10"], (9, 10)),
        (["1_t0040", "2_t0080", "3_t0120"], (1, 2, 3)),
        (["t0040_1", "t0080_2"], (1, 2)),
        (["IMG_9", "IMG_10_edit3"], None),
        (["s1_f1", "s1_f2", "s2_f1"], None),
        (["b_2", "a_1"], None),
        (["a", "b"], None),
        (["a7"], (7,)),
        ([], None),
    ],
)
def test_the_number_of_a_frame(names, numbers):
    assert frame_numbers(names) == numbers


@pytest.mark.parametrize(
    "numbers, gap",
    [
        ((1, 2, 3, 5, 6, 9), 2),
        ((0, 5, 10, 20), 2),
        ((0, 5, 10, 15), None),
        ((1000, 1033, 1067, 1100), None),
        ((7,), None),
        ((), None),
        ((3, 3, 9), None),
    ],
)
def test_a_gap_is_where_the_usual_step_is_taken_several_times_at_once(numbers, gap):
    assert first_gap(numbers) == gap


def test_frames_pair_by_name_where_numbers_repeat():
    stems = ["left_1", "right_1", "start"]
    keys = [f"{TEST}/a_{kind}/{stem}.png" for kind in ("GT", "Rain") for stem in stems]
    (sequence,) = find_sequences(keys, "test")
    assert [key.replace("_GT/", "_Rain/") for key in sequence.gt] == list(sequence.lq)


@pytest.mark.parametrize("root", ["parent", f"some/{TEST}", f"some/{TEST}/..", f"{TRAIN}/data", f"some/{TEST}/nested"])
def test_root_above_or_below_the_data_set(root):
    below = TEST in root and not root.endswith("..")
    keys = [key.removeprefix(f"{TEST}/") if below else f"NTURain/{key}" for key in NTU_RAIN if key.startswith(TEST)]
    assert names(keys, "test", root=root) == ["a1", "davis_goat"]


def test_clips_from_a_list_file(tmp_path):
    listed = tmp_path / "clips.txt"
    listed.write_text("# kept for training\n\n  t1_Rain_02  # the heavy one\nt10\n", encoding="utf-8")
    assert names(NTU_RAIN, "train", clips=listed) == ["t1_Rain_02", "t10_Rain_01"]
    assert names(NTU_RAIN, "train", clips=str(listed)) == ["t1_Rain_02", "t10_Rain_01"]
    assert names(NTU_RAIN, "test", clips=["a1_Rain"]) == ["a1"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"t1\ndavis_got\n", "davis_got.*did you mean"),
        (b"# nothing\n", "names no clip"),
        (b"\xff\xfe\x00", "not UTF-8"),
    ],
)
def test_bad_list_files(tmp_path, content, message):
    listed = tmp_path / "clips.txt"
    listed.write_bytes(content)
    with pytest.raises(CSDError, match=f"clips.txt.*{message}"):
        find_sequences(NTU_RAIN, "train", clips=listed)


def test_missing_list_file_and_nearest_clip(tmp_path):
    with pytest.raises(CSDError, match=r"none.txt cannot be read"):
        find_sequences(NTU_RAIN, "train", clips=tmp_path / "none.txt")
    with pytest.raises(CSDError, match=r"split test has no clip 'davis_got': did you mean 'davis_goat'"):
        find_sequences(NTU_RAIN, "test", clips=["davis_got"])


@pytest.mark.parametrize(
    ("keys", "split", "message"),
    [
        ([], "train", f"no images found.*{TRAIN}"),
        (["x/1.jpg", "y/2.jpg"], "train", rf"no {TRAIN}/NAME_Rain_NN \(found: x, y\).*set dataroot"),
        (clip(f"{TEST}/a1_Rain"), "train", "set split: test, or set dataroot"),
        (clip(f"{TEST}/a1_GT"), "test", f"no rainy clip in {TEST}"),
        (clip(f"{TRAIN}/t1_Rain_01"), "train", "t1_Rain_01: no clean frames.*t1_GT.*leave the clip out"),
        (clip("x/y"), "valid", "split: 'valid' is unknown: give one of train, test, real"),
        (clip(f"A/{TEST}/a1_Rain") + clip(f"B/{TEST}/a1_Rain"), "test", "a1_Rain exists twice, A/.* and B/"),
        (
            [f"{TEST}/a_Rain/1.jpg", f"{TEST}/a_Rain/1.png"],
            "test",
            r"a: two files for the same frame, .*1.jpg and .*1.png",
        ),
    ],
)
def test_wrong_data_is_named_with_its_cure(keys, split, message):
    with pytest.raises(CSDError, match=message) as error:
        find_sequences(keys, split)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("truth", "counts", "frame"),
    [
        (clip(f"{TEST}/a_GT", 11), "12 rainy and 11 clean", f"{TEST}/a_Rain/00012.jpg has no partner in {TEST}/a_GT"),
        (clip(f"{TEST}/a_GT", 13), "12 rainy and 13 clean", f"{TEST}/a_GT/00013.jpg has no partner in {TEST}/a_Rain"),
        (clip(f"{TEST}/a_GT", 12, 0), "12 rainy and 12 clean", f"{TEST}/a_GT/00000.jpg has no partner"),
        (clip(f"{TEST}/a_GT", 11, 1, "{}.png"), "12 rainy and 11 clean", f"{TEST}/a_Rain/00012.jpg has no partner"),
        ([f"{TEST}/a_GT/{c}.jpg" for c in "abcdefghijkl"], "12 rainy and 12 clean", "00001.jpg has no partner"),
    ],
)
def test_frames_that_do_not_pair(truth, counts, frame):
    with pytest.raises(CSDError, match=rf"^a: {counts} frames do not pair.*{frame}.*leave the clip out"):
        find_sequences([*clip(f"{TEST}/a_Rain", 12), *truth], "test")


def test_a_bad_clip_that_is_not_asked_for_does_no_harm():
    keys = [*NTU_RAIN, *clip(f"{TRAIN}/t3_Rain_01")]
    assert names(keys, "train", clips=["t2"]) == ["t2_Rain_01"]


def test_harmless_oddities_are_said_once(caplog):
    keys = [
        *clip(f"{TEST}/a_Rain"),
        *clip(f"{TEST}/a_Rain", start=7),
        *clip(f"{TEST}/b_GT"),
        *clip(f"{TEST}/preview"),
        f"{TEST}/contact_sheet.jpg",
    ]
    with caplog.at_level(logging.WARNING):
        assert names(keys, "test") == ["a"]
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == 4
    assert any("ignored: 2 (" in line and "preview" in line for line in said)
    assert any("not used: 1 (b)" in line for line in said)
    assert any("a: 00003 -> 00007" in line for line in said)
    assert any("cannot be scored: 1 (a)" in line for line in said)


def test_a_clean_data_set_says_nothing(caplog):
    with caplog.at_level(logging.WARNING):
        for split in ("train", "test", "real"):
            find_sequences(NTU_RAIN, split)
    assert not caplog.records


def test_a_step_of_four_between_all_frames_is_no_gap(caplog):
    keys = [f"{REAL}/r_Rain/{i:05d}.jpg" for i in range(0, 40, 4)]
    with caplog.at_level(logging.WARNING):
        find_sequences(keys, "real")
    assert not caplog.records
