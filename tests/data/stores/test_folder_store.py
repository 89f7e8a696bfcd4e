import io
import logging
import pickle
import shutil

import cv2
import numpy as np
import pytest
from PIL import Image
from synthetic import moving_scene, write_image

from csd_plugin.data.images import decode_image, header_shape
from csd_plugin.data.stores import open_store
from csd_plugin.data.stores.build import build_store
from csd_plugin.data.stores.folder import FolderStore
from csd_plugin.data.stores.interface import FrameCache
from csd_plugin.data.stores.joined import JoinedStore
from csd_plugin.errors import CSDError

PICTURE = moving_scene(1, 24, 36, seed=0)[0]


def encoded(image, form, **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


@pytest.fixture
def folder(tmp_path):
    for i, frame in enumerate(moving_scene(4, 24, 36, seed=1)):
        write_image(tmp_path / "clip" / f"{i}.png", frame)
    return tmp_path


def test_keys_and_frames(folder):
    store = open_store(folder)
    assert store.keys() == [f"clip/{i}.png" for i in range(4)]
    for key, frame in zip(store.keys(), moving_scene(4, 24, 36, seed=1), strict=True):
        assert np.array_equal(store.read(key), frame)
        assert np.array_equal(store.read_crop(key, 3, 5, 10, 20), frame[3:13, 5:25])
        assert store.shape(key) == (24, 36)


def test_an_open_store_is_taken_as_it_is(folder):
    store = open_store(folder)
    assert open_store(store) is store


def test_shape_reads_no_pixels(folder):
    file = folder / "clip" / "0.png"
    file.write_bytes(file.read_bytes()[:60])
    store = FolderStore(folder)
    assert store.shape("clip/0.png") == (24, 36)
    with pytest.raises(CSDError, match=r"0\.png: not a readable image"):
        store.read("clip/0.png")


@pytest.mark.parametrize("what", ["missing", "file"])
def test_root_must_be_a_folder(tmp_path, what):
    (tmp_path / "file").write_text("x")
    with pytest.raises(CSDError, match=f"{what} (does not exist|is not a folder): give the folder"):
        open_store(tmp_path / what)


def test_strays_are_ignored_and_said_once(folder, caplog):
    for name in ("clip/Thumbs.db", "Thumbs.db", "clip/.DS_Store", "clip/._0.png", "notes.txt", "__MACOSX/clip/0.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    (folder / "t1_GT").mkdir()
    with caplog.at_level(logging.WARNING):
        assert FolderStore(folder).keys() == [f"clip/{i}.png" for i in range(4)]
    strays, empty = (record.getMessage() for record in caplog.records)
    assert "ignored: 5 (Thumbs.db (2x)" in strays
    assert "clips without images: 1 (t1_GT)" in empty


def test_folders_are_searched_five_deep_and_hidden_ones_not(folder):
    for place in ("1/2/3/4/5", "1/2/3/4/5/6", ".cache", "clip/.old"):
        write_image(folder / place / "0.png", PICTURE)
    assert FolderStore(folder).keys() == ["1/2/3/4/5/0.png", *(f"clip/{i}.png" for i in range(4))]


def test_circle_of_links_ends(folder):
    (folder / "clip" / "again").symlink_to(folder, target_is_directory=True)
    assert set(FolderStore(folder).keys()) >= {f"clip/{i}.png" for i in range(4)}


def test_grey_alpha_palette_and_16_bits_become_8_bit_rgb():
    rgb = Image.fromarray(PICTURE)
    grey = np.asarray(rgb.convert("L"))
    alpha = rgb.convert("RGBA")
    alpha.putalpha(Image.fromarray(grey))
    palette = rgb.convert("P")
    assert np.array_equal(decode_image(encoded(rgb.convert("L"), "PNG"), "x"), np.dstack([grey] * 3))
    assert np.array_equal(decode_image(encoded(alpha, "PNG"), "x"), PICTURE)
    assert np.array_equal(decode_image(encoded(palette, "PNG"), "x"), np.asarray(palette.convert("RGB")))

    deep = np.random.default_rng(0).integers(0, 65536, (24, 36), dtype=np.uint16)
    deep[0, :2] = 0, 65535
    data = cv2.imencode(".png", deep)[1].tobytes()
    expected = np.round(deep / 257).astype(np.uint8)
    assert np.array_equal(decode_image(data, "x"), np.dstack([expected] * 3))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif", ".webp", ".ppm"])
def test_formats(tmp_path, suffix):
    write_image(tmp_path / f"0{suffix}", PICTURE)
    store = FolderStore(tmp_path)
    (key,) = store.keys()
    assert store.shape(key) == store.read(key).shape[:2] == (24, 36)
    assert np.abs(store.read(key).astype(int) - PICTURE).mean() < (8 if suffix in (".jpg", ".webp") else 0.01)


@pytest.mark.parametrize("comment", [b"", b"# 8 bits of 255\n"])
@pytest.mark.parametrize(("kind", "peak"), [(b"P6", 100), (b"P6", 1023), (b"P5", 7), (b"P5", 4095), (b"P3", 1000)])
def test_white_is_what_the_header_of_a_ppm_says(kind, peak, comment):
    pixels = np.random.default_rng(0).integers(0, peak + 1, (4, 6, 3) if kind != b"P5" else (4, 6))
    header = b"%s %s6 4\n%d\n" % (kind, comment, peak)
    data = pixels.astype(">u2" if peak > 255 else np.uint8).tobytes()
    if kind == b"P3":
        data = " ".join(map(str, pixels.ravel())).encode()  # a text may end with its last number
    frame = decode_image(header + data, "x", deep=True)
    full = 65535 if peak > 255 else 255
    expected = np.floor(pixels * full / peak + 0.5)
    assert frame.dtype.itemsize == 1 + (peak > 255)
    assert np.array_equal(frame, expected if pixels.ndim == 3 else np.dstack([expected] * 3))


def test_a_text_of_numbers_that_is_cut_short_is_damaged():
    with pytest.raises(CSDError, match=r"x: not a readable image .* cut short\): restore"):
        decode_image(b"P3 2 2 255 " + b"9 " * 11, "x")


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", [3, 6])
def test_exif_orientation_is_applied_to_pixels_and_shape(tmp_path, form, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    (tmp_path / f"0.{form.lower()}").write_bytes(encoded(Image.fromarray(PICTURE), form, exif=exif.tobytes()))
    store = FolderStore(tmp_path)
    (key,) = store.keys()
    shape = store.shape(key)
    assert shape == store.read(key).shape[:2]
    if form == "JPEG":
        turned = np.rot90(PICTURE, {3: 2, 6: 3}[orientation])
        assert shape == turned.shape[:2]
        assert np.abs(store.read(key).astype(int) - turned).mean() < 8


def test_every_truncation_of_a_jpeg_is_an_error_naming_the_file():
    whole = encoded(Image.fromarray(PICTURE), "JPEG")
    thumbnail = encoded(Image.fromarray(PICTURE), "JPEG", exif=b"Exif\0\0" + whole)  # holds an end marker early on
    for data in (whole, thumbnail):
        decode_image(data, "x")
        for length in range(0, len(data) - 1, 7):
            for cut in (data[:length], data[:length] + bytes(len(data) - length)):
                with pytest.raises(CSDError, match=r"^t1/3\.jpg: .*restore the file") as error:
                    decode_image(cut, "t1/3.jpg")
                assert "\n" not in str(error.value)


def test_bytes_behind_the_end_of_a_jpeg_do_no_harm():
    whole = encoded(Image.fromarray(PICTURE), "JPEG", progressive=True)
    for trailer in (b"\0" * 9, b"SEFT trailer", b"\xff"):
        assert np.array_equal(decode_image(whole + trailer, "x"), decode_image(whole, "x"))


def test_an_orientation_of_the_wrong_type_is_none():
    exif = Image.Exif()
    exif[0x0112] = 6
    as_bytes = exif.tobytes().replace(b"\x12\x01\x03\x00", b"\x12\x01\x07\x00")
    as_bytes = as_bytes.replace(b"\x01\x12\x00\x03", b"\x01\x12\x00\x07")
    assert header_shape(io.BytesIO(encoded(Image.fromarray(PICTURE), "JPEG", exif=exif.tobytes()))) is None
    assert header_shape(io.BytesIO(encoded(Image.fromarray(PICTURE), "JPEG", exif=as_bytes))) == (24, 36)


def test_float_pixels_are_refused():
    data = cv2.imencode(".tif", PICTURE.astype(np.float32))[1].tobytes()
    with pytest.raises(CSDError, match=r"0\.tif: pixels of type float32: convert"):
        decode_image(data, "0.tif")
    grey = encoded(Image.fromarray(PICTURE[..., 0].astype(np.float32)), "TIFF")
    with pytest.raises(CSDError, match=r"0\.tif: a kind of image that cannot be read \(TIFF of mode F\): convert"):
        decode_image(grey, "0.tif")


def test_a_missing_file_and_one_that_changed(folder):
    store = FolderStore(folder)
    with pytest.raises(CSDError, match=r"9\.png: cannot be read"):
        store.read("clip/9.png")
    with pytest.raises(CSDError, match=r"9\.png: cannot be read"):
        store.shape("clip/9.png")
    assert store.shape("clip/0.png") == (24, 36)
    file = folder / "clip" / "0.png"
    length = file.stat().st_size
    write_image(file, PICTURE[:10])
    file.write_bytes(file.read_bytes().ljust(length, b"\0"))
    with pytest.raises(CSDError, match=r"0\.png: 36x10 pixels.*36x24"):
        store.read("clip/0.png")


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_damaged_bytes_end_in_an_image_or_in_one_line():
    rng = np.random.default_rng(0)
    for form in ("JPEG", "PNG", "BMP", "TIFF", "WEBP"):
        whole = np.frombuffer(encoded(Image.fromarray(PICTURE), form), np.uint8)
        for _ in range(40):
            data = whole.copy()
            data[rng.integers(min(len(data), 200), size=3)] = rng.integers(256, size=3)
            header_shape(io.BytesIO(data.tobytes()))
            try:
                assert decode_image(data.tobytes(), "x").dtype == np.uint8
            except CSDError as error:
                assert str(error).startswith("x: ") and "\n" not in str(error)


def test_cache_returns_the_same_frames_without_reading_again(folder):
    store = FolderStore(folder, cache_mb=1)
    first = store.read("clip/0.png")
    (folder / "clip" / "0.png").unlink()
    assert store.read("clip/0.png") is first
    with pytest.raises(ValueError, match="read-only"):
        first[0, 0, 0] = 1
    assert FolderStore(folder).read("clip/1.png") is not FolderStore(folder).read("clip/1.png")


def test_cache_holds_the_last_used_within_its_limit():
    frame = np.zeros((10, 10, 3), np.uint8)
    cache = FrameCache(3 * frame.nbytes + 299)
    for key in "abc":
        cache.put(key, frame.copy())
    assert cache.get("a") is not None
    cache.put("d", frame.copy())
    assert [key for key in "abcd" if cache.get(key) is not None] == ["a", "c", "d"]
    assert cache.size == 3 * frame.nbytes <= cache.limit
    cache.put("large", np.zeros((20, 20, 3), np.uint8))
    assert cache.get("large") is None and cache.size == 3 * frame.nbytes


def test_a_pickled_store_is_usable_and_leaves_its_frames_behind(folder):
    store = FolderStore(folder, cache_mb=1)
    empty = len(pickle.dumps(store))
    frames = [store.read(f"clip/{i}.png").copy() for i in range(4)]
    data = pickle.dumps(store)
    assert len(data) < empty + 500
    copy = pickle.loads(data)
    assert all(np.array_equal(copy.read(key), frame) for key, frame in zip(copy.keys(), frames, strict=True))


def test_workers_share_the_memory(folder):
    frame = 24 * 36 * 3
    store = FolderStore(folder, cache_mb=4 * frame / 2**20)
    store.enter_worker(num_workers=2)
    kept = [store.read(f"clip/{i}.png") for i in range(4)]
    assert [store.read(f"clip/{i}.png") is kept[i] for i in (2, 3)] == [True, True]
    assert store.read("clip/0.png") is not kept[0]


def test_joined_stores_are_read_and_share_memory_as_each_does(folder):
    frame = 24 * 36 * 3
    joined = JoinedStore({side: FolderStore(folder, cache_mb=2 * frame / 2**20) for side in ("lq", "gt")})
    assert joined.keys() == sorted(f"{side}/clip/{i}.png" for side in ("lq", "gt") for i in range(4))
    assert joined.shape("gt/clip/1.png") == (24, 36)
    assert np.array_equal(joined.read_crop("lq/clip/1.png", 3, 5, 10, 20), joined.read("gt/clip/1.png")[3:13, 5:25])
    joined.enter_worker(num_workers=2)
    kept = {key: joined.read(key) for key in joined.keys()[:2]}
    assert [joined.read(key) is frame for key, frame in reversed(kept.items())] == [True, False]


def test_real_frames(shared):
    store = open_store(shared / "data" / "NTURain", cache_mb=0)
    keys = store.keys()
    assert len(keys) == 168 * 2 + 60
    for key in (keys[0], keys[-1]):
        expected = np.asarray(Image.open(shared / "data" / "NTURain" / key))
        frame = store.read(key)
        assert store.shape(key) == frame.shape[:2] == (480, 640)
        assert np.abs(frame.astype(int) - expected).max() <= 3  # decoders round differently


def test_a_folder_of_stores_alone_names_them(folder):
    build_store(folder, folder / "frames.lmdb")
    assert len(open_store(folder).keys()) == 4  # the images count
    shutil.rmtree(folder / "clip")
    (folder / "manifest.json").write_text("{}")
    with pytest.raises(CSDError) as error:
        open_store(folder).keys()
    assert str(error.value) == f"{folder}: no images, but an LMDB store in it: give {folder / 'frames.lmdb'}"


@pytest.mark.parametrize("first", ["shape", "read"])
def test_a_file_that_is_replaced_while_it_is_in_use(folder, first):
    """By a frame of the same size, as other rain on the same clip; also in a spawned worker."""
    store = open_store(folder)
    getattr(store, first)("clip/0.png")
    file = folder / "clip" / "0.png"
    before, other = file.read_bytes(), encoded(Image.fromarray(255 - PICTURE // 2), "PNG")
    file.write_bytes(other)
    for one in (store, pickle.loads(pickle.dumps(store))):
        with pytest.raises(CSDError) as error:
            one.read("clip/0.png")
        words = f"the file has been replaced while it was in use ({len(other)} bytes, {len(before)} before)"
        assert str(error.value) == f"{file}: {words}: restore it, or start again"
    file.write_bytes(before)
    assert store.read("clip/0.png").shape == (24, 36, 3)
