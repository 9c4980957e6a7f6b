"""What a request may cost, and how one that is refused says so."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
  """Limits of a server.

  Attributes:
    upload_bytes: of one upload.
    held_bytes: of all uploads that are in memory.
    seconds: length of a sound or video.
    pixels: of a picture, or of a frame of a video.
    characters: of a text or question.
    hits: of a search.
    waiting: requests that wait or are computed; the next one is refused.
    upload_time: seconds in which an upload must have come.
    decode_time: seconds that decoding an upload may take.
    frame: the largest side of a preview in pixels.
  """

  upload_bytes: int = 32 * 2**20
  held_bytes: int = 256 * 2**20
  seconds: float = 60.0
  pixels: int = 40_000_000
  characters: int = 1000
  hits: int = 50
  waiting: int = 64
  upload_time: float = 60.0
  decode_time: float = 20.0
  frame: int = 320


class Refused(Exception):
  """A request that is not answered.

  Attributes:
    status: of HTTP.
  """

  def __init__(self, status: int, message: str):
    super().__init__(message)
    self.status = status
