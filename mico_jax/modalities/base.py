"""The Modality record: everything about one modality in one place.

Data workers load this package, so nothing here may import or call JAX. Device
code calls `to_pixels` with `xp=jax.numpy`, host code with `xp=numpy`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from mico_jax.config import AudioConfig, InputConfig


class DecodeError(ValueError):
  """A sample that cannot be used: unreadable, truncated, of a wrong kind.

  The message is one line and names what was given and what was expected.
  """


@dataclass(frozen=True)
class ArraySpec:
  """What of a modality travels to the device, per sample."""

  dims: tuple[str, ...]  # e.g. ("T", "Y", "X", "C"); "L" for text
  dtype: str  # "uint8" | "float16" | "int32"
  unit: str  # e.g. "sRGB, 0..255", "metre", "log mel energy", "token id"
  value_range: tuple[float, float]


@dataclass(frozen=True)
class Geometry:
  """Sizes that decoding and transforms need, resolved from the config."""

  frames: int  # T
  size: int  # Y = X: the encoder's image_size
  audio: AudioConfig = AudioConfig()
  depth_unit: str = ""  # of the source: "metre" | "millimetre" | "relative"
  max_pixels: int = 120_000_000


@dataclass(frozen=True)
class Mode:
  """A named preprocessing.

  `host` maps a decoded sample to the array that travels; it draws only from
  `rng` (None: deterministic). Aligned modalities of a sample get generators
  with equal state and so share the draw. `to_pixels` runs inside the step and
  maps the travelling array [*B, ...] to float32 pixels [*B, Y, X, 3].
  `recipe` says the same as plain data, for code that runs without this package
  (exported models); empty where no such words exist.
  """

  name: str
  host: Callable[[Any, Geometry, np.random.Generator | None], np.ndarray]
  to_pixels: Callable[..., Any]  # (array, *, geometry, xp) -> pixels
  eval_mode: str = ""  # deterministic partner; "": itself
  description: str = ""
  dtype: str = ""  # of the array that travels; "": as `Modality.spec` says
  recipe: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Modality:
  """One modality. The table is `mico_jax.modalities.MODALITIES`."""

  key: str
  letter: str
  kind: Literal["knowledge", "interface"]
  spec: ArraySpec
  # File bytes or raw array(s) of one sample -> decoded sample for `Mode.host`.
  # Raises DecodeError.
  decode: Callable[[Any, Geometry], Any]
  modes: Mapping[str, Mode]
  default_mode: str
  # A deterministic decoded sample for self-checks and fake batches.
  example: Callable[[Geometry, int], Any]
  embedding: str = "patch"  # "patch", "text", or a class of layers.embed
  context_type: str = ""  # names frame table, type vector and projection
  head_letter: str = ""  # letter of its contrastive head; "": `letter`
  pooling: str = "cls"  # key of mico_jax.layers.pool.POOLINGS
  extensions: tuple[str, ...] = ()  # file types that imply this modality
  default_input: InputConfig = InputConfig()
  notes: str = ""
  extra: Mapping[str, Any] = field(default_factory=dict)

  def mode(self, name: str = "", *, train: bool = True) -> Mode:
    """The preprocessing called `name` ("": default), or its eval partner.

    Raises:
      ValueError: listing the known modes.
    """
    name = name or self.default_mode
    if name not in self.modes:
      raise ValueError(
        f"{self.key} has no preprocessing mode {name!r}; known: "
        f"{', '.join(self.modes)}."
      )
    mode = self.modes[name]
    if train or not mode.eval_mode:
      return mode
    return self.modes[mode.eval_mode]
