"""Captions of pictures and of sound, by a captioner given by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, ClassVar

import numpy as np
from jaxtyping import UInt8

from mico_jax.config import ConfigError
from mico_jax.config.fields import Range, Text
from mico_jax.data.build.hf import check_task
from mico_jax.data.build.models import check_model, model
from mico_jax.data.build.rows import Row
from mico_jax.data.build.stages.base import BatchStage, span_of
from mico_jax.data.build.stages.frames import NO_PICTURES, shrunk
from mico_jax.modalities import DecodeError, Geometry, Modality
from mico_jax.modalities.audio import AUDIO
from mico_jax.modalities.image import IMAGE
from mico_jax.modalities.video import VIDEO
from mico_jax.modalities.words import decode_text

_RATE = 16000  # Hz of what a captioner hears


@dataclasses.dataclass(frozen=True)
class CaptionsOptions:
  """Who writes, and how."""

  # mico:FOLDER, hf:NAME, or python:MODULE:FUNCTION
  model: Annotated[str, Text(0, 4096, "name")] = ""
  # hf: what the model is: "image-to-text" (BLIP, GIT), "image-text-to-text"
  # (chats); of sounds "automatic-speech-recognition", "audio-text-to-text"
  task: Annotated[str, Text(0, 64, "name")] = ""
  # hf: such as "cuda:0"; "": its own choice
  device: Annotated[str, Text(0, 64, "name")] = ""
  # 0: as the model has it
  max_new_tokens: Annotated[int, Range(0, 4096, "tokens")] = 0
  # hf: what a model of chats is asked
  prompt: Annotated[str, Text(0, 10_000)] = ""
  # inputs per call
  batch: Annotated[int, Range(1, 4096)] = 8


@dataclasses.dataclass(frozen=True)
class VisionOptions(CaptionsOptions):
  """And what it is shown."""

  # of the shorter side of the picture that is shown to hf: and python:
  size: Annotated[int, Range(16, 4096, "pixels")] = 384


class _Captions(BatchStage):
  """What the captions of one modality share."""

  modality: ClassVar[Modality]
  takes: ClassVar[str]  # of a model hf:
  Options: ClassVar[type] = CaptionsOptions

  def check(self) -> None:
    """See `Stage`."""
    check_model(self.name, self.options.model, ("mico", "hf", "python"))
    if self.options.model.startswith("hf:"):
      check_task(self.name, self.takes, self.options)
    if self.options.model.startswith("mico:") and self.options.prompt:
      raise ConfigError(f"{self.name}.prompt: {self.options.model} takes none.")

  @property
  def field(self) -> str:
    """Of the record."""
    return f"{self.modality.caption_kind}_caption"

  def call(self, items: Sequence[Any]) -> Sequence[Any]:
    """See `BatchStage`."""
    options = dataclasses.asdict(self.options)
    options["modality"] = self.modality.key
    return model(self.options.model, options)(items)

  def store(self, row: Row, result: Any) -> None:
    """Adds the text to those that the row has of this kind."""
    text, old = decode_text(result), row.fields.get(self.field)
    if old is None:
      row.fields[self.field] = text
    else:
      row.fields[self.field] = [*([old] if isinstance(old, str) else old), text]
    row.fields.setdefault("captioners", {})[self.field] = self.options.model


class VisionCaptions(_Captions):
  """Writes a caption of the pictures: mico: sees the clip, others its middle.

  The middle frame is what most captioners of pictures take.
  """

  name: ClassVar[str] = f"{VIDEO.caption_kind}_captions"
  Options: ClassVar[type] = VisionOptions
  modality: ClassVar[Modality] = VIDEO
  takes: ClassVar[str] = "picture"

  def item(self, row: Row) -> Any:
    """See `BatchStage`."""
    if not shows_pictures(row):
      row.lacks.setdefault(VIDEO.key, NO_PICTURES)
      return None
    if not self.options.model.startswith("mico:"):
      return shrunk(middle_frame(row), self.options.size)
    if VIDEO.key in row.media:
      return row.media[VIDEO.key]
    if row.raw is None or row.span is not None:
      raise DecodeError(
        f"{self.name} by mico: sees stored clips; put frames or h264 before."
      )
    return row.raw.data


class AudioCaptions(_Captions):
  """Writes a caption of the sound; hf: and python: hear 16 kHz, mono."""

  name: ClassVar[str] = f"{AUDIO.caption_kind}_captions"
  modality: ClassVar[Modality] = AUDIO
  takes: ClassVar[str] = "sound"

  def item(self, row: Row) -> Any:
    """See `BatchStage`."""
    start, end = span_of(row)
    assert row.raw is not None  # or `span_of` had raised
    if not row.raw.has_sound:
      row.lacks.setdefault(AUDIO.key, "the file has no sound")
      return None
    return row.raw.sound_between(start, end, _RATE, "mean"), _RATE


def shows_pictures(row: Row) -> bool:
  """Whether there is a picture to look at: a raw file's, or a stored image.

  Raises:
    DecodeError: if the raw file cannot be opened, or there is nothing at all.
  """
  if row.raw is None:
    if IMAGE.key in row.media:
      return True
    raise DecodeError("the sample has no raw file and no image to look at.")
  return row.raw.has_pictures


def middle_frame(row: Row) -> UInt8[np.ndarray, "Y X 3"]:
  """What is shown in the middle of a clip; of a row without a file its image.

  Raises:
    DecodeError: if it cannot be read.
  """
  if row.raw is None:
    geometry = Geometry(frames=1, size=8192)
    return IMAGE.decode(row.media[IMAGE.key], geometry).take([0])[0]
  start, end = span_of(row)
  middle = start if np.isinf(end) else (start + end) / 2
  last = end if np.isinf(end) else middle + 1e-3
  return next(row.raw.video.between(middle, last))[1]
