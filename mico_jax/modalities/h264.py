"""Choice of the packets of an H.264 video that a few frames depend on.

Nothing before an IDR picture is needed after it, nothing depends on a picture
whose reference number is 0, and nothing depends on what is decoded later. So
the frames that are decoded equal those of the whole video bit by bit.

Source: ITU-T H.264, 7.4.1 (units, reference numbers) and 7.4.1.2.4.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

_IDR = 5  # type of the slices of an IDR picture
_SLICES = frozenset(range(1, 6))
_PLAIN = frozenset((*_SLICES, 6, 9, 12))  # and messages, delimiters, filler


def decode_some(
  stream: Any,
  packets: Iterable[Any],
  moments: Float[np.ndarray, " T"],
  pixels: Callable[[float, Any], tuple[float, np.ndarray]],
) -> list[tuple[float, np.ndarray]] | None:
  """The frames nearest to increasing moments, from as few packets as can be.

  Args:
    stream: of H.264, at whose beginning the container is.
    packets: all of the stream, in order.
    moments: in s.
    pixels: (time in s, frame) -> (time, pixels).

  Returns:
    (time, pixels) of each moment; None if the whole video must be decoded:
    it is damaged, or its times do not name its frames.
  """
  import av

  packets = [p for p in packets if p.size]
  shown = [p.pts for p in packets if not p.is_discard]
  if None in shown or len(set(shown)) < len(shown) or not shown:
    return None
  base = stream.time_base
  shown.sort()
  times = [p * base.numerator / base.denominator for p in shown]
  chosen = [shown[i] for i in _nearest(times, moments)]
  missing = {p: t for p, t in zip(shown, times, strict=True) if p in chosen}
  made: dict[int, tuple[float, np.ndarray]] = {}
  context = stream.codec_context
  needed = _needed(packets, set(chosen), context.extradata)
  try:
    for packet in (*needed, None):
      for frame in context.decode(packet):
        if frame.is_corrupt:
          return None
        if frame.pts in missing:
          made[frame.pts] = pixels(missing.pop(frame.pts), frame)
      if not missing:
        return [made[pts] for pts in chosen]
  except av.FFmpegError:
    pass
  return None


def _nearest(
  times: Sequence[float], moments: Float[np.ndarray, " T"]
) -> list[int]:
  """Index of the time nearest to each moment; of two equally near, the later.

  `times` increase.
  """
  chosen = []
  for moment in moments:
    after = min(int(np.searchsorted(times, moment)), len(times) - 1)
    before = max(after - 1, 0)
    nearer = abs(moment - times[before]) < abs(times[after] - moment)
    chosen.append(before if nearer else after)
  return chosen


def _needed(
  packets: Sequence[Any], wanted: Collection[int], extradata: bytes | None
) -> Iterator[Any]:
  """Yields the packets that frames of the `wanted` times depend on, and these.

  Args:
    packets: in order of decoding.
    wanted: times, in units of the stream.
    extradata: of the stream, which tells how packets are divided into units.
  """
  width = 0  # of the sizes of units; 0: start codes are between them
  if extradata and extradata[0] == 1 and len(extradata) > 4:
    width = (extradata[4] & 3) + 1
  kinds = [_kind(bytes(packet), width) for packet in packets]
  starts = [i for i, (idr, _) in enumerate(kinds) if idr or i == 0]
  for start, end in zip(starts, [*starts[1:], len(packets)], strict=True):
    used = [i for i in range(start, end) if packets[i].pts in wanted]
    for i in range(start, used[-1] + 1 if used else start):
      if packets[i].pts in wanted or not kinds[i][1]:
        yield packets[i]


def _kind(packet: bytes, width: int) -> tuple[bool, bool]:
  """Whether a packet is an IDR picture, and whether nothing depends on it."""
  heads = list(_heads(packet, width))
  types = {head & 31 for head in heads}
  free = bool(types & _SLICES) and types <= _PLAIN
  slices = [head for head in heads if head & 31 in _SLICES]
  return _IDR in types, free and not any(head & 96 for head in slices)


def _heads(packet: bytes, width: int) -> Iterator[int]:
  """First bytes of the units of a packet; then 0 (unknown) if it is broken."""
  if not width:
    at = packet.find(b"\0\0\1")
    while 0 <= at < len(packet) - 3:
      yield packet[at + 3]
      at = packet.find(b"\0\0\1", at + 3)
    return
  at = 0
  while at < len(packet):
    size = int.from_bytes(packet[at : at + width], "big")
    at += width
    if size == 0 or at + size > len(packet):
      yield 0
      return
    yield packet[at]
    at += size
