"""The sheet on which pictures are drawn: exactly placed panels, captions that fit, and one place for the style."""

from __future__ import annotations

import io
import logging
import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from csd_plugin.atomic import refuse_inputs, refuse_strangers, refuse_unwritable, replacing
from csd_plugin.data.images import PNG_START, files_of
from csd_plugin.errors import CSDError, cannot_write
from csd_plugin.extras import needed_by

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

PAGE_WIDTH = 7.16
"""Inches: the text width of a two-column paper, over both columns."""
GAP = 0.04
LINE = 0.145
"""Inches: gap between panels; height of a line of a caption."""
_NARROWEST = 0.04
"""Inches: width of the narrowest panel."""
_HIGHEST = 60.0
"""Inches: height of the highest figure: 18000 pixels, and some hundred MB of memory."""
FONT_SIZE = 8.0
DPI = 300
COLOURS = ("#ffd60a", "#00c2ff", "#ff4d6d", "#7cfc00")
"""Colours of boxes, in order."""


class Sheet:
    """A figure of fixed size, whose panels are placed in inches from its top left corner.

    It is drawn on matplotlib's own canvas, without pyplot and its state. Raises CSDError if matplotlib is missing, or
    if frames of the shape (H, W, ..) make a figure so high that it would fill the memory.
    """

    def __init__(self, width: float, height: float, shape: tuple[int, ...]) -> None:
        if height > _HIGHEST:
            raise CSDError(
                f"frames of {shape[1]}x{shape[0]} make a figure {height:.0f} inches high; at most {_HIGHEST:.0f} are "
                f"possible: give a clip of wider frames, wider details or fewer rows"
            )
        figure, canvas = _matplotlib()
        self.width, self.height = width, height
        self._lacks_glyphs = False
        self.figure = figure(figsize=(width, height), dpi=DPI)
        self.canvas = canvas(self.figure)

    def panel(self, left: float, top: float, width: float, height: float) -> Axes:
        """Axes without ticks that fill this rectangle, in inches."""
        axes = self.figure.add_axes(
            (left / self.width, 1 - (top + height) / self.height, width / self.width, height / self.height)
        )
        axes.set_xticks([])
        axes.set_yticks([])
        for spine in axes.spines.values():
            spine.set_visible(False)
        return axes

    def image(self, pixels: np.ndarray, left: float, top: float, width: float, height: float, **style: Any) -> Axes:
        """A panel filled by an image, (H, W, 3) uint8 RGB or (H, W) with a colour map in `style`."""
        axes = self.panel(left, top, width, height)
        axes.imshow(pixels, aspect="auto", **style)
        return axes

    def frame_panel(self, axes: Axes, colour: str, width: float = 1.5) -> None:
        """A coloured border, `width` points wide, just inside a panel, as half of a line on its edge would be cut."""
        from matplotlib.patches import Rectangle

        axes.add_patch(
            Rectangle((0, 0), 1, 1, transform=axes.transAxes, fill=False, edgecolor=colour, linewidth=2 * width)
        )

    def caption(self, lines: Sequence[str], left: float, top: float, width: float) -> None:
        """Centred lines below a panel: the first is its label. Lines that are too wide are set smaller."""
        for number, line in enumerate(lines):
            self.text(line, left + width / 2, top + (number + 0.5) * LINE, width, ha="center")

    def text(self, text: str, x: float, y: float, room: float, **style: Any) -> None:
        """One line at (x, y), vertically centred there, at most `room` inches long."""
        upright = "center" if style.get("rotation") else "center_baseline"
        drawn = self.figure.text(
            x / self.width, 1 - y / self.height, text, fontsize=FONT_SIZE, va=upright, parse_math=False, **style
        )
        with self._glyphs_said():
            extent = drawn.get_window_extent(self.canvas.get_renderer())
        length = (extent.height if style.get("rotation") else extent.width) / DPI
        if length > room:
            drawn.set_fontsize(FONT_SIZE * room / length)

    @contextmanager
    def _glyphs_said(self) -> Iterator[None]:
        """Inside, one warning replaces matplotlib's warnings about each character that its font lacks."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
        for warning in caught:
            if "missing from" not in str(warning.message):
                warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)
            elif not self._lacks_glyphs:
                logger.warning("the font of figures lacks characters of the labels; they are drawn as boxes")
                self._lacks_glyphs = True

    def save(self, path: Path) -> None:
        """Write it in the format of the suffix; the file appears complete or not at all. Raises CSDError."""
        try:
            with replacing(path) as draft:
                drawn = io.BytesIO()  # matplotlib's PDF writer fails badly on a full disk
                with self._glyphs_said():
                    self.figure.savefig(drawn, dpi=DPI, format=path.suffix[1:].lower())
                draft.write_bytes(drawn.getvalue())
        except OSError as error:
            raise cannot_write(path, error) from error


def _matplotlib() -> tuple[type[Figure], type[FigureCanvasAgg]]:
    """Its classes of a figure and of a canvas. Raises CSDError if it is missing, or has no folder for its files."""
    try:
        with needed_by("a figure"):
            from matplotlib.backends.backend_agg import FigureCanvasAgg
            from matplotlib.figure import Figure
    except OSError as error:
        raise CSDError(
            "a figure: matplotlib finds no folder for its files; set MPLCONFIGDIR, or TMPDIR, to one that can be "
            "written to"
        ) from error
    return Figure, FigureCanvasAgg


def check_output(path: Path, inputs: Iterable[Path]) -> None:
    """Before anything is computed, raise CSDError if `Sheet` could not draw, or could not save there.

    It must not replace an input, or anything but a picture of the same format.
    """
    sign = _SIGNS.get(path.suffix.lower())
    if sign is None:
        raise CSDError(f"--out {path}: a picture's name ends in {' '.join(_SIGNS)}")
    if not path.parent.is_dir():
        raise CSDError(f"--out {path}: the folder {path.parent} does not exist; make it first")
    refuse_inputs([path], [file for given in inputs for file in files_of(given)])
    refuse_strangers(path, sign)
    refuse_unwritable(path)
    _matplotlib()


_SIGNS = {
    ".png": re.escape(PNG_START),
    ".pdf": rb"%PDF-",
    ".svg": rb".*<svg\b",
    ".jpg": rb"\xff\xd8\xff",
    ".tif": rb"II\*\x00|MM\x00\*",
}
"""Suffix -> pattern of the beginning of such a file."""


def row_width(columns: int, room: float = PAGE_WIDTH) -> float:
    """Inches per panel for several side by side. Raises CSDError if that is less than a millimetre."""
    width = (room - (columns - 1) * GAP) / columns
    if width < _NARROWEST:
        raise CSDError(f"{columns} pictures side by side do not fit in {room:.2g} inches: give fewer")
    return width


def lefts(columns: int, width: float, start: float = 0.0) -> list[float]:
    """The left edges of the panels of a row, in inches."""
    return [start + i * (width + GAP) for i in range(columns)]
