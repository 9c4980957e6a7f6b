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

WHOLE = "omni"  # kind of the captions of a whole sample


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
  unit: str = ""  # that it takes, of a modality whose values have `units`


@dataclass(frozen=True)
class Caption:
  """The texts that tell what one modality shows.

  Attributes:
    kind: what configs and records call them.
    fields: of a record that hold them, beside "<kind>_caption".
    fallback: kinds to take instead, in turn, where a record has none.
    general: whether one may stand for a caption of the whole sample.
  """

  kind: str
  fields: tuple[str, ...] = ()
  fallback: tuple[str, ...] = ("omni",)
  general: bool = False


@dataclass(frozen=True)
class Alias:
  """Another modality whose head and context serve this one, by config.

  Attributes:
    option: field of config.model that says so when it is `key`; by default it
      is this modality's own key.
    key: of the other modality.
  """

  option: str
  key: str


@dataclass(frozen=True)
class CustomEmbedding:
  """How a modality that is no grid of pixels becomes tokens.

  Attributes:
    module: "package.module:Class" of a Linen module, `cls(width, dtype,
      **options)(frames [B *frame]) -> [B L D]`, with positions of its own.
    torch: "package.module:Class" of the same in PyTorch, `cls(width, frame,
      **options)`, with parameters as `interop.names.torch_modules` names them.
      An exported folder takes that file along, so it must import PyTorch and
      the standard library only. "": no such export.
    frame: shape of one frame, as `Mode.to_pixels` gives it: finite values, also
      in padding.
    tokens: of a frame, L, padding included.
    options: of both classes.
    valid: where tokens may be padding: which ones of frames are not,
      `valid(frames [B *frame], xp=...) -> bool [B L]`. The others, and frames
      without any, count for nothing; a sample without any is refused. The
      PyTorch class has the method `valid(frames)`.
  """

  module: str
  frame: tuple[int, ...]
  tokens: int
  torch: str = ""
  options: Mapping[str, Any] = field(default_factory=dict)
  valid: Callable[..., Any] | None = None

  def valid_tokens(self, frames: Any, *, xp: Any) -> Any | None:
    """Which tokens of frames [B *frame] are no padding [B L]; None: all.

    Raises:
      ValueError: if `valid` gives another shape or dtype.
    """
    if self.valid is None:
      return None
    mask = self.valid(frames, xp=xp)
    if mask.shape != (frames.shape[0], self.tokens) or mask.dtype != bool:
      raise ValueError(
        f"valid gives {mask.dtype} {list(mask.shape)} for {frames.shape[0]} "
        f"frames; expected bool {[frames.shape[0], self.tokens]}."
      )
    return mask


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
  # A deterministic decoded sample for self-checks and fake batches, which
  # `decode` takes as well.
  example: Callable[[Geometry, int], Any]
  embedding: Literal["patch", "text"] | CustomEmbedding = "patch"
  context_type: str = ""  # names frame table, type vector and projection
  # Letter of a modality whose contrastive head it shares and that it may stand
  # for, as an image for a video; "": it has a head of its own.
  head_letter: str = ""
  alias: Alias | None = None
  caption: Caption | None = None  # None: the sample's, kind "omni"
  # Kinds of text that one of the interface holds: the longest of them in
  # config.data.tokenizer.max_length bounds it.
  text_kinds: tuple[str, ...] = ()
  pooling: str = "cls"  # key of mico_jax.layers.pool.POOLINGS
  extensions: tuple[str, ...] = ()  # file types that imply this modality
  default_input: InputConfig = InputConfig()
  units: tuple[str, ...] = ()  # one of which a source must say for its values
  rated: bool = False  # whether raw arrays come as (samples, rate)
  # A frame or slice as a sheet draws it; None: as it travels.
  draw: Callable[[np.ndarray], np.ndarray] | None = None
  notes: str = ""

  @property
  def head(self) -> str:
    """Letter of its contrastive head."""
    return self.head_letter or self.letter

  @property
  def caption_kind(self) -> str:
    """The kind of caption that tells what it shows."""
    return self.caption.kind if self.caption else WHOLE

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
