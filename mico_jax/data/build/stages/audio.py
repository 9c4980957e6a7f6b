"""Sound: of a clip, mono, at one rate."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Iterable
from fractions import Fraction
from typing import Annotated, Any, ClassVar

import numpy as np
import soundfile
from jaxtyping import Float

from mico_jax.config import ConfigError
from mico_jax.config.fields import Choice, Range
from mico_jax.data.build.rows import Row
from mico_jax.data.build.stages.base import Stage, span_of
from mico_jax.modalities.audio import AUDIO

_OPUS_RATES = (8000, 12000, 16000, 24000, 48000)
_OPUS_FRAME = 960  # samples of 48 kHz


@dataclasses.dataclass(frozen=True)
class AudioOptions:
  """How sound is stored."""

  rate: Annotated[int, Range(1000, 192_000, "Hz")] = 16000
  # flac: 16 bits, exact to the sample; opus: a tenth of the bytes
  format: Annotated[str, Choice("flac", "opus")] = "flac"
  # of several channels: "first" | "mean"
  channel: Annotated[str, Choice("first", "mean")] = "mean"
  # of Opus
  kbps: Annotated[int, Range(6, 256, "kbit/s")] = 32


class Audio(Stage):
  """Stores the sound of clips as FLAC or Opus, mono; exact to the sample."""

  name: ClassVar[str] = AUDIO.key
  Options: ClassVar[type] = AudioOptions
  makes: ClassVar[tuple[str, ...]] = (AUDIO.key,)

  def check(self) -> None:
    """See `Stage`."""
    if self.options.format == "opus" and self.options.rate not in _OPUS_RATES:
      raise ConfigError(
        f"{self.name}.rate={self.options.rate}: Opus takes "
        f"{', '.join(map(str, _OPUS_RATES))}."
      )

  def one(self, row: Row) -> Iterable[Row]:
    """See `Stage`; a file without sound is no failure."""
    start, end = span_of(row)
    assert row.raw is not None  # or `span_of` had raised
    if not row.raw.has_sound:
      row.lacks[AUDIO.key] = "the file has no sound"
      return [row]
    samples = row.raw.sound_between(
      start, end, self.options.rate, self.options.channel
    )
    if self.options.format == "flac":
      row.media[AUDIO.key] = flac(samples, self.options.rate)
    else:
      row.media[AUDIO.key] = opus(samples, self.options.rate, self.options.kbps)
    return [row]


def _integers(samples: Float[np.ndarray, " N"]) -> np.ndarray:
  """Samples as 16 bits, what is beyond full scale clipped."""
  return np.clip(np.rint(samples * 32768.0), -32768, 32767).astype(np.int16)


def flac(samples: Float[np.ndarray, " N"], rate: int) -> bytes:
  """A FLAC file of 16 bits; equal samples give equal bytes."""
  out = io.BytesIO()
  soundfile.write(
    out, _integers(samples), rate, format="FLAC", subtype="PCM_16"
  )
  return out.getvalue()


def opus(samples: Float[np.ndarray, " N"], rate: int, kbps: int) -> bytes:
  """An Ogg Opus file; equal samples give equal bytes."""
  import av

  out, options = io.BytesIO(), {"fflags": "+bitexact"}
  with av.open(out, "w", format="ogg", options=options) as container:
    add: Any = container.add_stream
    stream = add("libopus", rate=rate, layout="mono")
    stream.bit_rate = 1000 * kbps
    block = _OPUS_FRAME * rate // 48000
    integers = _integers(samples)
    for at in range(0, len(integers), block):
      frame = av.AudioFrame.from_ndarray(
        integers[None, at : at + block], format="s16", layout="mono"
      )
      frame.sample_rate, frame.pts = rate, at
      frame.time_base = Fraction(1, rate)
      container.mux(stream.encode(frame))
    container.mux(stream.encode())
  return out.getvalue()
