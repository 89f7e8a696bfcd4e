"""Time stamps that continue where a file's own clock restarts."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any, cast

import av
from av.format import Flags

_BACK, _AHEAD = Fraction(1, 10), Fraction(10)
"""Seconds by which decoding times may step back, or skip ahead, within one part of the file."""
_REORDERED = 17
"""The most frames by which display order may differ from decoding order, plus one."""
_HELD = 256
"""The most packets without pictures that are kept until the next picture shows to which part they belong."""


class Clock:
    """Packets of a file, with times that continue from part to part where files were joined (cat a.ts b.ts).

    A jump of the pictures' decoding times shows the start of another part; its first picture follows the last one of
    the part before. Sound and subtitles are moved with the pictures around them.

    Args:
        video: the stream of pictures, in a container that only this reader uses.

    Attributes:
        jumps: the number of parts that have begun after the first.
    """

    def __init__(self, video: av.VideoStream) -> None:
        container = cast("av.container.InputContainer", video.container)
        self._container, self._video = container, video
        rate = video.average_rate or Fraction(25)
        # Elsewhere a long pause is a long picture; in broadcasts it is another clock, or the same one after a wrap.
        self._skips = max(_AHEAD, 4 / rate) if container.format.flags & cast(int, Flags.ts_discont.value) else None
        self._step = 1 / rate
        self._shift = self._shift_before = Fraction(0)
        self._now: Fraction | None = None
        self._end = Fraction(-(2**40))
        self._last: dict[int, Fraction] = {}
        self.jumps = 0

    def packets(self, *streams: Any) -> Iterator[av.Packet]:
        """The packets of these streams of the container, with their times changed in place. Raises av.FFmpegError."""
        wanted = {stream.index for stream in streams}
        held: list[av.Packet] = []
        for packet in self._container.demux(*{stream.index: stream for stream in (self._video, *streams)}.values()):
            if packet.stream.index != self._video.index:
                held.append(packet)
                if len(held) < _HELD:
                    continue
            else:
                self._follow(packet)
            yield from filter(self._settle, held)
            held.clear()
            self._shift_before = self._shift
            if packet.stream.index == self._video.index and self._video.index in wanted:
                yield packet
        yield from filter(self._settle, held)

    def _follow(self, packet: av.Packet) -> None:
        """Set a picture's time; a jump of it begins another part."""
        if packet.dts is not None:
            time_base = packet.time_base
            decoded = packet.dts * time_base + self._shift
            shown = decoded if packet.pts is None else packet.pts * time_base + self._shift
            # Decoding times that a container does not hold are guessed, and may step back alone; display times may do
            # so within the decoding order, but not at a key frame.
            least = _BACK if packet.is_keyframe else max(_REORDERED * self._step, _BACK)
            back = self._now is not None and decoded < self._now - _BACK and shown < self._end - least
            ahead = self._now is not None and self._skips is not None and decoded > self._now + self._skips
            if back or ahead:
                # By display times, as guessed decoding times differ between parts.
                self._shift += self._end - shown
                decoded, shown = decoded + self._end - shown, self._end
                self.jumps += 1
            self._now = decoded
            self._step = (packet.duration or 0) * time_base or self._step
            self._end = max(self._end, shown + self._step)
        _move(packet, self._shift)

    def _settle(self, packet: av.Packet) -> bool:
        """Set another packet's time; whether it is kept, as it does not overlap the end of the part before."""
        if packet.dts is None:
            return True
        time = packet.dts * packet.time_base
        if self._now is not None and self._shift_before != self._shift:
            now = self._now
            shift = min((self._shift_before, self._shift), key=lambda shift: abs(time + shift - now))
        else:
            shift = self._shift
        _move(packet, shift)
        last = self._last.get(packet.stream.index)
        if self.jumps and last is not None and time + shift < last + (packet.duration or 0) * packet.time_base / 2:
            return False
        self._last[packet.stream.index] = time + shift
        return True


def _move(packet: av.Packet, shift: Fraction) -> None:
    if not shift:
        return
    ticks = round(shift / packet.time_base)
    packet.pts = None if packet.pts is None else packet.pts + ticks
    packet.dts = None if packet.dts is None else packet.dts + ticks
