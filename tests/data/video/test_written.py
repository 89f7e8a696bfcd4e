"""What is written holds what was read: times, tracks, colours, depth, shape; or one line says what it does not."""

from __future__ import annotations

import logging
import os
import subprocess
from contextlib import suppress
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from ffmpeg import make, needs_ffmpeg, packets, pixels, probe, seconds, stream, times
from PIL import Image
from videos import make_video, picture

from csd_plugin.atomic import draft_of
from csd_plugin.data.video import open_reader, open_writer
from csd_plugin.data.video.colours import Colours, from_rgb, to_rgb
from csd_plugin.data.video.encoders import Setup, write_one
from csd_plugin.data.video.interface import Look
from csd_plugin.errors import CSDError

X264 = ("-c:v", "libx264", "-pix_fmt", "yuv420p")
UNEVEN = ("-vf", "select='lt(n,10)+not(mod(n,6))'", "-fps_mode", "vfr")


@pytest.fixture
def copied(tmp_path, caplog):
    """A function: copy a video through reader and writer; it returns the lines that were said."""

    def copy(source: Path, name: str, **how) -> tuple[Path, list[str]]:
        caplog.clear()
        with (
            caplog.at_level(logging.WARNING),
            open_reader(source, **how) as reader,
            open_writer(tmp_path / name, like=reader, overwrite=True) as writer,
        ):
            for frame in reader:
                writer.write(frame)
        return tmp_path / name, [record.getMessage() for record in caplog.records]

    return copy


def one_line(lines: list[str], *words: str) -> str:
    """The only line that has all these words."""
    found = [line for line in lines if all(word in line for word in words)]
    assert len(found) == 1, lines
    return found[0]


# --- times ----------------------------------------------------------------------------------------------------------


@needs_ffmpeg
@pytest.mark.parametrize(
    "name, codec",
    [
        ("in.mp4", ("-c:v", "mpeg4")),
        ("in.mkv", ("-c:v", "mpeg2video")),
        ("in.mov", ("-c:v", "mjpeg", "-pix_fmt", "yuvj420p")),
        ("in.webm", ("-c:v", "libvpx", "-b:v", "1M")),
        ("in.mkv", X264),
        ("in.mp4", ("-c:v", "libx265", "-x265-params", "log-level=error")),
        ("in.mkv", ("-c:v", "ffv1")),
    ],
)
def test_every_encoder_keeps_times(copied, tmp_path, name, codec):
    source = make(tmp_path / name, *UNEVEN, *codec, seconds=2)
    out, lines = copied(source, f"out{source.suffix}")
    tick = Fraction(stream(out)["time_base"])
    assert len(times(out)) == 17 and not lines
    assert np.abs(np.array(times(out)) - times(source)).max() <= float(tick) + 1e-6


@needs_ffmpeg
def test_a_flash_comes_when_it_came(copied, tmp_path):
    flash = "drawbox=c=white:t=fill:enable='between(t,1.9,2.1)',select='lt(t,2)+not(mod(n,6))'"
    sound = ("-f", "lavfi", "-i", "sine=d=4")
    source = make(
        tmp_path / "in.mp4", *sound, "-vf", flash, "-fps_mode", "vfr", "-c:v", "mpeg4", "-c:a", "aac", seconds=4,
        picture="color=s=96x64:r=30:d={seconds}",
    )  # fmt: skip
    for name in ("out.mp4", "out.avi"):
        out, lines = copied(source, name)
        white = [time for time, frame in zip(times(out), pixels(out), strict=True) if frame.mean() > 128]
        assert min(white) == pytest.approx(1.9, abs=1 / 60) and max(white) < 2.2
        assert packets(out, "a:0") == packets(source, "a:0")
        if name == "out.avi":
            one_line(lines, "only has a constant rate, 30 fps", "frames are repeated and 0 left out")
            assert len(times(out)) == round(float(stream(source)["duration"]) * 30)
        else:
            assert not lines


@needs_ffmpeg
def test_a_constant_rate_is_constant_in_avi_with_sound_that_begins_early(copied, tmp_path):
    source = make(tmp_path / "in.mp4", "-f", "lavfi", "-i", "sine=d=1", *X264, "-c:a", "aac", seconds=1)
    out, lines = copied(source, "out.avi")
    places = probe(out, "-show_packets", "-select_streams", "v")["packets"]
    assert [packet["dts"] for packet in places] == list(range(25)) and not lines


@needs_ffmpeg
def test_the_last_frame_keeps_its_time(copied, tmp_path):
    gif = make(tmp_path / "in.gif", "-vf", "select='lt(n,10)+eq(n,29)'", "-fps_mode", "vfr", seconds=2)
    assert seconds(gif) == pytest.approx(1.96)  # the last frame stays for 0.8 s
    for name in ("out.mp4", "out.mkv"):
        out, _ = copied(gif, name)
        again, _ = copied(out, f"again{out.suffix}")
        assert seconds(out) == pytest.approx(1.96, abs=0.002) == seconds(again)
        assert times(out) == pytest.approx(times(gif), abs=0.001)
    out, _ = copied(tmp_path / "out.mp4", "part.mp4", start=5, end=10)  # the tenth frame stays until the eleventh comes
    assert seconds(out) == pytest.approx(0.96, abs=0.002)


@needs_ffmpeg
@pytest.mark.parametrize("count", [1, 2])
def test_clips_too_short_to_reorder(copied, tmp_path, count):
    source = make(tmp_path / "in.mp4", "-c:v", "libx265", "-x265-params", "log-level=error", seconds=0.04 * count)
    for _ in range(4):  # libx265's decoding times are random then
        out, _ = copied(source, "out.mov")
        with av.open(str(out)) as container:
            assert [frame.time for frame in container.decode(video=0)] == [0, 0.04][:count]


@needs_ffmpeg
@pytest.mark.parametrize("name", ["out.mov", "out.mp4", "out.mkv", "out.webm", "out.avi"])
def test_gif_keeps_its_colours_everywhere(copied, tmp_path, name):
    filters = "split[a][b];[a]palettegen[p];[b][p]paletteuse=dither=none"
    gif = make(tmp_path / "in.gif", "-vf", filters)
    out, lines = copied(gif, name)
    assert np.abs(pixels(out) - pixels(gif)).mean(axis=(1, 2)).max() < 3
    one_line(lines, "gif cannot be written into")  # QuickTime holds it, but PyAV's encoder takes palettes and grey


# --- other tracks ---------------------------------------------------------------------------------------------------


@needs_ffmpeg
@pytest.mark.parametrize("name, dropped", [("out.avi", "opus"), ("out.mov", "opus")])
def test_a_lost_language_is_said_where_another_track_is_left_out(copied, tmp_path, name, dropped):
    tone = ("-f", "lavfi", "-i", "sine=d=0.3")
    sounds = (*tone, *tone, "-map", "0", "-map", "1", "-map", "2")
    spoken = ("-metadata:s:a:0", "language=deu", "-metadata:s:a:1", "language=fra")
    source = make(tmp_path / "in.mkv", *sounds, *X264, "-c:a:0", "aac", "-c:a:1", "libopus", *spoken)
    out, lines = copied(source, name)
    one_line(lines, "audio track 2", dropped)
    assert stream(out, "audio").get("tags", {}).get("language", "und") == "und"
    one_line(lines, "languages of audio (deu)")


@needs_ffmpeg
def test_sound_longer_than_the_picture_is_kept_to_its_end(copied, tmp_path):
    sound = ("-f", "lavfi", "-i", "sine=d=3")
    for name, codec in (("in.mp4", "aac"), ("in.mkv", "libvorbis"), ("in.avi", "libmp3lame")):
        source = make(tmp_path / name, *sound, *X264, "-c:a", codec, seconds=1)
        out, lines = copied(source, f"out{source.suffix}")
        assert packets(out, "a:0") == packets(source, "a:0") and not lines
        assert seconds(out) == pytest.approx(seconds(source), abs=0.1)
    part, _ = copied(tmp_path / "in.mp4", "part.mp4", start=5, end=20)
    assert seconds(part) == pytest.approx(0.6, abs=0.03)
    part, _ = copied(tmp_path / "in.mp4", "rest.mp4", start=5)
    assert seconds(part) == pytest.approx(2.8, abs=0.03)


SUBTITLES = "1\n00:00:00,100 --> 00:00:00,400\nHello\n\n2\n00:00:00,500 --> 00:00:00,900\nWorld\n"
CHAPTERS = """;FFMETADATA1
title=Rain
artist=Me
[CHAPTER]
TIMEBASE=1/1000
START=0
END=400
title=One
[CHAPTER]
TIMEBASE=1/1000
START=400
END=1000
title=Two
"""


@pytest.fixture
def everything(tmp_path):
    """A function: a file with sound, subtitles, chapters and tags, and what the options add."""
    (tmp_path / "s.srt").write_text(SUBTITLES)
    (tmp_path / "m.txt").write_text(CHAPTERS)

    def made(name: str, subtitles: str, *options: object, inputs: tuple[object, ...] = ()) -> Path:
        more = ("-f", "lavfi", "-i", "sine=d=1", "-i", tmp_path / "s.srt", "-i", tmp_path / "m.txt", *inputs)
        maps = ("-map", 0, "-map", 1, "-map", 2, "-map_metadata", 3)
        marks = ("-metadata:s:a", "language=fra", "-metadata:s:s", "language=eng", "-metadata:s:v:0", "title=Cam")
        return make(
            tmp_path / name, *more, *maps, *options, "-c:v:0", "libx264", "-pix_fmt:v:0", "yuv420p", "-c:a", "ac3",
            "-c:s", subtitles, *marks, seconds=1,
        )  # fmt: skip

    return made


@needs_ffmpeg
def test_matroska_keeps_everything(everything, copied, tmp_path):
    font = np.random.default_rng(0).bytes(2000)
    (tmp_path / "font.ttf").write_bytes(font)
    attached = ("-attach", tmp_path / "font.ttf", "-metadata:s:t", "mimetype=application/x-truetype-font")
    source = everything("in.mkv", "ass", *attached)
    out, lines = copied(source, "out.mkv")
    assert not lines
    before, after = probe(source), probe(out)
    assert [one["codec_name"] for one in after["streams"]] == ["h264", "ac3", "ass", "ttf"]
    assert [one.get("tags", {}).get("language") for one in after["streams"][1:3]] == ["fra", "eng"]
    assert after["streams"][0]["tags"]["title"] == "Cam"
    assert after["streams"][3]["tags"]["filename"] == "font.ttf"
    assert [packets(out, which) for which in ("a:0", "s:0")] == [packets(source, which) for which in ("a:0", "s:0")]
    assert [(c["start_time"], c["end_time"], c["tags"]["title"]) for c in after["chapters"]] == [
        (c["start_time"], c["end_time"], c["tags"]["title"]) for c in before["chapters"]
    ]
    tags = {key.lower(): value for key, value in after["format"]["tags"].items()}
    assert (tags["title"], tags["artist"]) == ("Rain", "Me")
    subprocess.run(["ffmpeg", "-v", "error", "-dump_attachment:t:0", tmp_path / "got.ttf", "-i", out], check=False)
    assert (tmp_path / "got.ttf").read_bytes() == font


@needs_ffmpeg
@pytest.mark.parametrize("name, codec", [("out.mkv", "ass"), ("out.mkv", "subrip"), ("out.mp4", "mov_text")])
def test_a_subtitle_that_began_before_a_part_begins_with_it(copied, tmp_path, name, codec):
    """Of several that overlap, too; pictures and chapters stay where they are."""
    spans = [("00,100", "01,200"), ("00,200", "00,400"), ("00,300", "00,900"), ("01,400", "01,600")]
    if codec == "mov_text":  # which has one at a time
        del spans[1:3]
    texts = [f"{n}\n00:00:{a} --> 00:00:{b}\ntext {n}\n\n" for n, (a, b) in enumerate(spans)]
    (tmp_path / "s.srt").write_text("".join(texts))
    (tmp_path / "m.txt").write_text(";FFMETADATA1\n[CHAPTER]\nTIMEBASE=1/1000\nSTART=1000\nEND=2000\ntitle=Two\n")
    more = ("-i", tmp_path / "s.srt", "-i", tmp_path / "m.txt", "-map", 0, "-map", 1, "-map_chapters", 2)
    source = make(tmp_path / f"in{Path(name).suffix}", *more, *X264, "-bf", "0", "-c:s", codec, seconds=2)
    out, lines = copied(source, name, start=15)
    assert not lines and times(out)[0] == 0 and len(times(out)) == 35
    shown = probe(out, "-show_packets", "-select_streams", "s:0")["packets"]
    spans = [(float(one["pts_time"]), float(one["duration_time"])) for one in shown if int(one["size"]) > 2]
    wanted = [(0, 0.6), (0, 0.3), (0.8, 0.2)] if codec != "mov_text" else [(0, 0.6), (0.8, 0.2)]
    assert np.allclose(spans, wanted, atol=0.003)
    if name == "out.mkv":  # the first of MP4's chapters is at 0
        assert float(probe(out)["chapters"][0]["start_time"]) == pytest.approx(0.4, abs=0.002)


@needs_ffmpeg
def test_what_a_container_does_not_hold_is_one_line(everything, copied):
    source = everything("in.mkv", "ass")
    out, lines = copied(source, "out.mp4")
    assert one_line(lines, "left out").endswith("as mp4 does not hold it: subtitle track 2 (ssa, eng)")
    assert len(probe(out)["chapters"]) == 2 and packets(out, "a:0") == packets(source, "a:0")
    out, lines = copied(source, "out.webm")
    one_line(lines, "as webm does not hold it: audio track 1 (ac3, fra); subtitle track 2 (ssa, eng)")
    one_line(lines, "h264 cannot be written into webm here, vp9 is used instead")
    out, lines = copied(source, "out.avi")
    one_line(lines, "as avi does not hold it: subtitle track 2")
    one_line(lines, "as .avi does not hold it: chapters; languages of audio (fra)")


@needs_ffmpeg
def test_cover_and_timecode(everything, copied, tmp_path):
    cover = make(tmp_path / "cover.jpg", "-frames:v", 1)
    more = ("-map", 4, "-c:v:1", "copy", "-disposition:v:1", "attached_pic", "-timecode", "01:00:00:00")
    source = everything("in.mp4", "mov_text", *more, inputs=("-i", cover))
    out, lines = copied(source, "out.mp4")
    assert not lines
    assert packets(out, "v:1") == packets(source, "v:1") and packets(out, "s:0") == packets(source, "s:0")
    assert stream(out, number=1)["disposition"]["attached_pic"] == 1
    assert stream(out)["tags"]["timecode"] == "01:00:00:00"
    assert [c["tags"]["title"] for c in probe(out)["chapters"]] == ["One", "Two"]
    out, lines = copied(source, "out.mkv")
    assert one_line(lines, "left out").endswith("subtitle track 2 (mov_text, eng)")
    assert packets(out, "v:1") == packets(source, "v:1")
    part, _ = copied(source, "part.mp4", start=5, end=20)
    assert "timecode" not in stream(part)["tags"]
    assert [(c["start_time"], c["end_time"]) for c in probe(part)["chapters"]] == [
        ("0.000000", "0.200000"),
        ("0.200000", "0.600000"),
    ]


@needs_ffmpeg
def test_a_cover_is_not_the_clip(copied, tmp_path):
    cover = make(tmp_path / "cover.png", "-frames:v", 1, picture="color=red:s=32x32:d={seconds}")
    options = ("-i", cover, "-map", 1, "-map", 0, "-c:v:0", "copy", "-disposition:v:0", "attached_pic")
    source = make(tmp_path / "in.mp4", *options, "-c:v:1", "libx264", "-pix_fmt:v:1", "yuv420p")
    with open_reader(source) as reader:
        assert reader.size == (96, 64) and len(list(reader)) == 5


@needs_ffmpeg
def test_channels_without_a_layout(copied, tmp_path):
    sound = ("-f", "lavfi", "-i", "sine=d=0.2", "-ac", 2, "-c:a", "pcm_s16le")
    source = make(tmp_path / "in.avi", *sound, "-c:v", "mpeg4")
    out, lines = copied(source, "out.mp4")
    assert not lines and stream(out, "audio")["codec_name"] == "pcm_s16le" and stream(out, "audio")["channels"] == 2


@needs_ffmpeg
def test_a_track_that_does_not_fit_costs_only_itself(copied, tmp_path):
    sounds = ("-f", "lavfi", "-i", "sine=d=1", "-f", "lavfi", "-i", "sine=f=900:d=1", "-map", 0, "-map", 1, "-map", 2)
    source = make(tmp_path / "in.ts", *sounds, *X264, "-c:a:0", "aac", "-c:a:1", "mp2", seconds=1)
    out, lines = copied(source, "out.avi")
    assert "audio track 1 (aac)" in one_line(lines, "left out, as avi does not hold it")
    assert packets(out, "a:0") == packets(source, "a:1")
    for name in ("out.mp4", "out.mkv"):
        out, lines = copied(source, name)
        assert not lines and packets(out, "a:1") == packets(source, "a:1")
        assert len(packets(out, "a:0")) == len(packets(source, "a:0"))


# --- colours, depth, shape ------------------------------------------------------------------------------------------

LUMA = {1: (0.2126, 0.0722), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}


@pytest.mark.parametrize("pix_fmt, depth", [("yuv444p", 8), ("yuv444p10le", 10), ("yuv444p12le", 12)])
@pytest.mark.parametrize("matrix", LUMA)
@pytest.mark.parametrize("full", [False, True])
def test_numbers_are_those_of_the_standard(pix_fmt, depth, matrix, full):
    """ITU-T H.273, equations 24 to 29 and 38 to 40, of 8 and of 16 bits."""
    rng = np.random.default_rng(0)
    for peak, kind in ((255, np.uint8), (65535, np.uint16)):
        rgb = rng.integers(0, peak + 1, (8, 16, 3)).astype(kind)
        rgb[0, :2] = ((0, 0, 0), (peak, peak, peak))
        red, green, blue = np.moveaxis(rgb / peak, 2, 0)
        kr, kb = LUMA[matrix]
        luma = kr * red + (1 - kr - kb) * green + kb * blue
        chroma = ((blue - luma) / (1 - kb) / 2, (red - luma) / (1 - kr) / 2)
        scale, top = 2 ** (depth - 8), 2**depth - 1
        expected = [top * luma if full else scale * (219 * luma + 16)]
        expected += [(top if full else scale * 224) * part + scale * 128 for part in chroma]
        frame = from_rgb(rgb, pix_fmt, Colours(matrix, 2 if full else 1))
        for plane, numbers in zip(frame.planes, expected, strict=True):
            got = np.frombuffer(plane, np.uint8 if depth == 8 else "<u2").reshape(plane.height, -1)[:, : plane.width]
            assert np.abs(got - np.minimum(numbers, top)).max() <= 0.51
        back = to_rgb(frame)
        step = 255 / top * (1 if full else 256 / 219)
        assert np.abs(back / (257 if back.dtype == np.uint16 else 1) - rgb * (255 / peak)).max() <= 0.5 + 1.4 * step


@pytest.mark.parametrize("pix_fmt", ["gbrp", "bgr0", "rgb24", "rgb48be", "gbrp10le", "gray", "gray16le"])
def test_formats_that_hold_the_numbers_keep_them(pix_fmt):
    for peak, kind in ((255, np.uint8), (65535, np.uint16)):
        grey = np.linspace(0, peak, 32).astype(kind)
        rgb = np.broadcast_to(grey[None, :, None], (4, 32, 3)) if "gray" in pix_fmt else None
        rgb = np.stack([grey, grey[::-1], grey // 2], axis=1)[None].repeat(4, 0) if rgb is None else rgb
        back = to_rgb(from_rgb(rgb, pix_fmt, Colours().for_format(pix_fmt)._replace(range=2)))
        step = 0.26 if "10" in pix_fmt else 0.51 if back.dtype == np.uint8 and peak > 255 else 0.01
        assert np.abs(back / (257 if back.dtype == np.uint16 else 1) - rgb * (255 / peak)).max() <= step


@needs_ffmpeg
@pytest.mark.parametrize("name", ["out.mkv", "out.mp4", "out.webm"])
def test_rgb_is_marked_as_what_is_written(copied, tmp_path, name):
    source = make(tmp_path / "in.mkv", "-c:v", "libx264rgb", "-qp", 0)
    out, lines = copied(source, name)
    facts = stream(out)
    rgb_marked = facts.get("color_space") == "gbr"
    assert rgb_marked == facts["pix_fmt"].startswith(("gbr", "rgb", "bgr"))
    assert "420" not in facts["pix_fmt"]
    assert np.abs(pixels(out) - pixels(source)).mean(axis=(0, 1, 2)).max() < 2
    assert len(lines) == (name == "out.webm")


@needs_ffmpeg
def test_matrices_that_are_not_read_are_one_line_and_marks_that_cannot_be_are_mended(copied, tmp_path):
    coded = make(tmp_path / "in.mkv", "-c:v", "libx264", "-pix_fmt", "yuv444p", "-colorspace", "ycgco")
    with pytest.raises(CSDError, match=r"in\.mkv: its colours use matrix 8 of ITU-T H\.273"):
        open_reader(coded)
    marked = make(tmp_path / "marked.mkv", *X264, "-colorspace", "rgb")  # but 4:2:0
    out, lines = copied(marked, "out.mkv")
    assert stream(out)["color_space"] == "bt709" and not lines


@needs_ffmpeg
def test_transparency_is_named_where_there_is_any(copied, tmp_path):
    for name, half, codec, pix_fmt in (
        ("a.mov", True, "prores_ks", "yuva444p10le"),
        ("b.mov", False, "qtrle", "argb"),
        ("c.webm", True, "libvpx-vp9", "yuva420p"),
    ):
        alpha = f"format={pix_fmt},colorchannelmixer=aa={0.5 if half else 1}"
        source = make(tmp_path / name, "-vf", alpha, "-c:v", codec, "-pix_fmt", pix_fmt)
        out, lines = copied(source, f"out{source.suffix}")
        assert sum("transparency (alpha) is left out" in line for line in lines) == half
        assert "a" not in stream(out)["pix_fmt"] and "alpha_mode" not in stream(out).get("tags", {})


@needs_ffmpeg
@pytest.mark.parametrize("codec", [("libx264", "-crf", 1), ("ffv1",)])
def test_full_range_does_not_drift(copied, tmp_path, codec):
    """Three copies of one colour, each of the one before: half a level of chroma a copy would be seen."""
    marks = ("-color_range", "pc", "-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709")
    flat = "color=0x30b060:s=96x64:r=25:d={seconds}"
    source = make(
        tmp_path / "in.mkv", "-vf", "scale=out_color_matrix=bt709:out_range=full", "-c:v", *codec, "-pix_fmt",
        "yuv420p", *marks, picture=flat,
    )  # fmt: skip
    out = source
    for number in range(3):
        out, lines = copied(out, f"{number}.mkv")
        assert not lines
    assert stream(out)["color_range"] == "pc" and stream(out)["color_space"] == "bt709"
    assert np.abs(pixels(out).mean(axis=(0, 1, 2)) - pixels(source).mean(axis=(0, 1, 2))).max() < 0.6


@needs_ffmpeg
def test_range_that_is_not_marked_is_limited(copied, tmp_path):
    marks = ("-color_range", "pc", "-colorspace", "bt709", "-color_primaries", "bt709", "-color_trc", "bt709")
    full = ("-vf", "scale=out_color_matrix=bt709:out_range=full")
    source = make(tmp_path / "in.mp4", *full, "-c:v", "mpeg4", "-q:v", 2, *marks)
    out, lines = copied(source, "out.avi")
    one_line(lines, "mpeg4 in avi does not hold full range", "the mark of the colours' matrix")
    assert "color_range" not in stream(out)
    assert np.abs(pixels(out).mean(axis=(0, 1, 2)) - pixels(source).mean(axis=(0, 1, 2))).max() < 1.5


@needs_ffmpeg
def test_grey_keeps_range_and_depth(copied, tmp_path):
    source = make(tmp_path / "in.mkv", "-c:v", "ffv1", "-level", 3, "-pix_fmt", "gray16le", "-color_range", "pc")
    out, lines = copied(source, "out.mkv")
    assert not lines and stream(out)["pix_fmt"] == "gray16le"
    assert np.array_equal(pixels(out, "rgb48le"), pixels(source, "rgb48le"))
    out, lines = copied(source, "out.mov")
    one_line(lines, "h264 holds 10 bits per channel here, the input has 16")
    assert np.abs(pixels(out, "rgb48le") - pixels(source, "rgb48le")).mean() < 1


@needs_ffmpeg
def test_sixteen_bits_stay(copied, tmp_path):
    source = make(tmp_path / "in.mov", "-c:v", "png", "-pix_fmt", "rgb48be")
    out, lines = copied(source, "out.mov")
    assert not lines and stream(out)["pix_fmt"] == "rgb48be"
    assert np.array_equal(pixels(out, "rgb48le"), pixels(source, "rgb48le"))


def test_deep_frames_get_the_deepest_format_that_there_is(tmp_path, caplog):
    """Frames of 16 bits without a file that they come from, as of a folder."""
    with open_reader(make_video(tmp_path / "in.mp4", codec="libx265", pix_fmt="yuv420p10le")) as reader:
        frames = list(reader)
    (tmp_path / "folder").mkdir()
    cv2.imwrite(str(tmp_path / "folder" / "1.png"), frames[0][..., ::-1])
    with open_reader(tmp_path / "folder") as like, open_writer(tmp_path / "out.mp4", like=like) as writer:
        writer.write(frames[0])
    with av.open(str(tmp_path / "out.mp4")) as container:
        assert container.streams.video[0].codec_context.pix_fmt == "yuv420p10le"


HDR = "master-display=G(13250,34500)B(7500,3000)R(34000,16000)WP(15635,16450)L(10000000,50):max-cll=1000,400"


@needs_ffmpeg
@pytest.mark.parametrize(
    "name, codec", [("out.mp4", "hevc"), ("out.webm", "av1"), ("out.mkv", "hevc"), ("out.avi", "h264")]
)
def test_hdr10_stays_hdr10(copied, tmp_path, name, codec):
    params = ("-x265-params", f"log-level=error:hdr10=1:repeat-headers=1:{HDR}")
    marks = ("-color_primaries", "bt2020", "-color_trc", "smpte2084", "-colorspace", "bt2020nc", "-color_range", "tv")
    source = make(tmp_path / "in.mp4", "-c:v", "libx265", "-pix_fmt", "yuv420p10le", *params, *marks)
    out, lines = copied(source, name)
    facts = stream(out)
    assert (facts["codec_name"], facts["pix_fmt"]) == (codec, "yuv420p10le")
    assert [facts[key] for key in ("color_primaries", "color_transfer", "color_space", "color_range")] == [
        "bt2020", "smpte2084", "bt2020nc", "tv",
    ]  # fmt: skip
    with av.open(str(out)) as container:
        found = next(container.decode(video=0)).side_data
        display = np.frombuffer(found["MASTERING_DISPLAY_METADATA"], np.int32)
        levels = np.frombuffer(found["CONTENT_LIGHT_LEVEL"], np.uint32)
    expected = [0.68, 0.32, 0.265, 0.69, 0.15, 0.06, 0.3127, 0.329, 0.005, 1000]
    assert display[0:20:2] / display[1:20:2] == pytest.approx(expected, rel=1e-3, abs=1e-3)
    assert levels[:2].tolist() == [1000, 400]
    assert len(lines) == (codec != "hevc")


@needs_ffmpeg
@pytest.mark.parametrize("name", ["out.mp4", "out.m4v", "out.mov"])
def test_hevc_has_the_name_that_apples_players_know(copied, tmp_path, name):
    out, lines = copied(make(tmp_path / "in.mov", "-c:v", "libx265", "-x265-params", "log-level=error"), name)
    facts = stream(out)
    assert (facts["codec_name"], facts["codec_tag_string"], lines) == ("hevc", "hvc1", [])
    assert len(times(out)) == len(times(tmp_path / "in.mov"))


@pytest.mark.parametrize("rotation, expected", [(0, Fraction(4, 3)), (180, Fraction(4, 3)), (90, Fraction(3, 4))])
def test_the_pixels_aspect_turns_with_the_picture(copied, tmp_path, rotation, expected):
    with av.open(str(tmp_path / "in.mp4"), "w") as container:
        made = container.add_stream("libx264", rate=25)
        made.width, made.height, made.pix_fmt = 64, 48, "yuv420p"
        made.codec_context.sample_aspect_ratio = Fraction(4, 3)
        if rotation:
            made.set_display_rotation(rotation)
        for number in range(2):
            container.mux(made.encode(av.VideoFrame.from_ndarray(picture(number), "rgb24")))
        container.mux(made.encode(None))
    for name in ("out.mp4", "out.mkv", "out.avi"):
        out, lines = copied(tmp_path / "in.mp4", name)
        with av.open(str(out)) as container:
            found = container.streams.video[0]
            assert (found.width, found.height) == ((48, 64) if rotation == 90 else (64, 48))
            assert found.sample_aspect_ratio == expected and not lines


@needs_ffmpeg
def test_interlaced_video_is_named_and_stays_marked(copied, tmp_path):
    fields = ("-vf", "setfield=tff", "-flags", "+ildct+ilme")
    source = make(tmp_path / "in.mp4", *fields, *X264, "-x264opts", "tff=1")
    out, lines = copied(source, "out.mp4")
    one_line(lines, "in.mp4 is interlaced, top field first", "deinterlace first")
    assert len(lines) == 1 and stream(out)["field_order"] == "tt"
    out, lines = copied(source, "out.webm")
    one_line(lines, "does not hold the field order")


# --- encoders -------------------------------------------------------------------------------------------------------


@needs_ffmpeg
def test_vp8_and_an_encoder_that_does_not_open(copied, tmp_path):
    source = make(tmp_path / "in.webm", "-c:v", "libvpx", "-b:v", "2M", "-pix_fmt", "yuv420p")
    out, lines = copied(source, "out.webm")
    assert stream(out)["codec_name"] == "vp8" and not lines
    assert np.abs(pixels(out) - pixels(source)).mean() < 3
    source = make(
        tmp_path / "in.mov", "-c:v", "dnxhd", "-profile:v", "dnxhr_lb", "-pix_fmt", "yuv422p",
        picture="testsrc2=s=256x128:r=25:d={seconds}",
    )  # fmt: skip
    out, lines = copied(source, "out.mov")
    one_line(lines, "dnxhd cannot be written into mov here, h264 is used instead")
    assert stream(out)["codec_name"] == "h264" and len(times(out)) == 5


@needs_ffmpeg
@pytest.mark.parametrize("name", ["in.avi", "in.y4m", "in.nut"])
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv422p"])
def test_uncompressed_video(copied, tmp_path, name, pix_fmt):
    codec = () if name.endswith("y4m") else ("-c:v", "rawvideo")
    source = make(tmp_path / name, *codec, "-pix_fmt", pix_fmt)
    for target in ("out.avi", "out.mkv", "out.mov"):
        out, lines = copied(source, target)
        assert len(times(out)) == 5
        assert np.abs(pixels(out) - pixels(source)).mean() < 2
        assert len(lines) <= 1


@needs_ffmpeg
@pytest.mark.parametrize("name", ["in.mkv", "in.avi", "in.mov"])
def test_jpegs_with_exif(copied, tmp_path, name):
    """PyAV has no name for FFmpeg's side data of EXIF; the orientation in it holds."""
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Camera"  # turned by 90 degrees, clockwise
    for number in range(3):
        Image.fromarray(picture(number)).save(tmp_path / f"{number}.jpg", exif=exif, quality=95)
    command = ["ffmpeg", "-v", "error", "-i", tmp_path / "%d.jpg", "-c", "copy", tmp_path / name]
    subprocess.run([str(part) for part in command], check=True)
    out, lines = copied(tmp_path / name, f"out{Path(name).suffix}")
    assert not lines
    with av.open(str(out)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 3 and frames[0].shape == (64, 48, 3)
    turned = np.rot90(picture(1), -1).astype(float)
    assert np.abs(frames[1] - turned).mean() < 3


# --- names ----------------------------------------------------------------------------------------------------------


def test_names_as_long_as_they_may_be(copied, tmp_path):
    source = make_video(tmp_path / "in.mp4", times=[0, 40])
    name = "n" * 248 + ".mp4"
    out, _ = copied(source, name)
    assert out.exists() and sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4", name]
    drafts = {draft_of(tmp_path / ("n" * 248 + suffix)) for suffix in (".mp4", ".mkv", "x.mp4")}
    assert len(drafts) == 3 and all(len(os.fsencode(draft.name)) <= 255 for draft in drafts)


def test_two_programs_that_write_one_name(tmp_path, monkeypatch):
    source = make_video(tmp_path / "in.mp4")
    out = tmp_path / "out.mp4"
    with open_reader(source) as reader, open_reader(source) as other:
        first = open_writer(out, like=reader)
        monkeypatch.setattr(os, "getpid", lambda: 1)
        second = open_writer(out, like=other)
        for frame, same in zip(reader, other, strict=True):
            first.write(frame)
            second.write(same)
        first.close()
        data = out.read_bytes()
        with pytest.raises(CSDError, match=r"out\.mp4 has been written by another program meanwhile"):
            second.close()
    assert out.read_bytes() == data and sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4", "out.mp4"]
    with av.open(str(out)) as container:
        assert sum(1 for _ in container.decode(video=0)) == 8


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are listed on Linux")
@pytest.mark.skipif("libsvtav1" not in av.codecs_available, reason="this PyAV has no libsvtav1")
def test_no_encoder_changes_how_the_process_is_scheduled(tmp_path, monkeypatch):
    """libsvtav1 would, where it is allowed to, as root."""
    monkeypatch.delenv("SVT_LOG", raising=False)
    before, older = os.sched_getscheduler(0), set(Path("/proc/self/task").iterdir())
    look = Look("yuv420p", Colours())
    setup = Setup(av.Codec("libsvtav1", "w"), "yuv420p", {}, 0, Fraction(25), (64, 64), look, True)
    with av.open(tmp_path / "out.mp4", "w") as container:
        stream = setup.add_to(container, Fraction(25))
        threads = set()
        for thread in set(Path("/proc/self/task").iterdir()) - older:  # others have made their clips without us
            with suppress(ProcessLookupError):  # a thread may end now
                threads.add(os.sched_getscheduler(int(thread.name)))
        write_one(container, stream, from_rgb(np.zeros((64, 64, 3), np.uint8), "yuv420p", look.colours))
    assert threads == {before}
    assert os.sched_getscheduler(0) == before
    assert "SVT_LOG" not in os.environ


# --- frames that come from no reader --------------------------------------------------------------------------------


@pytest.mark.parametrize("fps", [25, 12.5, Fraction(30000, 1001), 30000 / 1001])
@pytest.mark.parametrize("name", ["out.mp4", "out.mkv", "out.avi", "out.webm"])
def test_frames_from_anywhere_become_a_silent_video_of_a_steady_rate(tmp_path, name, fps):
    shown = [picture(index, (32, 24)) for index in range(6)]
    with open_writer(tmp_path / name, fps=fps) as writer:
        for frame in (frame[..., ::-1] for frame in shown):  # such as OpenCV's, turned into RGB
            writer.write(frame)
    with av.open(tmp_path / name) as container:
        assert [one.type for one in container.streams] == ["video"] and not container.chapters()
    with open_reader(tmp_path / name) as reader:
        frames = list(reader)
        begins = [float(reader.stamp(index)[0] * reader.time_base) for index in range(6)]
        assert reader.size == (32, 24) and float(reader.fps) == pytest.approx(float(fps), rel=1e-3)
    np.testing.assert_allclose(begins, np.arange(6) / float(fps), atol=1e-3)  # Matroska counts milliseconds
    assert len(frames) == 6
    assert all(np.abs(a.astype(int) - b[..., ::-1]).mean() < 6 for a, b in zip(frames, shown, strict=True))


def test_frames_from_anywhere_are_numbered_in_folders_and_need_no_rate(tmp_path):
    for target, names in {"out": ["00001.png", "00002.png"], "out2/f_%03d.png": ["f_001.png", "f_002.png"]}.items():
        with open_writer(tmp_path / target) as writer:
            for index in range(2):
                writer.write(picture(index))
        assert sorted(file.name for file in (tmp_path / target.partition("/")[0]).iterdir()) == names


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({}, r"out\.mp4: give fps, the frames per second, or like, the reader"),
        ({"like": None}, "give fps"),
        ({"like": "rain.mp4"}, "like is a str, not a reader"),
        ({"fps": 0}, "fps is 0: give frames per second, above 0"),
        ({"fps": 1e-9}, "above 0"),
        ({"fps": "25"}, "fps is '25'"),
    ],
)
def test_a_rate_that_is_none_is_one_line(tmp_path, how, message):
    with pytest.raises(CSDError, match=message):
        open_writer(tmp_path / "out.mp4", **how)
    with (
        open_reader(make_video(tmp_path / "in.mp4")) as reader,
        pytest.raises(CSDError, match="like and fps are both given"),
    ):
        open_writer(tmp_path / "out.mp4", like=reader, fps=0)
    assert [file.name for file in tmp_path.iterdir()] == ["in.mp4"]


def test_a_video_of_frames_from_anywhere_is_quick_and_replaced_only_as_asked(tmp_path):
    files = []
    for quick in (False, True):
        with open_writer(tmp_path / "out.mp4", fps=25, overwrite=quick, quick=quick) as writer:
            for index in range(4):
                writer.write(picture(index))
        files.append((tmp_path / "out.mp4").read_bytes())
        with pytest.raises(CSDError, match="already exists; replace it with --overwrite"):
            open_writer(tmp_path / "out.mp4", fps=25)
    assert files[0] != files[1]
