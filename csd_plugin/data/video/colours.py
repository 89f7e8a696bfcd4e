"""Converts decoded frames to RGB arrays and back, exactly, for every matrix, range and depth of video; HDR data."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any, NamedTuple, cast

import av
import av.filter
import cv2
import numpy as np
from av.sidedata.sidedata import Type
from av.video.reformatter import Interpolation

from csd_plugin.data.images import eight_bits
from csd_plugin.data.video.scaling import reformat

INTERPOLATION = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
"""swscale's flags. Without the last two, pictures get 1.4 grey levels darker from RGB to 8-bit YUV and back."""

RGB, BT709, UNSPECIFIED, BT470BG, SMPTE170M, BT2020 = 0, 1, 2, 5, 6, 9
FULL = 2

_BT601 = (0.299, 0.114)
_LUMA = {
    BT709: (0.2126, 0.0722),
    4: (0.30, 0.11),  # FCC
    BT470BG: _BT601,
    SMPTE170M: _BT601,
    7: (0.212, 0.087),  # SMPTE 240M
    BT2020: (0.2627, 0.0593),
}
# Unspecified is BT.601, as in FFmpeg; so are reserved numbers, and RGB's number with pixels that are not RGB.
_LUMA |= dict.fromkeys((UNSPECIFIED, RGB, 3), _BT601)
"""Weights of red and blue in luma, by FFmpeg's number of the matrix."""


class Colours(NamedTuple):
    """The colour space of a video, in FFmpeg's numbers (those of ITU-T H.273, except the range)."""

    matrix: int = UNSPECIFIED
    range: int = 0
    primaries: int = UNSPECIFIED
    transfer: int = UNSPECIFIED

    @classmethod
    def of(cls, frame: av.VideoFrame) -> Colours:
        return cls(frame.colorspace, frame.color_range, frame.color_primaries, frame.color_trc)

    @property
    def full(self) -> bool:
        """Whether black is 0 and white the largest value."""
        return self.range == FULL

    def known(self, pix_fmt: str) -> bool:
        """Whether pixels of this format with these colours can be converted."""
        return is_rgb(pix_fmt) or is_grey(pix_fmt) or self.matrix in _LUMA

    def for_format(self, pix_fmt: str) -> Colours:
        """These colours, made valid for a pixel format: RGB has no matrix, YUV a known one."""
        if is_rgb(pix_fmt):
            return self._replace(matrix=RGB, range=FULL)
        if self.matrix in _LUMA and self.matrix != RGB:
            return self
        # RGB's range says nothing about YUV, which is limited unless stated otherwise.
        matrix = BT2020 if self.primaries == BT2020 else BT709
        return self._replace(matrix=matrix, range=1 if self.matrix == RGB else self.range)


def depth_of(pix_fmt: str) -> int:
    """Bits per channel."""
    return max(component.bits for component in av.VideoFormat(pix_fmt).components)


def is_rgb(pix_fmt: str) -> bool:
    """Whether pixels are RGB, directly or through a palette."""
    form = av.VideoFormat(pix_fmt)
    return form.is_rgb or form.has_palette


def is_grey(pix_fmt: str) -> bool:
    """Whether pixels have luma only, with or without alpha."""
    return len(av.VideoFormat(pix_fmt).components) < 3 and not is_rgb(pix_fmt)


def has_alpha(pix_fmt: str) -> bool:
    """Whether pixels of this format have an alpha channel."""
    return any(component.is_alpha for component in av.VideoFormat(pix_fmt).components)


def to_rgb(frame: av.VideoFrame, *, upright: bool = True) -> np.ndarray:
    """The picture as a viewer shows it: (H, W, 3), uint8, or uint16 over its full range for more than 8 bits.

    Args:
        upright: apply the frame's rotation and mirroring.
    """
    pixels = _pixels(frame)
    matrix = side_data(frame).get("DISPLAYMATRIX") if upright else None
    return pixels if matrix is None else _turn(pixels, np.frombuffer(matrix, np.int32))  # type: ignore[call-overload]


def turns_sideways(frame: av.VideoFrame) -> bool:
    """Whether `to_rgb` exchanges width and height."""
    matrix = side_data(frame).get("DISPLAYMATRIX")
    if matrix is None:
        return False
    a, b = np.frombuffer(matrix, np.int32)[:2].astype(int)  # type: ignore[call-overload]
    return bool(abs(b) > abs(a))


def _pixels(frame: av.VideoFrame) -> np.ndarray:
    name = frame.format.name
    depth = depth_of(name)
    if not is_rgb(name) and frame.colorspace in (RGB, 3):
        frame.colorspace = UNSPECIFIED  # swscale refuses the combination
    if depth <= 8:
        return reformat(frame, format="rgb24", interpolation=INTERPOLATION).to_ndarray()
    colours = Colours.of(frame)
    if is_grey(name) and depth <= 16:
        grey = _plane(_reformat(frame, _one_size(depth, grey=True), colours), 0) * (65535 / (2**depth - 1))
        return np.repeat(np.rint(grey).astype(np.uint16)[..., None], 3, axis=2)
    if is_rgb(name) or depth > 16 or colours.matrix not in _LUMA:
        return frame.to_ndarray(format="rgb48le", interpolation=INTERPOLATION)
    # Only for the size of chroma: swscale's 16-bit RGB white is 65280 from limited YUV, 65535 from full range.
    planes = _reformat(frame, _one_size(depth), colours)
    to_yuv, offset = _transform(colours, depth)
    from_yuv = np.linalg.inv(to_yuv) * 65535
    yuv = cv2.merge([np.ascontiguousarray(_plane(planes, index)) for index in range(3)])
    return cv2.transform(yuv, np.hstack([from_yuv, -from_yuv @ offset[:, None]]))  # rounded and clipped


def from_rgb(pixels: np.ndarray, pix_fmt: str, colours: Colours) -> av.VideoFrame:
    """RGB (H, W, 3), uint8 or uint16 over its full range, as a frame of a format and colours.

    Every value is the nearest one; for full range, swscale's own chroma is half a level too low. FFmpeg reads all grey
    formats as full range, whatever their mark; limited-range grey is for encoders whose decoders turn grey into YUV.
    """
    depth = min(depth_of(pix_fmt), 16)
    if pix_fmt == "yuv420p" and pixels.dtype == np.uint8 and not colours.full:
        # A shortcut for the usual video, six times as fast: luma is still nearest, and chroma a mean of four pixels.
        rgb = av.VideoFrame.from_numpy_buffer(np.ascontiguousarray(pixels), "rgb24")
        matrix = SMPTE170M if _LUMA[colours.matrix] == _BT601 else colours.matrix
        frame = reformat(rgb, format=pix_fmt, interpolation=INTERPOLATION, dst_colorspace=matrix, dst_color_range=1)
    elif is_rgb(pix_fmt):
        if depth <= 8:
            pixels = eight_bits(pixels)
        elif pixels.dtype == np.uint8:
            pixels = pixels.astype(np.uint16) * 257
        rgb = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24" if depth <= 8 else "rgb48le")
        rgb.color_range = FULL
        frame = rgb.reformat(format=pix_fmt, interpolation=INTERPOLATION, dst_color_range=FULL)
    else:
        to_yuv, offset = _transform(colours, depth)
        peak = 255 if pixels.dtype == np.uint8 else 65535
        # OpenCV sums in float32 for 16 bits, but with only ten bits for 8-bit pixels.
        yuv = cv2.transform(pixels.astype(np.uint16), np.hstack([to_yuv / peak, offset[:, None]]))
        one_size = av.VideoFrame(pixels.shape[1], pixels.shape[0], _one_size(depth, grey=is_grey(pix_fmt)))
        for plane, numbers in zip(one_size.planes, cv2.split(np.minimum(yuv, 2**depth - 1)), strict=False):
            kind = np.uint8 if depth <= 8 else np.uint16
            rows = np.zeros((plane.height, plane.line_size // kind().itemsize), kind)
            rows[:, : plane.width] = numbers
            plane.update(rows.tobytes())
        frame = _reformat(one_size, pix_fmt, colours)
    frame.colorspace, frame.color_range, frame.color_primaries, frame.color_trc = colours
    return frame


def _reformat(frame: av.VideoFrame, pix_fmt: str, colours: Colours) -> av.VideoFrame:
    """The frame with another chroma size or order of planes; the meaning of its values does not change."""
    tags = Colours.of(frame)
    try:
        frame.colorspace, frame.color_range = UNSPECIFIED, 2 if colours.full else 1
        made = frame.reformat(format=pix_fmt, interpolation=INTERPOLATION, dst_color_range=2 if colours.full else 1)
    finally:
        frame.colorspace, frame.color_range = tags.matrix, tags.range
    return made


def _one_size(depth: int, *, grey: bool = False) -> str:
    """The format of planes of equal size that holds this depth: luma, and chroma too unless it is grey."""
    name = "gray" if grey else "yuv444p"
    return name if depth <= 8 else f"{name}{depth}le"


def _plane(frame: av.VideoFrame, index: int) -> np.ndarray:
    plane = frame.planes[index]
    kind = np.uint8 if frame.format.components[0].bits <= 8 else np.uint16
    return np.frombuffer(plane, kind).reshape(plane.height, -1)[:, : plane.width]  # type: ignore[call-overload]


def _transform(colours: Colours, depth: int) -> tuple[np.ndarray, np.ndarray]:
    """(3, 3) and (3,): YUV values of this depth are the matrix times RGB in [0, 1], plus the offset."""
    red, blue = _LUMA[colours.matrix]
    luma = np.array([red, 1 - red - blue, blue])
    rows = np.stack([luma, ([0, 0, 1] - luma) / (2 * (1 - blue)), ([1, 0, 0] - luma) / (2 * (1 - red))])
    scale = 2.0 ** (depth - 8)
    top = 2.0**depth - 1
    sizes = np.array([top, top, top] if colours.full else [219 * scale, 224 * scale, 224 * scale])
    middle = 128 * scale
    return rows * sizes[:, None], np.array([0 if colours.full else 16 * scale, middle, middle])


def _turn(pixels: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Turn and mirror by quarter turns, as given by a 3x3 display matrix (9 integers, row by row)."""
    a, b, _, c, d = (int(value) for value in matrix[:5])
    if abs(b) > abs(a):  # x and y are exchanged
        pixels, flip_x, flip_y = pixels.swapaxes(0, 1), c < 0, b < 0
    else:
        flip_x, flip_y = a < 0, d < 0
    return np.ascontiguousarray(pixels[:: -1 if flip_y else 1, :: -1 if flip_x else 1])


def side_data(frame: av.VideoFrame) -> Mapping[str, Any]:
    """The side data of a frame, by the names of PyAV's `av.sidedata.sidedata.Type`.

    PyAV returns no side data at all for a frame with a kind that it has no name for yet, such as JPEG's EXIF; those are
    removed first.
    """
    try:
        return cast("Mapping[str, Any]", frame.side_data)
    except ValueError:
        graph, newest = av.filter.Graph(), max(int(kind.value) for kind in Type)  # type: ignore[call-overload]
        source = graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base or Fraction(1)
        )
        takers = (graph.add("sidedata", f"mode=delete:type={newest + 1 + i}") for i in range(_NEWER_KINDS))
        graph.link_nodes(source, *takers, graph.add("buffersink")).configure()
        graph.push(frame)
        return cast("Mapping[str, Any]", graph.vpull().side_data)


class Light(NamedTuple):
    """HDR10: the display on which a video was mastered, and its light levels. What a file does not state is None.

    Attributes:
        display: x and y of red, green, blue and white, then the lowest and the highest luminance in cd/m2.
        levels: maximum content light level and maximum frame-average light level, in cd/m2.
    """

    display: tuple[Fraction, ...] | None = None
    levels: tuple[int, int] | None = None

    @classmethod
    def of(cls, frame: av.VideoFrame) -> Light:
        display, levels = None, None
        found = side_data(frame)
        if (data := found.get("MASTERING_DISPLAY_METADATA")) is not None:
            numbers = np.frombuffer(data, np.int32).tolist()  # type: ignore[call-overload]
            # AVMasteringDisplayMetadata: ten fractions, then flags for primaries and luminance.
            if len(numbers) >= 22 and all(numbers[20:22]) and all(numbers[1:20:2]):
                display = tuple(Fraction(*numbers[i : i + 2]) for i in range(0, 20, 2))
        if (data := found.get("CONTENT_LIGHT_LEVEL")) is not None:
            highest, mean = np.frombuffer(data, np.uint32)[:2].tolist()  # type: ignore[call-overload]
            levels = (highest, mean)
        return cls(display, levels)

    def is_like(self, other: Light) -> bool:
        """Whether both are equal up to the rounding of file formats."""
        mine, theirs = (one.display or () for one in (self, other))
        near = len(mine) == len(theirs) and np.allclose(
            [*map(float, mine)], [*map(float, theirs)], atol=1e-3, rtol=1e-3
        )
        return bool(near) and self.levels == other.levels


_NEWER_KINDS = 16
"""The number of further kinds of side data that FFmpeg may have, after those that PyAV has names for."""

_CARRIED = {
    Type.A53_CC: "closed captions",
    Type.DYNAMIC_HDR_PLUS: "HDR10+",
    Type.DYNAMIC_HDR_VIVID: "HDR Vivid",
    Type.DOVI_METADATA: "Dolby Vision",
    Type.DOVI_RPU_BUFFER: "Dolby Vision",
    Type.ICC_PROFILE: "colour profile (ICC)",
    Type.STEREO3D: "stereo 3D layout",
    Type.SPHERICAL: "projection of 360 degrees",
    Type.FILM_GRAIN_PARAMS: "film grain",
}
"""What a frame may carry in addition to its picture, and an array of pixels cannot."""


def carried(frame: av.VideoFrame) -> list[str]:
    """What the frame carries that arrays of pixels cannot, except what `Light` holds."""
    found = side_data(frame)
    return sorted({name for kind, name in _CARRIED.items() if found.get(kind.name) is not None})
