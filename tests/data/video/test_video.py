"""Video files and folders through one interface: what is read comes back, and nothing half done stays."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest
from videos import differ, make_video, packets, picture, read

from csd_plugin.data.images import write_png
from csd_plugin.data.video import open_reader, open_writer
from csd_plugin.errors import CSDError


def copy(source: Path, target: Path, **how) -> None:
    with open_reader(source, **how) as reader, open_writer(target, like=reader, overwrite=True) as writer:
        for frame in reader:
            writer.write(frame)


def test_a_copy_keeps_pixels_codec_times_and_every_sound_track(tmp_path):
    times = [0, 40, 100, 110, 200, 240, 500, 520]
    source = make_video(tmp_path / "in.mp4", times=times, audio=2)
    copy(source, tmp_path / "out.mp4")
    frames, begins = read(tmp_path / "out.mp4")
    assert [float(begin) for begin in begins] == [time / 1000 for time in times]
    assert differ(frames, [picture(i) for i in range(8)]) < 2.5  # the next picture is 3.3 away
    assert differ(frames, read(source)[0]) < 2.0
    assert packets(tmp_path / "out.mp4", "audio") == packets(source, "audio")
    with open_reader(tmp_path / "out.mp4") as reader:
        look = reader.source_format.look
        assert (look.codec, look.pix_fmt, reader.num_frames) == ("h264", "yuv420p", 8)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4", "out.mp4"]


@pytest.mark.parametrize("name", ["out.mkv", "out.avi", "out.mov", "out.webm"])
def test_other_containers_take_the_same_frames(tmp_path, name):
    source = make_video(tmp_path / "in.mp4")
    copy(source, tmp_path / name)
    frames, begins = read(tmp_path / name)
    assert differ(frames, read(source)[0]) < 1.5
    assert np.allclose(np.diff([float(begin) for begin in begins]), 0.04, atol=0.0011)


def test_the_picture_is_turned_as_a_viewer_shows_it(tmp_path):
    upright = read(make_video(tmp_path / "plain.mp4"))[0][0]
    for rotation, turns in ((90, 1), (180, 2), (-90, 3)):
        source = make_video(tmp_path / "turned.mp4", rotation=rotation)
        frames, _ = read(source)
        assert differ(frames[:1], [np.rot90(upright, turns)]) < 1.0
        copy(source, tmp_path / "out.mp4")
        assert differ(read(tmp_path / "out.mp4")[0], frames) < 2.0  # turned once, not again on reading


def test_ten_bits_stay_ten_bits(tmp_path):
    source = make_video(tmp_path / "in.mp4", codec="libx265", pix_fmt="yuv420p10le")
    frames, _ = read(source)
    assert frames[0].dtype == np.uint16
    assert differ([frame / 257 for frame in frames], [picture(i) for i in range(8)]) < 1.0
    copy(source, tmp_path / "out.mp4")
    with open_reader(tmp_path / "out.mp4") as reader:
        look = reader.source_format.look
        assert (look.codec, look.pix_fmt) == ("hevc", "yuv420p10le")
        assert differ(list(reader), frames) < 257 * 2.0


def test_colours_do_not_drift_on_the_way_through_yuv(tmp_path):
    """Through a lossless codec, 8-bit YUV costs rounding and no shift, whichever matrix the file names."""
    source = make_video(tmp_path / "in.mkv", codec="ffv1")
    copy(source, tmp_path / "out.mkv")
    drift = np.stack(read(tmp_path / "out.mkv")[0]).astype(float) - np.stack(read(source)[0])
    assert np.abs(drift.mean(axis=(0, 1, 2))).max() < 0.2 and np.abs(drift).mean() < 0.6
    folder = tmp_path / "frames"
    folder.mkdir()
    cv2.imwrite(str(folder / "1.png"), np.full((48, 64, 3), (40, 200, 90), np.uint8)[..., ::-1])
    copy(folder, tmp_path / "bt709.mkv")
    with open_reader(tmp_path / "bt709.mkv") as reader:
        assert reader.source_format.look.colours.matrix == 1
        assert np.abs(next(iter(reader)).astype(int) - (40, 200, 90)).max() <= 3


def test_odd_sizes_one_and_two_frames(tmp_path):
    for size, times in (((63, 47), [0]), ((63, 48), [0, 40])):
        source = make_video(tmp_path / "in.mp4", pix_fmt="yuv444p", size=size, times=times)
        copy(source, tmp_path / "out.mp4")
        frames, _ = read(tmp_path / "out.mp4")
        assert [frame.shape for frame in frames] == [(size[1], size[0], 3)] * len(times)


@pytest.mark.parametrize("part", [{"start": 2, "end": 6}, {"start": Fraction("0.08"), "end": Fraction("0.24")}])
def test_a_part_is_those_frames_and_their_sound(tmp_path, part):
    source = make_video(tmp_path / "in.mp4", audio=1)
    everything, _ = read(source)
    assert differ(read(source, **part)[0], everything[2:6]) == 0
    copy(source, tmp_path / "out.mp4", **part)
    frames, begins = read(tmp_path / "out.mp4")
    assert differ(frames, everything[2:6]) < 2.0 and begins[0] == 0
    seconds = len(packets(tmp_path / "out.mp4", "audio")[0]) * 1024 / 48000
    assert 0.16 <= seconds < 0.16 + 3 * 1024 / 48000


def test_folders_keep_names_and_order_and_skip_what_is_no_image(tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    for number in (10, 9, 11):
        cv2.imwrite(str(folder / f"frame{number}.png"), picture(number - 9)[..., ::-1])
    (folder / "Thumbs.db").write_bytes(b"x")
    copy(folder, tmp_path / "out")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["frame10.png", "frame11.png", "frame9.png"]
    frames, _ = read(tmp_path / "out", start=1)
    assert differ(frames, [picture(1), picture(2)]) == 0
    copy(folder, tmp_path / "clip.mp4", fps=Fraction(30000, 1001))
    with open_reader(tmp_path / "clip.mp4") as reader:
        assert reader.fps == Fraction(30000, 1001)
    copy(tmp_path / "clip.mp4", tmp_path / "back", start=1)
    assert sorted(path.name for path in (tmp_path / "back").iterdir()) == ["00002.png", "00003.png"]


def test_a_folder_with_missing_numbers_says_so(tmp_path, caplog):
    for number in (1, 2, 4, 5, 8):
        cv2.imwrite(str(tmp_path / f"{number}.png"), picture(number))
    with open_reader(tmp_path) as reader:
        assert len(list(reader)) == 5
    assert [message.split(": ")[1] for message in caplog.messages] == [
        "frames are missing between 2 and 4; the remaining ones are treated as consecutive"
    ]


def test_an_error_leaves_no_file_and_the_old_output_as_it_was(tmp_path):
    source = make_video(tmp_path / "in.mp4", audio=1)
    (tmp_path / "out.mp4").write_bytes(b"old")
    with (
        pytest.raises(KeyboardInterrupt),
        open_reader(source) as reader,
        open_writer(tmp_path / "out.mp4", like=reader, overwrite=True) as w,
    ):
        w.write(next(iter(reader)))
        raise KeyboardInterrupt
    assert (tmp_path / "out.mp4").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.mp4", "out.mp4"]


def test_a_cut_file_is_an_error_or_what_is_left_of_it(tmp_path):
    whole = make_video(tmp_path / "in.mp4", times=[40 * i for i in range(50)], options={"movflags": "faststart"})
    data = whole.read_bytes()
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(data[: int(len(data) * 0.8)])
    with pytest.raises(CSDError, match=r"cut\.mp4: the video is damaged after frame \d+"):
        read(cut)
    rest, _ = read(cut, keep_going=True)
    assert 5 < len(rest) < 50
    cut.write_bytes(make_video(tmp_path / "late.mp4").read_bytes()[:1000])
    with pytest.raises(CSDError, match=r"cut\.mp4: "):
        open_reader(cut, keep_going=True)


def test_what_is_no_video_is_one_clear_line(tmp_path):
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("not a video\n" * 50)
    sound = tmp_path / "sound.m4a"
    with av.open(str(sound), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=48000)
        silence = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), "fltp", "stereo")
        silence.rate, silence.pts = 48000, 0
        container.mux(stream.encode(silence))
        container.mux(stream.encode(None))
    (tmp_path / "folder").mkdir()
    for name in ("frame.png", "frame.tif", "frame.mp4"):  # by what it is, whatever its name says
        kind = ".png" if name == "frame.mp4" else name[-4:]
        (tmp_path / name).write_bytes(cv2.imencode(kind, picture(0))[1].tobytes())
    for name, message in {
        "frame.png": "is a single image: give its folder, or a pattern .* goes into a folder of its own",
        "frame.tif": "is a single image",
        "frame.mp4": "is a single image",
        "nothing.mp4": "does not exist",
        "empty.mp4": "empty",
        "text.mp4": "not a video",
        "sound.m4a": "no decodable video",
        "folder": "holds no images",
    }.items():
        with pytest.raises(CSDError, match=message) as caught:
            open_reader(tmp_path / name)
        assert name in str(caught.value) and "\n" not in str(caught.value)
    for start in (8, 1000, 60.0):
        with pytest.raises(CSDError, match="between --start and --end; it has 8, counted from 0, and --end is"):
            open_reader(make_video(tmp_path / "in.mp4"), start=start)


def test_a_folder_of_folders_names_one_that_holds_images(tmp_path):
    for name in ("clip10", "clip9", "notes"):
        (tmp_path / "clips" / name).mkdir(parents=True)
        if name != "notes":
            write_png(tmp_path / "clips" / name / "00001.png", picture(0))
    with pytest.raises(CSDError, match=r"holds no images .*, but its folders do; give one of them, such as .*clip9$"):
        open_reader(tmp_path / "clips")


def test_a_frame_of_another_size_is_named_with_what_to_do(tmp_path):
    for number, size in enumerate([(20, 30), (20, 32)]):
        write_png(tmp_path / f"{number}.png", np.zeros((*size, 3), np.uint8))
    with pytest.raises(CSDError, match=r"1\.png is 32x20, but the frames before it are 30x20: .* folder of their own"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["list.m3u8", "disguised.mp4"])
def test_a_playlist_cannot_reach_other_files(tmp_path, name):
    secret = make_video(tmp_path / "secret.ts", codec="libx264")
    lines = ["#EXTM3U", "#EXT-X-VERSION:3", "#EXT-X-TARGETDURATION:1", "#EXTINF:1,", secret.name, "#EXT-X-ENDLIST", ""]
    (tmp_path / name).write_text("\n".join(lines))
    (tmp_path / "concat.mp4").write_text(f"ffconcat version 1.0\nfile {secret.name}\n")
    read(secret)
    with av.open(str(tmp_path / "list.m3u8")) if name == "list.m3u8" else av.open(str(secret)) as container:
        assert container.streams.video  # PyAV by itself would follow it
    for playlist in (name, "concat.mp4"):
        with pytest.raises(CSDError, match="not a video"):
            open_reader(tmp_path / playlist)


def test_outputs_that_cannot_be(tmp_path):
    (tmp_path / "there.mp4").write_text("notes")
    (tmp_path / "notes").touch()
    with open_reader(make_video(tmp_path / "in.mp4")) as reader:
        for target, message in {
            "in.mp4": "is also the input",
            "out.m3u8": "cannot write '.m3u8'",
            "out_v1.2.xyz": "cannot write '.xyz'",
            "out.3gp": "cannot write '.3gp'",
            "out.png": "cannot write '.png'",
            "there.mp4": "already exists; replace it with --overwrite",
            "in.mp4/out.mp4": r"in\.mp4: cannot be written \(it is there already, and is not a folder\); give another",
            "notes": r"notes: cannot be written \(it is there already, and is not a folder\); give another place",
        }.items():
            with pytest.raises(CSDError, match=message), open_writer(tmp_path / target, like=reader) as writer:
                writer.write(picture(0))
        assert (tmp_path / "there.mp4").read_text() == "notes"
        with open_writer(tmp_path / "new" / "out.mp4", like=reader) as writer:  # the folder is made
            writer.write(picture(0))
            with pytest.raises(CSDError, match="frame 1 is 32x48"):
                writer.write(picture(0)[:, :32])


@pytest.mark.parametrize(("path", "kind"), [(None, "None"), (0, "an int"), (b"in.mp4", "a bytes")])
def test_what_is_no_path_is_one_line(tmp_path, path, kind):
    with pytest.raises(CSDError, match=f"^{kind} is not a path: give a video, a folder of images or a camera"):
        open_reader(path)
    with open_reader(make_video(tmp_path / "in.mp4")) as reader, pytest.raises(CSDError, match="is not a path: give"):
        open_writer(path, like=reader)


@pytest.mark.parametrize("name", ["clean_v1.2", "clean_v1.2_new", "2026.11.27", "rain 50%.", "there.xyz"])
def test_a_folder_may_have_a_dot_in_its_name(tmp_path, name):
    (tmp_path / "there.xyz").mkdir()
    with open_reader(make_video(tmp_path / "in.mp4")) as reader:
        with open_writer(tmp_path / name, like=reader) as writer:
            writer.write(picture(0))
        assert [file.name for file in (tmp_path / name).iterdir()] == ["00001.png"]


def test_context_around_a_part(tmp_path):
    whole, _ = read(make_video(tmp_path / "in.mp4"))
    for start, end, context, expected in ((3, 5, 2, [1, 2, 3, 4, 5, 6]), (1, 7, 2, range(8)), (0, None, 3, range(8))):
        with open_reader(tmp_path / "in.mp4", start=start, end=end, context=context) as reader:
            frames = list(reader)
            inside = [expected[i] for i in range(len(frames)) if reader.in_part(i)]
            assert (reader.first, reader.name(0), reader.lead) == (start, f"{start + 1:05d}", min(start, context))
            assert reader.stamp(0)[0] * reader.time_base == Fraction(start, 25)
            assert reader.num_read == len(frames)
        assert inside == list(range(start, 8 if end is None else end))
        assert all(np.array_equal(frame, whole[i]) for frame, i in zip(frames, expected, strict=True))
    with pytest.raises(CSDError, match="no frames between"):
        open_reader(tmp_path / "in.mp4", start=5, end=5, context=2)
    with pytest.raises(CSDError, match="context is -1: give a number of frames from 0"):
        open_reader(tmp_path / "in.mp4", context=-1)


def test_a_file_whose_colours_are_refused_is_closed(tmp_path):
    odd = tmp_path / "odd.mkv"
    with av.open(str(odd), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv444p"
        stream.codec_context.colorspace = 8  # YCgCo
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(0), "rgb24").reformat(format="yuv444p")))
        container.mux(stream.encode(None))
    with pytest.raises(CSDError, match="its colours use matrix 8") as refused:
        open_reader(odd)
    assert odd.resolve() not in {file.resolve() for file in Path("/proc/self/fd").iterdir()}
    del refused  # until here, its traceback keeps the reader: nothing but the reader itself has closed the file


@pytest.mark.parametrize("kind", ["video", "folder"])
def test_a_reader_that_was_closed_says_so(tmp_path, kind):
    source = make_video(tmp_path / "in.mp4")
    if kind == "folder":
        copy(source, tmp_path / "frames")
        source = tmp_path / "frames"
    with open_reader(source) as reader:
        begun = iter(reader)
        next(begun)
    for frames in (begun, iter(reader)):
        with pytest.raises(CSDError, match="closed before all of its frames were read"):
            list(frames)
    reader.close()  # once more is no mistake
    with open_reader(tmp_path / "in.mp4") as reader:
        list(reader)
        with pytest.raises(CSDError, match="once; open it again"):
            list(reader)


def test_closing_waits_for_the_frame_that_a_thread_reads(tmp_path):
    reader = open_reader(make_video(tmp_path / "in.mp4"))
    reading, go_on, closed = threading.Event(), threading.Event(), []
    read_ = reader._read

    def slowly():
        for frame in read_():
            reading.set()
            go_on.wait(10)
            yield frame

    reader._read = slowly
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(lambda: next(iter(reader)))
        reading.wait(10)
        closing = threads.submit(lambda: closed.append(reader.close()))
        assert not closed
        go_on.set()
        assert first.result().shape == (48, 64, 3) and closing.result() is None and closed == [None]


@pytest.fixture(params=["out.mp4", "out", "out_%03d.png", "-"])
def output(request, tmp_path, capsysbinary) -> Path:
    """Every kind."""
    return Path("-") if request.param == "-" else tmp_path / request.param


@pytest.mark.parametrize(
    "wrong",
    [
        picture(1) / 255.0,
        picture(1).astype(np.float32),
        picture(1).astype(np.int64),
        picture(1) > 100,
        picture(1)[..., 0],
        np.dstack([picture(1), picture(1)[..., 0]]),
        picture(1)[:0],
        picture(1).tolist(),
        None,
    ],
    ids=lambda wrong: f"{type(wrong).__name__}-{getattr(wrong, 'dtype', '')}-{np.ndim(wrong)}",
)
def test_what_is_no_frame_is_not_written(tmp_path, output, wrong):
    with open_reader(make_video(tmp_path / "in.mp4")) as reader, open_writer(output, like=reader) as writer:
        for frame in reader:
            writer.write(frame)
            with pytest.raises(CSDError, match=r"frame \d: .* is not a frame"):
                writer.write(wrong)
            with pytest.raises(CSDError, match="64x48 of uint16, but those before it are 64x48 of uint8"):
                writer.write(frame.astype(np.uint16) * 257)
            with pytest.raises(CSDError, match="32x48 of uint8, but those before it are 64x48"):
                writer.write(np.ascontiguousarray(frame[:, :32]))


def test_a_writer_ends_once(tmp_path, output):
    source = make_video(tmp_path / "in.mp4")
    with open_reader(source) as reader, open_writer(output, like=reader) as writer:
        for frame in reader:
            writer.write(frame)
        writer.close()
        writer.close()
        writer.abort()  # what is whole stays
        with pytest.raises(CSDError, match="frame 8 came after the output was closed"):
            writer.write(frame)
    if output.suffix == ".mp4":
        assert len(read(output)[0]) == 8
    elif output != Path("-"):
        assert len(list(tmp_path.glob("**/*.png"))) == 8


@pytest.mark.parametrize(("kind", "name"), [("video", "out.mp4"), ("folder", "out"), ("folder", "out_%03d.png")])
def test_a_frame_more_than_were_read_is_one_line(tmp_path, kind, name):
    source = make_video(tmp_path / "in.mp4")
    if kind == "folder":
        copy(source, tmp_path / "frames")
        source = tmp_path / "frames"
    with open_reader(source, end=3, context=2) as reader, open_writer(tmp_path / name, like=reader) as writer:
        frames = list(reader)
        for frame in frames[:3]:
            writer.write(frame)
        with pytest.raises(CSDError, match="frame 3 of the part, counted from 0, has not been read"):
            writer.write(frames[3])


def test_arrays_that_are_no_picture_are_not_written_as_png(tmp_path):
    with pytest.raises(CSDError, match=r"x.png: an array of shape \(4, 4, 4\)"):
        write_png(tmp_path / "x.png", np.zeros((4, 4, 4), np.uint8))
    assert not list(tmp_path.iterdir())
