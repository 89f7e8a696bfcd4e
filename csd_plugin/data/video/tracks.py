"""Everything in a video file besides its picture: sound, subtitles, attachments, covers, chapters and tags."""

from __future__ import annotations

import contextlib
import io
import itertools
import logging
import re
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import av
from av.stream import Disposition

from csd_plugin.data.video.clock import Clock
from csd_plugin.data.video.decode import is_cover, is_still, open_input
from csd_plugin.data.video.encoders import Setup, write_one
from csd_plugin.data.video.interface import SourceFormat

if TYPE_CHECKING:
    from av.container.core import Chapter

logger = logging.getLogger(__name__)

_TECHNICAL = re.compile(
    "encoder|software|duration|alpha_mode|(major|compatible)_brands?|minor_version|handler_name|vendor_id|rotate|"
    "(bps|number_of_|_statistics_).*|filename|mimetype|variant_bitrate|is_avc|starttime|totalduration|totaldatarate",
    re.IGNORECASE,
)
"""Tags about the file, not about its content."""
_PROBED_PACKETS = 500
"""Packets that are searched for each track's first one."""


Way = Callable[[av.container.OutputContainer, Any, "av.Packet | None"], Any]
"""Adds a track to an output, given its stream and first packet; returns the new stream, which gets its packets."""


class Tracks:
    """The other tracks of a file, copied to another one unchanged, in sync with the pictures.

    What the other container cannot hold is left out, and named in one line.

    Args:
        source: the file, as described by its reader.
        output: already has the picture's stream, but no header.
        setup: of the picture's stream.
        offset: the time in the source at which the output begins, in seconds.
    """

    def __init__(
        self, source: SourceFormat, output: av.container.OutputContainer, setup: Setup, offset: Fraction
    ) -> None:
        self._from, self._output, self._setup, self._offset = source, output, setup, offset
        self._source = open_input(source.path)
        self._copies: dict[int, Any] = {}
        self._last: dict[int, int] = {}
        self._lost: list[str] = []
        firsts = _first_packets(source.path)
        for stream in self._source.streams:
            if stream.index != source.index:
                self._add(stream, firsts.get(stream.index))
        _copy_chapters(self._source, output, source, offset)
        output.metadata.update(_part_tags(self._source.metadata, source))
        if self._lost:
            logger.warning(
                "%s: left out, as %s does not hold it: %s", source.path, output.format.name, "; ".join(self._lost)
            )
        wanted = [self._source.streams[index] for index in self._copies]
        picture = cast("av.VideoStream", self._source.streams[source.index])
        self._packets = self._timed(Clock(picture).packets(*wanted)) if wanted else iter(())
        self._waiting = next(self._packets, None)

    def copy_until(self, seconds: Fraction | None) -> None:
        """Write the packets that begin before this time of the output; None: all that are left."""
        while self._waiting is not None and (seconds is None or self._waiting[0] < seconds):
            self._output.mux(self._waiting[1])
            self._waiting = next(self._packets, None)

    def say_what_is_lost(self, path: Path) -> None:
        """Warn, in one line, about tags, chapters, and languages of copied tracks that the finished file lacks."""
        lost = []
        with open_input(self._from.path) as before, open_input(path) as after:
            there = {key.lower() for key in after.metadata}
            there |= {key.lower() for stream in after.streams for key in stream.metadata}
            keys = [key for key in _part_tags(before.metadata, self._from) if key.lower() not in there]
            if keys:
                lost.append(f"tags {', '.join(sorted(keys))}")
            if before.chapters() and not after.chapters():
                lost.append("chapters")
            for kind in ("audio", "subtitles"):
                spoken = [stream.language for stream in getattr(before.streams, kind) if stream.index in self._copies]
                kept = [stream.language for stream in getattr(after.streams, kind)]
                if len(kept) == len(spoken) and spoken != kept and set(spoken) - {None, "und"}:
                    lost.append(f"languages of {kind} ({', '.join(map(str, spoken))})")
        if lost:
            logger.warning("%s: left out, as %s does not hold it: %s", self._from.path, path.suffix, "; ".join(lost))

    def close(self) -> None:
        self._source.close()

    def _add(self, stream: Any, first: av.Packet | None) -> None:
        if _is_made_anew(stream, self._source) or (stream.type == "video" and is_still(stream)):
            return
        way = None
        if stream.type != "video" or is_cover(stream):
            way = next((one for one in (_as_stream, _as_attachment) if self._is_held(one, stream, first)), None)
        if way is None:
            self._lost.append(_named(stream))
            return
        copy = way(self._output, stream, first)
        if copy is not None and stream.type != "attachment":
            self._copies[stream.index] = copy

    def _is_held(self, way: Way, stream: Any, first: av.Packet | None) -> bool:
        """Whether a track survives in a file of this kind that also has a picture."""
        file, setup = io.BytesIO(), self._setup
        try:
            with av.open(file, "w", format=self._output.format.name) as container:
                picture = setup.add_to(container, setup.rate)
                copy = way(container, stream, first)
                container.start_encoding()
                write_one(container, picture, av.VideoFrame(*setup.size, setup.pix_fmt))
                if first is not None and copy is not None:
                    container.mux(_bare(first, copy))
            with av.open(io.BytesIO(file.getvalue()), "r") as back:
                found = [one for one in back.streams if one.type == stream.type and one.index > 0]
                return bool(found) and _same_kind(found[0], stream)
        except (av.FFmpegError, ValueError, OSError):
            return False

    def _timed(self, packets: Iterator[av.Packet]) -> Iterator[tuple[Fraction, av.Packet]]:
        """The packets with the output's times; packets before its start are dropped."""
        while True:
            try:
                packet = next(packets, None)
            except av.FFmpegError:
                return  # a damaged end: the pictures' reader reports it
            if packet is None:
                return
            begin = self._move(packet)
            if begin is None or begin + (packet.duration or 0) * packet.time_base <= 0 < self._offset:
                continue
            packet.stream = self._copies[packet.stream.index]
            yield begin, packet

    def _move(self, packet: av.Packet) -> Fraction | None:
        """Set a packet's time for the output, and return it in seconds; None for a packet that is not to be written."""
        if packet.stream.type == "video" and packet.size:  # a cover
            packet.pts = packet.dts = 0
            return Fraction(0)
        decoded = packet.pts if packet.dts is None else packet.dts
        if decoded is None:  # demuxers end every stream with an empty packet
            return None
        shown = decoded if packet.pts is None else packet.pts
        shift = round(self._offset / packet.time_base)
        if packet.stream.type == "subtitle" and shown < shift:
            # A subtitle that is already shown begins with the part: negative times make muxers shift all other tracks.
            packet.duration = (packet.duration or 0) + shown - shift
            if packet.duration <= 0:
                return None
            decoded = shown = shift
        # Muxers refuse times that do not advance.
        packet.dts = max(decoded - shift, self._last.get(packet.stream.index, decoded - shift - 1) + 1)
        packet.pts = max(shown - shift, packet.dts)
        self._last[packet.stream.index] = packet.dts
        return packet.pts * packet.time_base


def picture_tags(source: SourceFormat) -> dict[str, str]:
    """The tags of the picture's stream."""
    return _part_tags(source.metadata, source)


def _part_tags(metadata: dict[str, str], source: SourceFormat) -> dict[str, str]:
    """Tags that also hold for a part: a timecode, for example, is that of the file's first frame."""
    return {key: value for key, value in _tags(metadata).items() if not source.first or key.lower() != "timecode"}


def _tags(metadata: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in metadata.items() if not _TECHNICAL.match(key)}


def _named(stream: Any) -> str:
    codec = stream.codec_context.name if stream.codec_context else getattr(stream, "name", None) or "unknown"
    kind = "cover" if stream.type == "video" and is_cover(stream) else f"{stream.type} track"
    return f"{kind} {stream.index} ({', '.join(filter(None, (codec, stream.language)))})"


def _is_made_anew(stream: Any, source: av.container.InputContainer) -> bool:
    """Whether a muxer makes this track itself from what is kept: QuickTime's tracks for chapters and timecode."""
    if stream.type != "data":
        return False
    made_of_timecode = "timecode" in stream.metadata and any("timecode" in v.metadata for v in source.streams.video)
    return made_of_timecode or (stream.name == "bin_data" and bool(source.chapters()))


def _first_packets(path: Path) -> dict[int, av.Packet]:
    """The first packet with data of each track, if it is in the beginning of the file."""
    found: dict[int, av.Packet] = {}
    with open_input(path) as container:
        try:
            for packet in itertools.islice(container.demux(), _PROBED_PACKETS):
                if packet.size:
                    found.setdefault(packet.stream.index, packet)
        except av.FFmpegError:
            pass  # damage: the pictures' reader reports it
    return found


def _as_stream(output: av.container.OutputContainer, stream: Any, first: av.Packet | None) -> Any:
    with contextlib.ExitStack() as stack:
        template = stream
        if stream.type == "audio" and first and stream.container.format.name == output.format.name == "avi":
            template = stack.enter_context(_through_matroska(stream, first)).streams[0]
        copy = output.add_stream_from_template(template, opaque=True)
    if stream.type == "audio" and "channels" in copy.codec_context.layout.name:
        # AVI gives the number of channels, not the layout, which MP4 needs; the usual layout is meant.
        with contextlib.suppress(ValueError):
            copy.codec_context.layout = f"{copy.codec_context.layout.nb_channels}c"
    copy.metadata.update(_tags(stream.metadata) if stream.type != "attachment" else stream.metadata)
    copy.disposition = stream.disposition
    return copy


def _through_matroska(stream: Any, first: av.Packet) -> av.container.InputContainer:
    """A file in memory with this track, without AVI's block size, with which its muxer miscounts MP3."""
    file = io.BytesIO()
    with av.open(file, "w", format="matroska") as container:
        copy = container.add_stream_from_template(stream, opaque=True)
        container.mux(_bare(first, copy))
    return av.open(io.BytesIO(file.getvalue()), "r")


def _bare(packet: av.Packet, stream: Any) -> av.Packet:
    """A packet's data, as the first packet of another stream."""
    made = av.Packet(bytes(packet))
    made.pts = made.dts = 0
    made.duration, made.time_base, made.is_keyframe, made.stream = packet.duration, packet.time_base, True, stream
    return made


def _as_attachment(output: av.container.OutputContainer, stream: Any, first: av.Packet | None) -> None:
    """A cover, as Matroska holds it."""
    if first is None or not is_cover(stream):
        raise ValueError("no cover")
    kind = {"mjpeg": "jpeg"}.get(stream.codec_context.name, stream.codec_context.name)
    output.add_attachment(f"cover.{kind.replace('jpeg', 'jpg')}", f"image/{kind}", bytes(first))


def _same_kind(one: Any, other: Any) -> bool:
    if other.codec_context is None:
        return getattr(one, "name", None) == getattr(other, "name", None)
    if one.codec_context is None or _family(one) != _family(other):
        return False
    return bool(one.disposition & Disposition.attached_pic) == bool(other.disposition & Disposition.attached_pic)


def _family(stream: Any) -> str:
    """The codec, with one name for those that MP4 does not tell apart."""
    name = stream.codec_context.codec.canonical_name
    return {"mp2": "mp3"}.get(name, name)


def _copy_chapters(
    source: av.container.InputContainer, output: av.container.OutputContainer, reader: SourceFormat, offset: Fraction
) -> None:
    """The chapters of the part, in the output's time."""
    end = None
    if reader.end is not None:
        end = reader.end if isinstance(reader.end, Fraction) else reader.origin + reader.end / reader.fps
    kept: list[Chapter] = []
    for chapter in source.chapters():
        base = chapter["time_base"] or Fraction(1, av.time_base)
        begins, ends = chapter["start"] * base, chapter["end"] * base
        if ends <= offset or (end is not None and begins >= end):
            continue
        begins, ends = max(begins - offset, Fraction(0)), (ends if end is None else min(ends, end)) - offset
        moved = chapter.copy()
        moved["start"], moved["end"] = round(begins / base), round(ends / base)
        kept.append(moved)
    if kept:
        output.set_chapters(kept)
