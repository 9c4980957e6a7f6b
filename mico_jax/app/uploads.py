"""Uploads as inputs of the model, checked before they are decoded.

An upload is its bytes, its modality, and what its file does not say of itself
(unit, rate, channels). It has no name: nothing that a user writes becomes a
path.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

from mico_jax.app.limits import Limits, Refused
from mico_jax.inference.prepare import Preparer
from mico_jax.modalities import MODALITIES, UNSTATED, DecodeError, containers
from mico_jax.modalities.arrays import is_npy
from mico_jax.modalities.files import parse_statement
from mico_jax.modalities.items import Item

UPLOAD = "upload"  # what messages call it


@dataclass(frozen=True)
class Question:
  """What a request is about.

  Attributes:
    text: that was typed; "": none.
    key: modality of the upload; "": there is none.
    item: the upload, an input of the model.
  """

  text: str = ""
  key: str = ""
  item: Item | None = None

  def inputs(self) -> dict[str, Any]:
    """As inputs of `OmniModel.embed`.

    Raises:
      Refused: if there is nothing.
    """
    found: dict[str, Any] = {}
    if self.text:
      found["text"] = [Item(self.text, name="text")]
    if self.item is not None:
      found[self.key] = [self.item]
    if not found:
      raise Refused(400, "give a text, or upload a file and name its modality.")
    return found

  def upload(self) -> dict[str, Any]:
    """The upload alone.

    Raises:
      Refused: if there is none.
    """
    if self.item is None:
      raise Refused(400, "upload a file and name its modality.")
    return {self.key: [self.item]}


def question(
  preparer: Preparer,
  limits: Limits,
  *,
  text: str = "",
  data: bytes = b"",
  key: str = "",
  stated: str = "",
) -> Question:
  """A request's text and upload, checked.

  Args:
    preparer: of the model.
    limits: of the server.
    text: that was typed.
    data: the upload.
    key: its modality; needed with an upload.
    stated: of the upload, "UNIT@RATE@CHANNELS" as `mico-jax score` takes it.

  Raises:
    Refused: for more than the limits, or an upload of which something is not
      said.
  """
  checked_text(text, limits)
  if not data and not key:
    return Question(text)
  if not key:
    raise Refused(
      400,
      f"name the modality of the upload: {_known(preparer)} (a text goes as "
      "JSON, of type application/json).",
    )
  if key not in preparer.keys or MODALITIES[key].kind == "interface":
    raise Refused(
      400, f"no uploads of {key[:40]!r}; known: {_known(preparer)}."
    )
  modality, told = MODALITIES[key], UNSTATED
  if stated:
    try:
      parsed = parse_statement(stated, modality)
    except ValueError as error:
      raise Refused(400, str(error)) from error
    if parsed is None:
      known = ", ".join(modality.statements) or "nothing"
      raise Refused(400, f"{key} states {known}; got {stated[:40]!r}.")
    told = parsed
  if modality.units and not (modality.in_file or told.unit):
    known = ", ".join(modality.statements)
    raise Refused(400, f"say the unit of the {key}: stated={known}.")
  check_length(data, limits.seconds)
  item = Item(data, told.unit, UPLOAD, False, told.rate, told.channels)
  return Question(text, key, item)


def checked_text(text: str, limits: Limits) -> str:
  """A text that is not too long.

  Raises:
    Refused: for one that is.
  """
  if len(text) > limits.characters:
    raise Refused(
      413,
      f"a text of {len(text)} characters; at most {limits.characters} are "
      "taken.",
    )
  return text


def _known(preparer: Preparer) -> str:
  return ", ".join(
    key for key in preparer.keys if MODALITIES[key].kind != "interface"
  )


def check_length(data: bytes, most: float) -> None:
  """Refuses sounds and videos that are too long.

  Headers may say what they like: packets are counted, nothing is decoded. What
  is no sound or video, or damaged, is left to the decoders.

  Args:
    data: content of a file of any kind.
    most: seconds.

  Raises:
    Refused: for a longer one.
  """
  seconds = 0.0
  if data and not is_npy(data):
    with contextlib.suppress(DecodeError):
      seconds = _seconds(data, most)
  if seconds > most:
    raise Refused(
      413, f"{seconds:.0f} s of sound or video; at most {most:g} s are taken."
    )


def _seconds(data: bytes, most: float) -> float:
  """Length of a sound or video in s; of one beyond `most`, at least so much."""
  with containers.opened(data, UPLOAD) as container:
    longest = (container.duration or 0) / 1e6
    found = (
      containers.picture_stream(container),
      containers.sound_stream(container),
    )
    streams = [stream for stream in found if stream is not None]
    if longest > most or not streams:
      return longest
    first: float | None = None
    for packet in containers.packets(container, streams):
      if packet.pts is None or packet.time_base is None:
        continue
      begin = float(packet.pts * packet.time_base)
      first = begin if first is None else min(first, begin)
      length = float((packet.duration or 0) * packet.time_base)
      longest = max(longest, begin + length - first)
      if longest > most:
        break
    return longest
