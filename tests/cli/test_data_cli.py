"""`csd data` in-process on small data sets."""

from __future__ import annotations

import json
import re
import shutil

import cv2
import numpy as np
import pytest
from synthetic import REAL, TEST, TRAIN, moving_scene, write_image

from csd_plugin.cli import main
from csd_plugin.report.dataset import as_json, as_text, examine


@pytest.fixture
def broken(tiny_rain, tmp_path):
    """A copy of tiny_rain with one mistake of every kind."""
    root = tmp_path / "set <b>"
    shutil.copytree(tiny_rain, root)
    (root / TRAIN / "t2_Rain_01" / "00003.png").unlink()
    damaged = root / TEST / "a1_Rain" / "00002.png"
    damaged.write_bytes(damaged.read_bytes()[:200])
    write_image(root / TEST / "b1_GT" / "00004.png", moving_scene(1, 20, 20, 0)[0])
    write_image(root / TEST / "odd <i>" / "00001.png", moving_scene(1, 20, 20, 0)[0])
    write_image(root / TRAIN / "t3_GT" / "00001.png", moving_scene(1, 20, 20, 0)[0])
    (root / REAL / "ra1_Rain" / "Thumbs.db").write_bytes(b"")
    return root


def data(*argv) -> int:
    return main(["data", *map(str, argv), "--jobs", "1"])


def test_statistics_against_plain_arithmetic(tiny_rain):
    facts = examine(tiny_rain, samples=100)
    clip = next(clip for clip in facts.clips if clip.name == "a1")
    rain, truth = (
        np.stack([cv2.imread(str(path)) for path in sorted((tiny_rain / TEST / name).iterdir())]).astype(float)
        for name in ("a1_Rain", "a1_GT")
    )
    difference = rain - truth
    assert clip.brightness == pytest.approx((rain.mean(), truth.mean()))
    assert clip.statistics == pytest.approx(
        (difference.mean(), np.median(difference), 100 * (difference > 10).mean(), 100 * (difference < -10).mean())
    )
    assert (clip.frames, clip.size, clip.split) == (9, "40x30", "test")
    real = next(clip for clip in facts.clips if clip.split == "real")
    assert real.statistics is None and real.psnr is None and len(real.pictures) == 1


def test_real_clip_has_the_known_statistics(shared):
    facts = examine(shared / "data/NTURain", samples=12)
    a1 = next(clip for clip in facts.clips if clip.name == "a1")
    assert (a1.frames, a1.size) == (168, "640x480")
    assert a1.statistics == pytest.approx((2.15, 0, 7.0, 0.46), rel=0.1)


def test_every_problem_is_listed(broken, capsys):
    assert data(broken, "--decode") == 0
    text = capsys.readouterr().out
    for words in (
        "t2_Rain_01: 8 rainy and 9 clean frames",
        "a1_Rain/00002.png: not a readable image",
        "b1_GT/00004.png: is 20x20, most frames of the clip are 40x30",
        "odd <i>",
        "without rainy ones, not used: 1 (t3)",
        "Thumbs.db",
        "t1_Rain_01: 9 frames, fewer than the 11 that training uses at a time",
    ):
        assert text.count(words) == 1, words
    assert re.search(r"^a1 +9 ", text, re.MULTILINE)  # the rest of the clip was measured


def test_headers_alone_do_not_find_damaged_pixels(broken):
    assert not [problem for problem in examine(broken, samples=1).problems if "not a readable image" in problem]


def test_processes_give_the_same(broken):
    assert as_text(examine(broken, jobs=2)) == as_text(examine(broken))


def test_page_and_json(broken, tmp_path, capsys):
    page, facts = tmp_path / "page.html", tmp_path / "facts.json"
    assert data(broken, "--html", page, "--json", facts) == 0
    html = page.read_text()
    assert "set &lt;b&gt;" in html and "<b>/" not in html and "odd &lt;i&gt;" in html and "<i>" not in html
    assert html.count("<img ") == 2 * 3 + 3 + 1
    assert not re.search(r"""(src|href)=["'](?!data:)""", html)
    content = json.loads(facts.read_text())
    assert {clip["name"]: clip["frames"] for clip in content["clips"]} == {"t1_Rain_01": 9, "a1": 9, "b1": 9, "ra1": 9}
    assert capsys.readouterr().out.startswith(f"{broken}: 4 clips")


def test_equal_frames(tiny_rain, tmp_path):
    root = tmp_path / "set"
    for name in ("a1_GT", "a1_Rain"):
        shutil.copytree(tiny_rain / TEST / "a1_GT", root / TEST / name)
    facts = examine(root)
    assert "no rain to learn from" in facts.problems[0]
    assert json.loads(as_json(facts))["clips"][0]["psnr"] is None


def test_folders_outside_the_layout(tmp_path, capsys):
    for name in ("walk", "street"):
        write_image(tmp_path / name / "1.png", moving_scene(1, 20, 24, 0)[0])
    assert data(tmp_path) == 0
    text = capsys.readouterr().out
    assert "street       1  24x20" in text and "csd prepare" in text and "PSNR" not in text.splitlines()[3]


def test_frames_that_are_far_higher_than_wide_have_pictures(tmp_path):
    write_image(tmp_path / "line" / "1.png", moving_scene(1, 400, 2, 0)[0])
    [clip] = examine(tmp_path).clips
    assert [cv2.imdecode(np.frombuffer(picture, np.uint8), 1).shape for picture in clip.pictures] == [(1496, 7, 3)]


def test_without_a_readable_frame_no_size_is_stated(tmp_path, capsys):
    write_image(tmp_path / "walk" / "1.png", moving_scene(1, 20, 24, 0)[0])
    (tmp_path / "walk" / "1.png").write_bytes(b"no image")
    assert data(tmp_path) == 0
    assert capsys.readouterr().out.splitlines()[0].endswith(": 1 clip (0 with truth), 1 frame")


@pytest.mark.parametrize("arguments", [("nowhere",), (".",), ("set", "--html", "no/where.html")])
def test_errors_are_one_line(tiny_rain, tmp_path, monkeypatch, capsys, arguments):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "set").symlink_to(tiny_rain)
    if arguments == (".",):
        (tmp_path / "set").unlink()
    assert data(*arguments) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1 and message.startswith("csd data: error: ")


def test_clean_frames_that_are_larger_by_a_whole_number(tmp_path):
    """They are for super-resolution; frames of other sizes are still named."""
    for index, frame in enumerate(moving_scene(4, 48, 64, 0)):
        write_image(tmp_path / TEST / f"a1_GT/{index:05d}.png", frame)
        write_image(tmp_path / TEST / f"a1_Rain/{index:05d}.png", np.ascontiguousarray(frame[::2, ::2]))
    [clip] = examine(tmp_path).clips
    assert (clip.size, clip.problems) == ("32x24 (clean 2 times)", ())
    write_image(tmp_path / TEST / "a1_GT/00002.png", moving_scene(1, 24, 32, 0)[0])
    [clip] = examine(tmp_path).clips
    assert [problem.split(": is ")[1] for problem in clip.problems] == [
        "32x24, most clean frames of the clip are 64x48"
    ]


@pytest.mark.parametrize(
    ("rainy", "clean", "size", "named"),
    [
        ([(24, 32)] * 3, [(48, 32)] * 3, "32x24", ["32x48, most frames of the clip are 32x24"] * 3),  # only higher
        ([(24, 32)] * 2 + [(30, 40)], [(30, 40)] * 3, "40x30", ["32x24, most frames of the clip are 40x30"] * 2),
    ],
    ids=["higher", "truth"],
)
def test_frames_of_other_sizes_are_those_that_differ_from_most(tmp_path, rainy, clean, size, named):
    for kind, sizes in (("Rain", rainy), ("GT", clean)):
        for index, (height, width) in enumerate(sizes):
            write_image(tmp_path / TEST / f"a1_{kind}/{index:05d}.png", np.zeros((height, width, 3), np.uint8))
    [clip] = examine(tmp_path).clips
    of_sizes = [problem.split(": is ")[1] for problem in clip.problems if ": is " in problem]
    assert (clip.size, of_sizes) == (size, named)


@pytest.mark.parametrize(("side", "said"), [(64, False), (60, True)])
def test_crops_for_training_are_of_clean_frames(tmp_path, side, said):
    for index in range(11):
        for kind, scale in (("Rain_01", 1), ("GT", 2)):
            frame = np.zeros((side * scale, side * scale, 3), np.uint8)
            write_image(tmp_path / f"Dataset_Training_Synthetic/t1_{kind}/{index:05d}.png", frame)
    [clip] = examine(tmp_path).clips
    assert [f"frames of {2 * side}x{2 * side} are smaller than the crops of" in line for line in clip.problems] == [
        True
    ] * said
