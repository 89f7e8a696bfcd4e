"""What people read: joined streams, slow and cut files, raw MJPEG, animated WebP, folders of any depth and naming."""

from __future__ import annotations

import io
import logging
import os
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import cv2
import numpy as np
import pytest
from PIL import Image
from videos import SIZE, differ, make_video, packets, picture, read

from csd_plugin.data.images import write_png
from csd_plugin.data.video import open_reader, open_writer, videos_in, written_as
from csd_plugin.data.video.clock import Clock
from csd_plugin.data.video.complete import extent_of
from csd_plugin.errors import CSDError


def copy(source: Path, target: Path, **how) -> None:
    with open_reader(source, **how) as reader, open_writer(target, like=reader, overwrite=True) as writer:
        for frame in reader:
            writer.write(frame)


def joined(path: Path, *parts: Path) -> Path:
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    return path


def begins(path: Path, kind: str) -> list[Fraction]:
    """Seconds at which the packets of the first track of a kind begin, in display order."""
    with av.open(str(path)) as container:
        stream = next(stream for stream in container.streams if stream.type == kind)
        return sorted(packet.pts * packet.time_base for packet in container.demux(stream) if packet.size)


def make_stream(path: Path, *, start: int = 0, frames: int = 20, **how) -> Path:
    """Constant 25 frames per second that begin at `start` milliseconds."""
    return make_video(path, times=[start + 40 * i for i in range(frames)], **how)


@pytest.mark.parametrize("starts", [(0, 0), (0, 0, 0), (50_000, 0), (0, 50_000), (0, 95_443_000)])
def test_times_go_on_where_streams_were_joined(tmp_path, starts, caplog):
    """Also where the second begins earlier, later, or just before the 33 bits of its clock are full."""
    parts = [make_stream(tmp_path / f"{i}.ts", start=start) for i, start in enumerate(starts)]
    one, one_begins = read(parts[0])
    frames, times = read(joined(tmp_path / "joined.ts", *parts))
    assert len(frames) == len(parts) * len(one)
    assert differ(frames, one * len(parts)) < 1.0
    steps = np.diff([float(time) for time in times])
    assert np.allclose(steps, 0.04, atol=1e-4)
    assert [record.message for record in caplog.records if "clock restarts" in record.message]
    assert times[0] == one_begins[0]


def packet_of(stream, dts, pts, *, key=False):
    return SimpleNamespace(stream=stream, dts=dts, pts=pts, time_base=Fraction(1, 1000), duration=40, is_keyframe=key)


@pytest.mark.parametrize(
    ("packets", "jumps"),
    [
        # what FFmpeg guesses for a short Matroska file with frames that are shown in another order
        ([(23, 23, True), (183, 183, False), (None, 103, False), (63, 63, False), (143, 143, False)], 0),
        ([(0, 0, True), (40, 40, False), (80, 80, False), (120, 120, False), (0, 0, True)], 1),
        ([(9000, 9000, True), (9040, 9040, False), (0, 0, False), (40, 40, False)], 1),
    ],
)
def test_guessed_times_of_decoding_are_no_join(packets, jumps):
    container = SimpleNamespace(format=SimpleNamespace(flags=0))
    video = SimpleNamespace(index=0, container=container, average_rate=Fraction(25))
    made = [packet_of(video, dts, pts, key=key) for dts, pts, key in packets]
    container.demux = lambda *streams: iter(made)
    clock = Clock(video)
    assert len(list(clock.packets(video))) == len(packets)
    assert clock.jumps == jumps


def test_a_clock_that_is_full_is_no_join(tmp_path, caplog):
    """33 bits of 1/90000 s last 95443.7 s."""
    whole = make_stream(tmp_path / "late.ts", start=95_443_300, frames=40)
    frames, times = read(whole)
    assert len(frames) == 40 and np.allclose(np.diff([float(time) for time in times]), 0.04, atol=1e-4)
    assert not caplog.records


@pytest.mark.parametrize("name", ["in.ts", "in.mkv"])
def test_sound_keeps_step_over_a_join(tmp_path, name):
    part = make_stream(tmp_path / name, audio=1, noisy=True)
    source = joined(tmp_path / f"joined_{name}", part, part)
    copy(source, tmp_path / "out.mkv")
    pictures, sound = begins(tmp_path / "out.mkv", "video"), begins(tmp_path / "out.mkv", "audio")
    assert len(pictures) == 40 and np.allclose(np.diff([float(t) for t in pictures]), 0.04, atol=0.0011)
    # Sound is longer than its pictures by 53 ms, which lie over the second part, and then behind the end.
    assert 2 * len(packets(part, "audio")[0]) - 6 <= len(sound)
    gaps = np.diff([float(t) for t in sound])
    assert gaps.min() > 0.01 and gaps.max() < 2 * 1024 / 48000
    # A packet of the middle of the part is heard as long after the part's first picture in both parts.
    one, header = packets(part, "audio")[0], 7 if name == "in.ts" else 0
    lag = begins(part, "audio")[20] - begins(part, "video")[0]
    (heard,) = packets(tmp_path / "out.mkv", "audio")
    places = [index for index, packet in enumerate(heard) if packet == one[20][header:]]
    for index, start in zip(places, (pictures[0], pictures[20]), strict=True):
        assert abs(sound[index] - start - lag) < Fraction(3, 1000)


def test_segments_with_counters_of_their_own_are_no_damage(tmp_path, caplog):
    """As a segmenter writes them: times go on, packet counters start anew."""
    parts = [make_stream(tmp_path / f"{i}.ts", start=800 * i) for i in range(3)]
    frames, times = read(joined(tmp_path / "joined.ts", *parts))
    assert len(frames) == 60 and np.allclose(np.diff([float(time) for time in times]), 0.04, atol=1e-4)
    assert not caplog.records


def test_lost_data_inside_a_stream_is_damage(tmp_path):
    data = make_stream(tmp_path / "in.ts", frames=40, size=(160, 120), options={}).read_bytes()
    packets_of_188 = [data[i : i + 188] for i in range(0, len(data), 188)]
    middle = len(packets_of_188) // 2
    (tmp_path / "lossy.ts").write_bytes(b"".join(packets_of_188[: middle - 2] + packets_of_188[middle + 1 :]))
    with pytest.raises(CSDError, match="is damaged after frame"):
        read(tmp_path / "lossy.ts")


@pytest.mark.parametrize("name, count", [("in.mp4", 2), ("in.mov", 2), ("in.mkv", 3), ("in.flv", 2)])
def test_joined_files_of_which_readers_see_a_part_are_not_taken_for_whole(tmp_path, name, count):
    part = make_stream(tmp_path / name, frames=8)
    with pytest.raises(CSDError, match=r"is damaged after frame \d+ \(1 more files appended"):
        read(joined(tmp_path / f"joined_{name}", *[part] * count))
    assert len(read(part)[0]) == 8


@pytest.mark.parametrize("name, codec", [("slow.mkv", "libx264"), ("slow.webm", "libvpx-vp9"), ("slow.mkv", "ffv1")])
@pytest.mark.parametrize("times", [[0, 2000, 4000], [0, 40, 80, 10_000]])
def test_slow_matroska_is_whole(tmp_path, name, codec, times):
    frames, seconds = read(make_video(tmp_path / name, codec=codec, times=times))
    assert [float(time) for time in seconds] == pytest.approx([time / 1000 for time in times], abs=0.002)
    assert differ(frames, [picture(i) for i in range(len(times))]) < 3


@pytest.mark.parametrize("name, codec", [("cut.mkv", "libx264"), ("cut.webm", "libvpx-vp9"), ("cut.avi", "mpeg4")])
@pytest.mark.parametrize("share", [0.95, 0.6])
def test_a_missing_end_is_found_by_the_file_s_own_size(tmp_path, name, codec, share):
    whole = make_stream(tmp_path / f"whole_{name}", codec=codec, frames=30)
    data = whole.read_bytes()
    (tmp_path / name).write_bytes(data[: int(len(data) * share)])
    assert len(read(whole)[0]) == 30
    with pytest.raises(CSDError, match="is damaged after frame"):
        read(tmp_path / name)
    assert 0 < len(read(tmp_path / name, keep_going=True)[0]) <= 30


@pytest.mark.parametrize("name, codec", [("in.mp4", "libx264"), ("in.mkv", "libx264"), ("in.avi", "mpeg4")])
def test_pictures_that_the_decoder_patches_up_are_named(tmp_path, name, codec, caplog):
    """FFmpeg fills damaged parts from other frames, and goes on as if nothing had been."""
    whole = make_stream(tmp_path / name, frames=24, codec=codec, size=(320, 240))
    with av.open(str(whole)) as container:
        place, size = max(((p.pos, p.size) for p in container.demux(video=0) if p.size), key=lambda found: found[1])
    data = bytearray(whole.read_bytes())
    body = slice(place + size // 4, place + size // 2)
    data[body] = np.random.default_rng(0).bytes(body.stop - body.start)
    damaged = tmp_path / f"damaged_{name}"
    damaged.write_bytes(data)
    with pytest.raises(CSDError, match=r"is damaged in frame \d+, which the decoder has patched up; keep_going"):
        read(damaged)
    assert len(read(damaged, keep_going=True)[0]) == 24
    assert [line for line in caplog.messages if "patched up; it is used nevertheless" in line]


def test_pictures_in_front_of_the_first_whole_one_are_counted(tmp_path, caplog):
    """A recording that begins in the middle: its first pictures build on ones that are not there."""
    whole, late = tmp_path / "whole.ts", tmp_path / "late.ts"
    with av.open(str(whole), "w") as container:
        video = container.add_stream("mpeg2video", rate=25)
        video.width, video.height, video.pix_fmt, video.gop_size = (*SIZE, "yuv420p", 10)
        for number in range(40):
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture(number % 10), "rgb24")))
        container.mux(video.encode(None))
    assert len(read(whole)[0]) == 40 and not caplog.messages
    with av.open(str(whole)) as container:
        found = [packet for packet in container.demux(video=0) if packet.size]
    late.write_bytes(whole.read_bytes()[found[3].pos :])
    lost = next(number for number, packet in enumerate(found[3:]) if packet.is_keyframe)
    assert lost > 0 and len(read(late)[0]) == 37 - lost
    assert [line for line in caplog.messages if f"{lost} of its pictures cannot be decoded" in line]


@pytest.mark.parametrize("clusters", [{}, {"cluster_time_limit": "400"}, {"live": "1"}], ids=["one", "many", "live"])
def test_frames_of_matroska_are_not_lost_in_silence(tmp_path, clusters):
    """Readers pass over what is damaged, up to the next cluster."""
    times = [40 * i for i in range(60)]
    whole = make_video(tmp_path / "whole.mkv", size=(160, 120), times=times, options=clusters)
    data = whole.read_bytes()
    assert len(read(whole)[0]) == 60
    with av.open(str(whole)) as container:
        places = [packet.pos for packet in container.demux(video=0) if packet.size]
    lengths = {number: slice(places[number] - 3, places[number]) for number in range(1, 59, 6)}
    tracks = {number: slice(places[number], places[number] + 1) for number in range(3, 59, 12)}
    for number, head in (lengths | tracks).items():  # what says that a block of this length follows, and of which track
        damaged = tmp_path / f"damaged_{number}.mkv"
        damaged.write_bytes(data[: head.start] + bytes(byte ^ 255 for byte in data[head]) + data[head.stop :])
        with pytest.raises(CSDError, match="is damaged after frame"):
            read(damaged)
        assert len(read(damaged, keep_going=True)[0]) < 60


@pytest.mark.parametrize(
    "options",
    [
        {"live": "1"},
        {"write_crc32": "1"},
        {"dash": "1"},
        {"reserve_index_space": "9000"},
        {"cluster_time_limit": "100"},
    ],
    ids=str,
)
def test_matroska_of_all_kinds_is_whole(tmp_path, options):
    """A browser gives neither the recording nor its clusters a size; joined, cut, or with room left they are whole."""
    made = make_video(tmp_path / "in.mkv", times=[40 * i for i in range(30)], options=options)
    assert extent_of(made, "matroska").broken is None and len(read(made)[0]) == 30
    data = made.read_bytes()
    if options == {"live": "1"}:
        first = data.index(b"\x1f\x43\xb6\x75") + 4
        length = 9 - data[first].bit_length()
        data = data[:first] + b"\x01" + b"\xff" * 7 + data[first + length :]
        made.write_bytes(data + bytes(5000))
        assert extent_of(made, "matroska").broken is None
        for cut in range(len(data) - 40, len(data)):
            made.write_bytes(data[:cut])
            assert extent_of(made, "matroska").broken is None
    for count in (1, 2, 3):
        made.write_bytes(data * count)
        assert extent_of(made, "matroska").broken is None


def test_a_change_of_size_is_named_by_the_input_and_each_side_can_be_had(tmp_path):
    wide = (96, 48)
    parts = [make_stream(tmp_path / "a.ts", frames=10), make_stream(tmp_path / "b.ts", frames=10, size=wide)]
    source = joined(tmp_path / "sizes.ts", *parts)
    expected = r"sizes\.ts: frame 10 is 96x48, those before it are 64x48.*--end 10 .*--start 10 "
    for how in ({}, {"keep_going": True}, {"start": 8, "end": 12}, {"context": 3}):
        with pytest.raises(CSDError, match=expected):
            read(source, **how)
    assert {frame.shape for frame in read(source, end=10)[0]} == {(48, 64, 3)}
    for how in ({"start": 10}, {"start": 10, "context": 3}, {"start": 11, "context": 3}):
        with open_reader(source, **how) as reader:
            frames = list(reader)
            assert reader.size == wide and {frame.shape for frame in frames} == {(48, 96, 3)}
            assert reader.lead == how["start"] - 10
            assert sum(map(reader.in_part, range(len(frames)))) == 20 - how["start"]
    with open_reader(source, end=8, context=3) as reader:
        assert [frame.shape for frame in reader] == [(48, 64, 3)] * 10


def test_a_change_of_depth_is_named_too(tmp_path):
    parts = [make_stream(tmp_path / f"{fmt}.ts", frames=10, pix_fmt=fmt) for fmt in ("yuv420p", "yuv420p10le")]
    source = joined(tmp_path / "depths.ts", *parts)
    with pytest.raises(CSDError, match="frame 10 is 64x48 of more than 8 bits, those before it are 64x48, "):
        read(source)
    assert read(source, start=10)[0][0].dtype == np.uint16


def test_raw_mjpeg(tmp_path):
    jpegs = [cv2.imencode(".jpg", picture(i)[..., ::-1])[1].tobytes() for i in range(6)]
    (tmp_path / "raw.mjpeg").write_bytes(b"".join(jpegs))
    frames, times = read(tmp_path / "raw.mjpeg")
    assert differ(frames, [picture(i) for i in range(6)]) < 2
    assert times == [Fraction(i, 25) for i in range(6)]


@pytest.mark.parametrize("name, codec", [("a.h261", "h261"), ("a.h263", "h263"), ("a.swf", "flv")])
def test_containers_that_hold_little_else_than_pictures(tmp_path, name, codec):
    with av.open(str(tmp_path / name), "w") as container:
        stream = container.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 176, 144, "yuv420p"
        for number in range(8):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(number, (176, 144)), "rgb24")))
        container.mux(stream.encode(None))
    assert differ(read(tmp_path / name)[0], [picture(number, (176, 144)) for number in range(8)]) < 8


@pytest.mark.parametrize(
    "times, expected",
    [
        ([0, 40, 80, 80, 120, 160], [0, 40, 80, 100, 120, 160]),
        ([0, 0, 40, 40, 80, 80], [0, 20, 40, 60, 80, 100]),
        ([0, 40, 40, 40, 80, 120], [0, 40, 60, 70, 80, 120]),
        ([0] * 9, [0, 20, 30, 35, 37, 40, 80, 120, 160]),
    ],
)
def test_a_time_that_comes_twice_delays_no_later_frame(tmp_path, times, expected):
    """Frames after it were late by the length of a frame each time: the sound ran ahead."""
    make_video(tmp_path / "twice.mkv", codec="ffv1", times=times)
    assert [time * 1000 for time in read(tmp_path / "twice.mkv")[1]] == expected


def test_animated_avif(tmp_path, caplog):
    """Such a file also has its first picture on its own."""
    images = [Image.fromarray(picture(i)) for i in range(4)]
    path = tmp_path / "in.avif"
    try:
        images[0].save(path, save_all=True, append_images=images[1:], duration=[40, 100, 40, 500], quality=95)
    except (KeyError, ValueError, OSError):
        pytest.skip("this Pillow writes no AVIF")
    frames, times = read(path)
    assert [round(time * 1000) for time in times] == [0, 40, 140, 180]
    assert differ(frames, [picture(i) for i in range(4)]) < 3
    copy(path, tmp_path / "out.mp4")
    assert len(read(tmp_path / "out.mp4")[0]) == 4 and "left out" not in caplog.text
    images[0].save(tmp_path / "one.avif")
    assert len(read(tmp_path / "one.avif")[0]) == 1


@pytest.mark.parametrize(
    "codec, pix_fmt, name, said",
    [
        ("qtrle", "rgb24", "out.avi", "mpeg4 in avi does not hold the colours of all the input's pixels"),
        ("qtrle", "rgb24", "out.mp4", ""),
        ("rawvideo", "yuv444p", "out.mkv", "rawvideo in matroska does not hold the colours of all"),
        ("ffv1", "yuv422p", "out.webm", ""),
        ("mpeg4", "yuv420p", "out.mp4", ""),
    ],
)
def test_colours_of_fewer_pixels_are_one_line(tmp_path, caplog, codec, pix_fmt, name, said):
    source = make_video(tmp_path / f"in.{'mov' if codec == 'qtrle' else 'nut'}", codec=codec, pix_fmt=pix_fmt)
    copy(source, tmp_path / name)
    assert caplog.text.count("does not hold") == bool(said) and said in caplog.text


@pytest.fixture
def animation(tmp_path) -> tuple[Path, list[int]]:
    """An animated WebP without loss, and the milliseconds at which its pictures begin."""
    durations = [40, 100, 40, 500, 40, 2000]
    images = [Image.fromarray(picture(i)) for i in range(6)]
    path = tmp_path / "in.webp"
    images[0].save(path, save_all=True, append_images=images[1:], duration=durations, lossless=True)
    return path, [0, 40, 140, 180, 680, 720]


def test_animated_webp(tmp_path, animation):
    path, starts = animation
    frames, times = read(path)
    assert [round(time * 1000) for time in times] == starts
    assert differ(frames, [picture(i) for i in range(6)]) == 0
    copy(path, tmp_path / "out.mkv")
    _, times = read(tmp_path / "out.mkv")
    assert [round(time * 1000) for time in times] == starts
    with open_reader(path) as reader:
        assert (reader.num_frames, reader.fps, reader.stamp(5)) == (6, Fraction(6000, 2720), (720, 2000))


@pytest.mark.parametrize(("name", "used"), [("out.mkv", "h264"), ("out.webm", "vp9"), ("out.avi", "mpeg4")])
def test_another_codec_than_the_animations_is_told(tmp_path, animation, caplog, name, used):
    form = {"out.mkv": "matroska", "out.webm": "webm", "out.avi": "avi"}[name]
    copy(animation[0], tmp_path / name)
    assert f"{name}: webp cannot be written into {form} here, {used} is used instead" in caplog.text
    assert caplog.text.count("cannot be written") == 1


@pytest.mark.parametrize(
    "how, expected, first",
    [
        ({"start": 2, "end": 4}, [2, 3], 2),
        ({"start": Fraction("0.1"), "end": Fraction("0.68")}, [2, 3], 2),
        ({"start": 1, "end": 3, "context": 2}, [0, 1, 2, 3, 4], 1),
        ({"start": 4, "context": 9}, range(6), 4),
    ],
)
def test_a_part_of_an_animation(animation, how, expected, first):
    with open_reader(animation[0], **how) as reader:
        frames = list(reader)
        assert reader.first == first and reader.num_read == len(frames)
        assert reader.stamp(0)[0] == animation[1][first]
    assert differ(frames, [picture(i) for i in expected]) == 0


def test_webp_that_cannot_be_read(tmp_path, animation):
    data = animation[0].read_bytes()
    (tmp_path / "cut.webp").write_bytes(data[: len(data) // 2])
    with pytest.raises(CSDError, match=r"cut\.webp: "):
        read(tmp_path / "cut.webp")
    with pytest.raises(CSDError, match="no frames between"):
        read(animation[0], start=6)


def deep_picture(number: int) -> np.ndarray:
    return picture(number).astype(np.uint16) * 200 + np.arange(SIZE[0], dtype=np.uint16)[None, :, None]


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_sixteen_bits_stay(tmp_path, suffix, caplog):
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(3):
        cv2.imwrite(str(folder / f"{number}.{suffix}"), deep_picture(number)[..., ::-1])
    copy(folder, tmp_path / "out")
    for number in range(3):
        kept = cv2.imread(str(tmp_path / "out" / f"{number}.png"), cv2.IMREAD_UNCHANGED)[..., ::-1]
        assert kept.dtype == np.uint16 and np.array_equal(kept, deep_picture(number))
    assert not caplog.records


@pytest.mark.parametrize("deep_first", [True, False])
def test_a_folder_of_both_depths_has_the_first_one_s(tmp_path, deep_first, caplog):
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(4):
        is_deep = (number == 0) == deep_first
        cv2.imwrite(str(folder / f"{number}.png"), (deep_picture if is_deep else picture)(number)[..., ::-1])
    frames, _ = read(folder)
    if deep_first:
        assert np.array_equal(frames[1], picture(1).astype(np.uint16) * 257) and not caplog.records
    else:
        assert np.abs(frames[1].astype(float) - deep_picture(1) / 257).max() <= 0.5
        assert len(caplog.records) == 1 and "1.png has 16 bits" in caplog.records[0].message
    assert len({frame.dtype for frame in frames}) == 1


def numbered_names(tmp_path: Path, names: list[str]) -> Path:
    folder = tmp_path / "in"
    folder.mkdir()
    for number, name in enumerate(names):
        cv2.imwrite(str(folder / name), picture(number)[..., ::-1])
    return folder


@pytest.mark.parametrize(
    "names, numbers",
    [
        (["00000_x2.png", "00001_x2.png", "00002_x2.png"], [0, 1, 2]),
        (["x2_00007.png", "x2_00008.png"], [7, 8]),
        (["a1_07_k3.jpg", "a1_08_k3.png", "a1_10_k3.bmp"], [7, 8, 10]),  # a gap stays
        (["f9.png", "f10.png", "f11.png"], [9, 10, 11]),
        (["00001_t0040.png", "00002_t0080.png"], [1, 2]),
        (["12-30-58.png", "12-30-59.png", "12-31-00.png"], [1, 2, 3]),  # no number rises: places count
        (["s1_f1.png", "s1_f2.png", "s2_f1.png"], [1, 2, 3]),
        (["a.png", "b.png"], [1, 2]),
        (["frame_-1.png", "frame_-2.png"], [1, 2]),
        (["٣.png", "٤.png"], [1, 2]),  # digits of another script are no number of a pattern
        (["1.png", "01.png"], [1, 2]),
    ],
)
def test_the_number_of_a_name_is_the_part_that_changes(tmp_path, names, numbers):
    folder = numbered_names(tmp_path, names)
    copy(folder, tmp_path / "out" / "c_%d.png")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {f"c_{number}.png" for number in numbers}
    ordered = [cv2.imread(str(tmp_path / "out" / f"c_{number}.png"))[..., ::-1] for number in numbers]
    assert differ(ordered, read(folder)[0]) == 0
    copy(folder, tmp_path / "part" / "c_%d.png", start=1)  # a part's names are those of the whole
    assert {path.name for path in (tmp_path / "part").iterdir()} == {f"c_{number}.png" for number in numbers[1:]}


@pytest.mark.parametrize(
    ("start", "first"), [(np.int64(2), 2), (np.uint8(2), 2), (0.08, 2), (np.float32(0.08), 2), (Fraction(2, 25), 2)]
)
def test_whole_numbers_of_any_kind_are_frames_and_others_seconds(tmp_path, start, first):
    for number in range(5):
        cv2.imwrite(str(tmp_path / f"{number}.png"), np.zeros((4, 4, 3), np.uint8))
    with open_reader(tmp_path, start=start) as reader:
        assert (reader.first, reader.num_frames, len(list(reader))) == (first, 5 - first, 5 - first)


@pytest.mark.parametrize(
    "wrong",
    [{"start": -2}, {"end": -1}, {"start": True}, {"start": float("nan")}, {"end": "2"}, {"fps": 0}, {"fps": -25}],
)
def test_what_is_no_part_of_a_clip_is_one_line(tmp_path, wrong):
    cv2.imwrite(str(tmp_path / "1.png"), np.zeros((4, 4, 3), np.uint8))
    with pytest.raises(CSDError, match=rf"{next(iter(wrong))} is .*: give "):
        open_reader(tmp_path, **wrong)


@pytest.mark.parametrize("names", [("1.png", "1.jpg"), ("a.PNG", "a.png"), ("F1.png", "f1.png"), ("1.tif", "1.webp")])
def test_one_frame_in_two_files_is_refused_with_both_names(tmp_path, names):
    folder = numbered_names(tmp_path, ["0.png", *names])
    with pytest.raises(CSDError) as caught:
        open_reader(folder)
    assert all(name in str(caught.value) for name in names)


def test_a_pattern_takes_one_kind_of_a_mixed_folder(tmp_path):
    folder = numbered_names(tmp_path, ["1.png", "1.jpg", "2.png", "2.jpg"])
    assert len(read(folder / "%d.png")[0]) == 2


LINKS = {
    "the folder": lambda clip: clip,
    "its trailing slash": lambda clip: f"{clip}/",
    "its parent": lambda clip: clip / "sub" / "..",
    "a folder that is not there": lambda clip: clip / "new" / "..",
    "a link": lambda clip: link(clip.with_name("link"), clip),
    "a pattern": lambda clip: clip / "f_%05d.png",
    "a pattern of other names": lambda clip: clip / "g_%05d.png",
    "a pattern through a link": lambda clip: link(clip.with_name("link"), clip) / "f_%05d.png",
}


def link(path: Path, target: Path) -> Path:
    path.symlink_to(target, target_is_directory=target.is_dir())
    return path


@pytest.mark.parametrize("how", LINKS)
def test_the_input_folder_is_never_written_to(tmp_path, how):
    clip = numbered_names(tmp_path, [f"f_{i:05d}.png" for i in range(3)])
    (clip / "sub").mkdir()
    before = {path.name: path.read_bytes() for path in clip.iterdir() if path.is_file()}
    with open_reader(clip) as reader, pytest.raises(CSDError, match="is also the input"):
        open_writer(LINKS[how](clip), like=reader, overwrite=True)
    assert {path.name: path.read_bytes() for path in clip.iterdir() if path.is_file()} == before


def test_input_files_are_never_written_to(tmp_path):
    clip = numbered_names(tmp_path, [f"f_{i:05d}.png" for i in range(3)])
    inputs = {path: path.read_bytes() for path in clip.iterdir()}
    other = tmp_path / "other"
    other.mkdir()
    (other / "f_00001.png").hardlink_to(clip / "f_00001.png")
    soft = tmp_path / "soft"
    soft.mkdir()
    link(soft / "f_00002.png", clip / "f_00002.png")
    with open_reader(clip / "f_%05d.png") as reader:
        for target in (clip, clip / "f_%05d.png", other, other / "f_%05d.png", soft, soft / "f_%d.png"):
            if target.name == "f_%d.png":
                open_writer(target, like=reader, overwrite=True)  # names files of other names
                continue
            with pytest.raises(CSDError, match="is also the input"):
                open_writer(target, like=reader, overwrite=True)
        with open_writer(clip / "g_%05d.png", like=reader) as writer:  # other names beside those of the pattern
            for frame in reader:
                writer.write(frame)
    assert {path: path.read_bytes() for path in inputs} == inputs
    assert len(list(clip.iterdir())) == 6
    with open_reader(clip / "f_%05d.png") as reader, open_writer(clip / "below", like=reader) as writer:
        writer.write(next(iter(reader)))  # below the input is not in it
    with open_reader(clip / "f_%05d.png") as reader, open_writer(tmp_path, like=reader) as writer:
        writer.write(next(iter(reader)))  # nor is above


def test_an_input_video_is_never_written_to(tmp_path):
    source = make_video(tmp_path / "in.mp4")
    before = source.read_bytes()
    (tmp_path / "hard.mp4").hardlink_to(source)
    (tmp_path / "sub").mkdir()
    for target in ("in.mp4", "sub/../in.mp4", "new/../in.mp4", "hard.mp4", "soft.mp4"):
        if target == "soft.mp4":
            link(tmp_path / target, source)
        with open_reader(source) as reader, pytest.raises(CSDError, match="is also the input"):
            open_writer(f"{tmp_path}/{target}", like=reader, overwrite=True)
    with open_reader(source) as reader, pytest.raises(CSDError, match="is also the input"):
        open_writer(tmp_path / "hard.mp4", like=open_reader(make_video(tmp_path / "b.mp4")), inputs=[reader.path])
    assert source.read_bytes() == before


@pytest.mark.parametrize("name", ["rain-12:30.mp4", "file:x.mkv", "a:b/12:30.avi", "http:.webm"])
def test_colons_in_an_output_s_name(tmp_path, monkeypatch, name):
    make_video(tmp_path / "in.mp4")
    monkeypatch.chdir(tmp_path)
    copy(Path("in.mp4"), Path(name))
    assert len(read(Path(name))[0]) == 8


def test_deep_frames_are_rounded_with_a_line(tmp_path, capsysbinary, caplog):
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(3):
        cv2.imwrite(str(folder / f"{number}.png"), deep_picture(number)[..., ::-1])
    with caplog.at_level(logging.WARNING):
        copy(folder, Path("-"))
    assert [record.message for record in caplog.records] == [
        "standard output: more than 8 bits per channel, rounded to 8"
    ]
    shown = np.frombuffer(capsysbinary.readouterr().out, np.uint8).reshape(3, SIZE[1], SIZE[0], 3)
    assert np.abs(shown - np.stack([deep_picture(i) / 257 for i in range(3)])).max() <= 0.5


def test_readers_say_what_a_video_of_their_frames_takes_over(tmp_path):
    """Of a video file its codec, tags and part, up to date as it is read; other sources have only pixels."""
    source = make_video(tmp_path / "in.mp4")
    with open_reader(source, start=2, end=6) as reader:
        before = reader.source_format
        assert (before.path, before.first, before.look.codec, before.cut) == (source, 2, "h264", False)
        assert len(list(reader)) == 4
        assert reader.source_format.cut
    with open_reader(source, end=100) as reader:
        assert len(list(reader)) == 8
        assert not reader.source_format.cut
    copy(source, tmp_path / "frames")
    with open_reader(tmp_path / "frames") as reader:
        assert reader.source_format is None


def test_writers_say_where_an_earlier_run_stopped(tmp_path):
    """A folder of frames: at the first that is missing. A pipe's frames are gone."""
    source, folder = make_video(tmp_path / "in.mp4"), tmp_path / "frames"
    with open_reader(source, end=5) as reader, open_writer(folder, like=reader) as writer:
        assert writer.resume_at(reader.size) == 0
        for frame in reader:
            writer.write(frame)
    with open_reader(source) as reader, open_writer(folder, like=reader, overwrite=True) as writer:
        assert writer.resume_at(reader.size) == 5
        with pytest.raises(CSDError, match="is 64x48, but frames would now be 128x48"):
            writer.resume_at((2 * SIZE[0], SIZE[1]))
        assert open_writer(tmp_path / "out.mp4", like=reader).resume_at(reader.size) == 0
        there = make_video(tmp_path / "there.mp4")
        assert open_writer(there, like=reader, overwrite=True).resume_at(reader.size) is None
        there.unlink()
        with pytest.raises(CSDError, match="-: what was written to a pipe cannot be resumed"):
            open_writer(Path("-"), like=reader).resume_at(reader.size)
    with open_reader(folder) as reader, open_writer(folder / "again", like=reader) as writer:
        for frame in reader:
            writer.write(frame)
        assert writer.resume_at(reader.size) is None  # the folder's length is known
    assert {path.name for path in tmp_path.iterdir()} == {"in.mp4", "frames"}


@pytest.mark.parametrize("context", [0, 2])
def test_of_a_pipe_nothing_is_read_after_the_last_frame_that_is_needed(monkeypatch, context):
    """Its writer may be slow, or have stopped within the next one."""
    size, needed = (4, 2), 3 + context
    stream = io.BytesIO(bytes(24 * needed + 5))
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=stream))
    with open_reader("-", end=3, size=size, context=context) as reader:
        assert len(list(reader)) == needed
    assert stream.read() == bytes(5)


def test_a_folder_of_videos_is_not_a_clip(tmp_path):
    for number in (10, 9):
        make_video(tmp_path / f"drive_{number}.mp4").rename(tmp_path / f"drive_{number}.MP4")
    with pytest.raises(CSDError, match=r"holds videos, not images: .*drive_9\.MP4"):
        open_reader(tmp_path)


def test_what_is_neither_file_nor_folder_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.mkv")
    for path in (tmp_path / "pipe.mkv", Path("/dev/null")):
        with pytest.raises(
            CSDError, match="is neither a file nor a folder: raw frames of a pipe are read from standard"
        ):
            open_reader(path)


def test_the_videos_of_a_folder_are_its_files_with_such_names_unless_it_has_images(tmp_path):
    (tmp_path / "folder.mp4").mkdir()
    for name in ("b.MOV", "a.ts", ".hidden.mp4", "notes.txt"):
        (tmp_path / name).write_bytes(b"")
    assert [video.name for video in videos_in(tmp_path)] == ["a.ts", "b.MOV"]
    assert [written_as(name) for name in ("b.MOV", "a.ts", "drive.1.TS")] == ["b.MOV", "a.mp4", "drive.1.mp4"]
    write_png(tmp_path / "0.png", np.zeros((4, 4, 3), np.uint8))
    assert videos_in(tmp_path) == [] == videos_in(tmp_path / "a.ts")
