"""Subtitles that lie beside a video, cut to the times of clips."""

from __future__ import annotations

import dataclasses
import html
import os
import pathlib
import re
from collections.abc import Iterable
from typing import Annotated, ClassVar

from mico_jax.config.fields import Text
from mico_jax.data.build.rows import Row
from mico_jax.data.build.stages.base import Stage, span_of
from mico_jax.modalities import DecodeError
from mico_jax.modalities.subtitle import SUBTITLE

FIELD = f"{SUBTITLE.caption_kind}_caption"
_ENDINGS = (".srt", ".vtt")
_TIME = r"(?:(\d+):)?(\d{1,2}):(\d{1,2})[,.](\d{1,3})"
_TIMES = re.compile(rf"\s*{_TIME}\s+-->\s+{_TIME}")
_TAG = re.compile(r"<[^>]*>|\{\\[^}]*\}")
_MAX_BYTES = 50_000_000

Cue = tuple[float, float, str]  # start and end in s, text


@dataclasses.dataclass(frozen=True)
class SubtitlesOptions:
  """Which file."""

  # STEM.LANGUAGE.srt or .vtt; "": STEM.srt or STEM.vtt
  language: Annotated[str, Text(0, 32, "name")] = ""


class Subtitles(Stage):
  """Takes the .srt or .vtt beside a video; each cue goes to one clip.

  A cue belongs to the clip in which its middle lies, so that no text stands in
  two clips. Tags are left out, and lines that the cue before it has shown, as
  automatic subtitles repeat them.
  """

  name: ClassVar[str] = "subtitles"
  Options: ClassVar[type] = SubtitlesOptions

  def one(self, row: Row) -> Iterable[Row]:
    """See `Stage`; no file, or nothing said in a clip, is no failure."""
    start, end = span_of(row)
    raw = row.raw
    assert raw is not None  # or `span_of` had raised
    path = self._path(raw.path)
    if path is None:
      row.lacks[SUBTITLE.key] = "no .srt or .vtt beside the file"
      return [row]
    words = [
      text
      for first, last, text in _read(path)
      if start <= (first + last) / 2 - raw.offset < end
    ]
    if words:
      row.fields[FIELD] = " ".join(words)
    else:
      row.lacks[SUBTITLE.key] = "no subtitle in the time of the clip"
    return [row]

  def _path(self, video: str) -> pathlib.Path | None:
    if not video:
      return None
    stem = pathlib.Path(video).with_suffix("")
    middle = f".{self.options.language}" if self.options.language else ""
    there = [
      path
      for ending in _ENDINGS
      if (path := pathlib.Path(f"{stem}{middle}{ending}")).is_file()
    ]
    if len(there) > 1:
      raise DecodeError(
        f"{there[0].name} and {there[1].name}: nothing says which one counts."
      )
    return there[0] if there else None


def _read(path: pathlib.Path) -> list[Cue]:
  if os.path.getsize(path) > _MAX_BYTES:
    raise DecodeError(f"{path.name}: more than {_MAX_BYTES} bytes.")
  try:
    text = path.read_bytes().decode("utf-8-sig")
  except UnicodeDecodeError as error:
    raise DecodeError(
      f"{path.name}: text is not UTF-8: byte {error.start}; save it as UTF-8."
    ) from error
  try:
    return cues(text)
  except DecodeError as error:
    raise DecodeError(f"{path.name}: {error}") from error


def cues(text: str) -> list[Cue]:
  """The cues of an SRT or WebVTT file, in its order.

  Raises:
    DecodeError: if there is none, or one ends before it begins.
  """
  result: list[Cue] = []
  before: list[str] = []
  lines = text.splitlines()
  places = [i for i, line in enumerate(lines) if _TIMES.match(line)]
  if not places:
    raise DecodeError("no line of times such as 00:00:01,000 --> 00:00:02,000.")
  for place in places:
    match = _TIMES.match(lines[place])
    assert match is not None
    start, end = _seconds(match.groups()[:4]), _seconds(match.groups()[4:])
    if end < start:
      raise DecodeError(f"line {place + 1}: a cue ends before it begins.")
    now = []
    for line in lines[place + 1 :]:
      if not line.strip() or _TIMES.match(line):
        break
      words = " ".join(html.unescape(_TAG.sub("", line)).split())
      if words:
        now.append(words)
    fresh = [line for line in now if line not in before]
    if fresh:
      result.append((start, end, " ".join(fresh)))
    before = now
  return result


def _seconds(parts: tuple[str | None, ...]) -> float:
  hours, minutes, seconds, fraction = (part or "0" for part in parts)
  whole = 3600 * int(hours) + 60 * int(minutes) + int(seconds)
  return whole + int(fraction.ljust(3, "0")) / 1000
