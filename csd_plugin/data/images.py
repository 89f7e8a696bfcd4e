"""Image files: single ones, folders of them, and the numbered files of a pattern."""

from __future__ import annotations

import io
import logging
import re
import struct
import warnings
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

import cv2
import numpy as np
from PIL import Image

from csd_plugin.atomic import replacing
from csd_plugin.data.layout import IMAGE_SUFFIXES, holds_store, is_frame_name, natural_key
from csd_plugin.data.links import refuse_way_out
from csd_plugin.errors import CSDError, at, type_in_words

logger = logging.getLogger(__name__)

NUMBER = re.compile(r"%0?\d?d")
"""The placeholder of the number in a pattern such as frames_%05d.png."""


def images_in(folder: Path) -> list[Path]:
    """The images of a folder in natural order; other files are ignored.

    Raises CSDError if there are none, for links out of the folder, and as `refuse_doubles` does.
    """
    files = [file for file in frames_in(folder, folder) if file.is_file()]
    if not files:
        raise CSDError(f"{folder} holds no images ({' '.join(IMAGE_SUFFIXES)}){_where_images_are(folder)}")
    refuse_doubles(files)
    return sorted(files, key=lambda file: natural_key(file.name))


def _where_images_are(folder: Path) -> str:
    """What to give in place of a folder that holds no images: perhaps it holds folders of them, or is a store."""
    if holds_store(folder):
        return "; it is an LMDB store: give the folder of images that it was made of"
    inner = [entry for entry in folder.iterdir() if entry.is_dir() and not entry.is_symlink()]
    clips = [entry for entry in inner if any(is_frame_name(file.name) for file in entry.iterdir())]
    if not clips:
        return "; give the folder that holds the frames"
    first = min(clips, key=lambda clip: natural_key(clip.name))
    return f", but its folders do; give one of them, such as {first}"


def frames_in(folder: Path, root: Path) -> Iterator[Path]:
    """The files in a folder that are named like images. Raises CSDError for links out of `root`, see `data.links`."""
    return (refuse_way_out(file, root) for file in folder.iterdir() if is_frame_name(file.name))


def refuse_doubles(files: Iterable[Path]) -> None:
    """Raise CSDError if two images of a clip differ only in suffix or case: a frame must exist once."""
    seen: dict[str, Path] = {}
    for file in sorted(files):
        other = seen.setdefault(file.stem.casefold(), file)
        if other is not file:
            raise CSDError(
                f"{file.parent}: {other.name} and {file.name} are the same frame; keep one of them, or give the "
                f"images to read as a pattern such as frames_%05d{file.suffix}"
            )


def files_of(path: Path) -> list[Path]:
    """The files that an input consists of: a folder's or pattern's images, or the file; empty if it does not exist."""
    if path.is_dir():
        return list(frames_in(path, path))
    if NUMBER.search(path.name) and not path.exists() and path.parent.is_dir():
        return list(_numbered(path).values())
    return [path] if path.exists() else []


def numbered(pattern: Path) -> list[Path]:
    """The files of a pattern such as frames_%05d.png, in order of number. Raises CSDError for none, or for a gap."""
    if not pattern.parent.is_dir():
        raise CSDError(f"{pattern}: the folder {pattern.parent} does not exist; check the path")
    refuse_two_numbers(pattern.name)
    files = _numbered(pattern)
    if not files:
        raise CSDError(f"{pattern}: no file matches; check the folder and the number of digits")
    missing = next((n for n in range(min(files), max(files)) if n not in files), None)
    if missing is not None:
        raise CSDError(f"{pattern}: number {missing} of {min(files)} to {max(files)} is missing; restore the file")
    return [files[n] for n in sorted(files)]


def _numbered(pattern: Path) -> dict[int, Path]:
    """Number -> file, for the files of a pattern."""
    found = ((number_in(pattern.name, file.name), file) for file in pattern.parent.iterdir())
    return {number: refuse_way_out(file, pattern.parent) for number, file in found if number is not None}


def refuse_two_numbers(pattern: str) -> None:
    """Raise CSDError for a pattern with several numbers, of which any could be the frame's."""
    if len(NUMBER.findall(pattern)) > 1:
        raise CSDError(f"{pattern}: a pattern has one number, which counts the frames; write the others out")


def number_in(pattern: str, name: str) -> int | None:
    """The number for which a pattern such as frames_%05d.png gives this name; None if there is none."""
    before, after = (re.escape(part) for part in NUMBER.split(pattern, maxsplit=1))
    match = re.fullmatch(f"{before}([0-9]+){after}", name)
    # %d and %05d write a number in one way only: file_7 is not what %05d gives for 7.
    return int(match[1]) if match and nth_name(pattern, int(match[1])) == name else None


def nth_name(pattern: str, number: int) -> str:
    """The name that a pattern gives to a number."""
    return NUMBER.sub(lambda found: found[0] % number, pattern, count=1)


def read_image(path: Path) -> np.ndarray:
    """RGB (H, W, 3): uint8, or uint16 for a 16-bit file; see `decode_image` for other kinds. Raises CSDError."""
    try:
        return decode_image(path.read_bytes(), str(path), deep=True)
    except OSError as error:
        raise CSDError(f"{path}: cannot be read ({error.strerror or error}): restore the file") from error


def lost_in(file: Path | BinaryIO) -> list[str]:
    """What a frame cannot hold of an image file, in words, as far as Pillow shows it."""
    try:
        with Image.open(file) as image:
            pages = ["all pictures but the first"] if getattr(image, "n_frames", 1) > 1 else []
            return pages + lost_of(image)
    except (OSError, EOFError, Image.DecompressionBombError, SyntaxError, ValueError):
        return []


def lost_of(image: Image.Image) -> list[str]:
    """What an array of pixels cannot hold of an open image, in words."""
    lost = ["transparency"] if _is_see_through(image) else []
    profile = image.info.get("icc_profile") or b""
    if profile and not any("sRGB".encode(encoding) in profile for encoding in ("ascii", "utf-16-be")):
        lost.append("colour profile (ICC)")  # for colours other than the default that readers assume
    return lost


def _is_see_through(image: Image.Image) -> bool:
    """Whether any pixel is transparent."""
    if "A" not in image.getbands():
        return "transparency" in image.info
    lowest, _ = image.getchannel("A").getextrema()
    return float(cast(float, lowest)) < 255


def no_frame(frame: object) -> str:
    """Why an object is not a frame, RGB (H, W, 3) of uint8 or uint16; empty if it is one."""
    if not isinstance(frame, np.ndarray):
        how = "; convert it by np.array(frame.convert('RGB'))" if isinstance(frame, Image.Image) else ""
        return f"{type_in_words(frame)} is not a frame: expected an array, uint8 or uint16 (H, W, 3){how}"
    if frame.ndim != 3 or frame.shape[2] != 3 or not frame.size or frame.dtype not in (np.uint8, np.uint16):
        how = _conversion(frame)
        return (
            f"an array of shape {frame.shape}, {frame.dtype}, is not a frame: expected uint8 or uint16 (H, W, 3){how}"
        )
    return ""


def _conversion(array: np.ndarray) -> str:
    """The end of a message that says how to make a frame of an array; empty for an array that cannot be one."""
    steps = []
    if np.issubdtype(array.dtype, np.floating):
        steps.append("(frame * 255).round().astype(np.uint8) if its values lie in [0, 1]")
    if array.ndim == 2 or array.shape[2:] == (1,):
        steps.append("cv2.cvtColor(frame, cv2.COLOR_GRAY2RGB)")
    elif array.shape[2:] == (4,):
        steps.append("cv2.cvtColor(frame, cv2.COLOR_RGBA2RGB)")
    elif array.ndim == 3 and array.shape[0] == 3 != array.shape[2]:
        steps.append("frame.transpose(1, 2, 0)")
    return f"; convert it by {', then '.join(steps)}" if steps and array.size else ""


def eight_bits(frame: np.ndarray) -> np.ndarray:
    """A frame as uint8: uint16 (full range) is rounded, uint8 unchanged."""
    return frame if frame.dtype == np.uint8 else ((frame.astype(np.uint32) + 128) // 257).astype(np.uint8)


def rounded(frames: Iterable[np.ndarray], what: object) -> Iterator[np.ndarray]:
    """The frames as uint8; one line warns if deeper ones are rounded, and names `what` they belong to."""
    said = False
    for frame in frames:
        if frame.dtype != np.uint8 and not said:
            logger.warning("%s: more than 8 bits per channel, rounded to 8", what)
            said = True
        yield eight_bits(frame)


def sixteen_bits(frame: np.ndarray) -> np.ndarray:
    """A frame as uint16 (full range): uint8 is converted exactly, uint16 unchanged."""
    return frame if frame.dtype == np.uint16 else frame.astype(np.uint16) * 257


def one_depth(frames: Iterable[np.ndarray]) -> list[np.ndarray]:
    """Frames of 8 and 16 bits, all converted to the larger depth among them."""
    frames = list(frames)
    return list(map(sixteen_bits, frames)) if any(frame.dtype == np.uint16 for frame in frames) else frames


PNG_START = b"\x89PNG\r\n\x1a\n"
"""The first bytes of a PNG file."""
_PNG_END = struct.pack(">I4sI", 0, b"IEND", zlib.crc32(b"IEND"))
_PNG_FIRST_END = len(PNG_START) + 25
"""The end of a PNG file's first chunk, which has a fixed size."""
_NOTE = b"csd_plugin\x00"
_LONGEST_NOTE = 2**14


def write_png(path: Path, frame: np.ndarray, note: str = "") -> None:
    """Write RGB (H, W, 3), uint8 or uint16; the file appears complete or not at all.

    Args:
        note: ASCII text to store in the file; see `note_in_png`.

    Raises:
        CSDError: the array is not a frame, or too large for PNG.
        OSError: it cannot be written; with the file's name.
    """
    if reason := no_frame(frame):
        raise CSDError(f"{path}: {reason}")
    done, data = cv2.imencode(".png", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_PNG_COMPRESSION, 3])
    if not done:
        raise CSDError(
            f"{path}: OpenCV cannot write a PNG of {frame.shape[1]}x{frame.shape[0]} pixels; use smaller frames"
        )
    try:
        with replacing(path) as draft:
            draft.write_bytes(_with_note(data.tobytes(), note) if note else data.tobytes())
    except OSError as error:
        raise at(path, error) from error


def _with_note(data: bytes, note: str) -> bytes:
    text = b"tEXt" + _NOTE + note.encode("ascii")
    chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text))
    return data[:_PNG_FIRST_END] + chunk + data[_PNG_FIRST_END:]


def is_whole_png(path: Path) -> bool:
    """Whether a file exists and is a PNG that was not cut short. Raises OSError, with the file's name."""
    try:
        with path.open("rb") as file:
            start = file.read(len(PNG_START))
            file.seek(max(file.seek(0, io.SEEK_END) - len(_PNG_END), 0))
            return start == PNG_START and file.read() == _PNG_END
    except FileNotFoundError:
        return False
    except OSError as error:
        raise at(path, error) from error


def is_cut_png(path: Path) -> bool:
    """Whether a file is the (possibly empty) beginning of a PNG, as a power failure leaves it. Raises OSError."""
    try:
        with path.open("rb") as file:
            start = file.read(len(PNG_START))
    except OSError as error:
        raise at(path, error) from error
    return PNG_START.startswith(start) and not is_whole_png(path)


def note_in_png(path: Path) -> str:
    """The note that `write_png` has stored in a file; empty for other files. Raises OSError, with the file's name."""
    try:
        with path.open("rb") as file:
            start = file.read(_PNG_FIRST_END + 8)
            size, kind = struct.unpack(">I4s", start[_PNG_FIRST_END:].ljust(8, b"\0"))
            text = file.read(size) if kind == b"tEXt" and size < _LONGEST_NOTE else b""
    except OSError as error:
        raise at(path, error) from error
    is_note = start.startswith(PNG_START) and text.startswith(_NOTE)
    return text.removeprefix(_NOTE).decode("ascii", "replace") if is_note else ""


_EXIF_ORIENTATION, _LYING = 0x0112, (5, 6, 7, 8)


MOST_PIXELS = 2**27
"""The most pixels of a frame: four times 8K."""
_PPM = re.compile(rb"P[2356](?:\s+(?:#[^\n]*\n\s*)*(\d{1,5})){3}\s")
"""The header of PPM and PGM; the group is its last number."""
_JPEG_START, _JPEG_END, _JPEG_SCAN = b"\xff\xd8", b"\xff\xd9", 0xDA


def decode_image(data: bytes, where: str, *, deep: bool = False, remedy: str = "restore the file") -> np.ndarray:
    """An image file's bytes -> uint8 RGB (H, W, 3).

    Grey becomes three equal channels, alpha is dropped, EXIF orientation is applied. 16 bits are rounded to 8, or,
    if `deep`, kept as uint16.
    Raises CSDError, beginning with `where`, for data that is not an image, is cut short, or has other pixel types;
    `remedy` is what to do about damaged data.
    """
    check_pixels(data, where)
    if data.startswith(_JPEG_START) and not _jpeg_is_whole(data):
        raise CSDError(f"{where}: the JPEG ends early ({len(data)} bytes): {remedy}")
    image = _decoded(data)
    if image is None:
        raise CSDError(f"{where}: {_why_unreadable(data, remedy)}")
    if peak := _ignored_peak(data):
        image = _stretched(image, peak)
    if image.dtype == np.uint16 and not deep:
        image = ((image.astype(np.uint32) + 128) // 257).astype(np.uint8)
    if image.dtype not in (np.uint8, np.uint16):
        raise CSDError(f"{where}: pixels of type {image.dtype}: convert the frames to 8 or 16 bits per channel")
    return cv2.cvtColor(image, cv2.COLOR_BGR2RGB, dst=image)


def _decoded(data: bytes) -> np.ndarray | None:
    """OpenCV's BGR picture of an image file's bytes; None if it cannot read them."""
    if re.match(rb"P[123]\s", data):
        data += b"\n"  # it misses the last number of a text that ends with it
    try:
        return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
    except cv2.error:  # it refuses empty data and sizes beyond its limits
        return None


def _why_unreadable(data: bytes, remedy: str) -> str:
    """What is wrong with data that OpenCV cannot read, and what to do: it may be whole, but of a rare kind."""
    try:
        with warnings.catch_warnings(), Image.open(io.BytesIO(data)) as image:
            warnings.simplefilter("ignore")
            image.load()
            kind = f"{image.format} of mode {image.mode}"
    except (OSError, SyntaxError, ValueError, struct.error, OverflowError, TypeError, LookupError, MemoryError):
        return f"not a readable image ({len(data)} bytes, damaged or cut short): {remedy}"
    return f"a kind of image that cannot be read ({kind}): convert the frames to PNG"


def _ignored_peak(data: bytes) -> int | None:
    """The value of white in a PPM's header, if OpenCV does not regard it; else None. It does in texts of 8 bits."""
    header = _PPM.match(data)
    peak = int(header[1]) if header else 0
    return None if not 0 < peak < 65535 or (data[1:2] in b"23" and peak < 256) else peak


def _stretched(image: np.ndarray, peak: int) -> np.ndarray:
    """Pixels of which white is `peak`, over the full range of their type."""
    full = np.iinfo(image.dtype).max
    return ((np.minimum(image, peak).astype(np.uint32) * full + peak // 2) // peak).astype(image.dtype)


def check_pixels(data: bytes, where: str) -> None:
    """Raise CSDError for a header with more pixels than any frame has, as decoders allocate their memory at once."""
    if data.startswith(PNG_START):
        width, height = struct.unpack(">II", data[16:24].ljust(8, b"\0"))
    else:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", Image.DecompressionBombWarning)
                with Image.open(io.BytesIO(data)) as image:
                    width, height = image.size
        except Image.DecompressionBombError:
            width = height = MOST_PIXELS
        except (OSError, SyntaxError, ValueError, struct.error, OverflowError, TypeError, LookupError):
            return  # unknown to Pillow, or damaged: OpenCV has limits of its own
    if width * height > MOST_PIXELS:
        raise CSDError(
            f"{where}: its header states more than {MOST_PIXELS >> 20} million pixels: not decoded; use smaller frames"
        )


def is_one_image(path: Path) -> bool:
    """Whether a file is an image of one picture, by its header: an animation is a clip."""
    try:
        with Image.open(path) as image:
            return getattr(image, "n_frames", 1) == 1
    except (OSError, Image.DecompressionBombError, SyntaxError, ValueError):
        return False


def header_shape(file: BinaryIO) -> tuple[int, int] | None:
    """(height, width) as `decode_image` will return them, from an image's header; None if only decoding shows them."""
    try:
        with Image.open(file) as image:
            # Pillow would decode a whole PNG to look for an orientation after its pixels.
            exif = image.getexif() if image.format != "PNG" or "exif" in image.info else {}
            if exif.get(_EXIF_ORIENTATION) in _LYING:
                return None  # rotated by 90 degrees: formats differ in which of the two sizes they report
            return image.height, image.width
    except (OSError, Image.DecompressionBombError, SyntaxError, ValueError):
        return None


def _jpeg_is_whole(data: bytes) -> bool:
    """Whether the end marker follows the first scan; decoders fill a missing part with grey and only warn."""
    if data.endswith(_JPEG_END):
        return True
    # Some writers add bytes after the end marker, and embedded thumbnails have their own: walk to the scan.
    at = len(_JPEG_START)
    while at + 4 <= len(data) and data[at] == 0xFF:
        if data[at + 1] == _JPEG_SCAN:
            return _JPEG_END in data[at:]
        fill = data[at + 1] == 0xFF
        at += 1 if fill else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return False
