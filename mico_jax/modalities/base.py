"""Record of a modality (`Modality`), which holds all that is specific to it.

Data workers load this package, so it does not import JAX. Device code calls
`to_pixels` with `xp=jax.numpy`, host code with `xp=numpy`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from mico_jax.config import AudioConfig, InputConfig
from mico_jax.modalities.columns import Column

WHOLE = "omni"  # caption kind of a whole sample


class DecodeError(ValueError):
  """A sample that cannot be used: unreadable, truncated or of a wrong kind.

  The message is one line and names the actual and the expected value.
  """


@dataclass(frozen=True)
class ArraySpec:
  """The array of a sample that is sent to the device."""

  dims: tuple[str, ...]  # e.g. ("T", "Y", "X", "C"); "L" for text
  dtype: str  # "uint8" | "float16" | "int32"
  unit: str  # e.g. "sRGB, 0..255", "metre", "log mel energy", "token id"
  value_range: tuple[float, float]


@dataclass(frozen=True)
class Stated:
  """What is stated of a sample by its source, by a file's name or by a user.

  Attributes:
    unit: of the values, one of `Modality.units`; "": not stated.
    rate: samples of a series per second, in Hz; 0: not stated.
    channels: names of the channels in their order; (): not stated.
  """

  unit: str = ""
  rate: float = 0.0
  channels: tuple[str, ...] = ()


UNSTATED = Stated()


@dataclass(frozen=True)
class Geometry:
  """Sizes that decoding and transforms need, resolved from the config."""

  frames: int  # T
  size: int  # Y = X: the encoder's image_size
  audio: AudioConfig = AudioConfig()
  unit: str = ""  # that is stated of the sample, one of `Modality.units`
  max_pixels: int = 120_000_000
  sampling: str = "chunk"  # key of `sampling.SAMPLINGS`
  fps: float = 1.0  # frames per second that sampling "fps" takes
  stride: int = 1  # frames from one to the next that sampling "dense" takes
  frame_rate: float = 0.0  # of frames without times, per second; 0: unknown
  draft: float = (
    0.0  # least shorter side of a reduced JPEG, in `size`; 0: whole
  )
  rate: float = 0.0  # that is stated of a series, in Hz; 0: none
  channels: tuple[str, ...] = ()  # that are stated of it, in order
  columns: tuple[Column, ...] = ()  # of tables, `data.columns`


@dataclass(frozen=True)
class Mode:
  """A named preprocessing, in two parts: on the host and on the device.

  Attributes:
    name: of the mode.
    host: maps (decoded sample, geometry, rng) to the array that is sent to the
      device, with random numbers from `rng` only (None: deterministic). Aligned
      modalities of a sample get generators of equal state, and so the same
      draws. With `stages` it takes an `augmentation.Augmentation` or None as
      `augment`, too.
    to_pixels: maps that array [*B, ...] to float32 pixels [*B, Y, X, 3], as a
      function of (array, *, geometry, xp), inside the step.
    eval_mode: deterministic mode for evaluation; "": itself.
    description: one line for tables.
    dtype: of the array; "": that of `Modality.spec`.
    shape: of the array, by the geometry; None: that of `Modality.spec`.
    value_range: of the array; None: that of `Modality.spec`.
    recipe: the preprocessing as plain data, for exported models, which run
      without this package; empty: it cannot be exported.
    unit: that it expects, for a modality whose values have `units`.
    stages: of the transforms that may augment it (`augmentation`); a mode that
      draws by itself leaves out those that would draw again.
    whole: whether values are relative to those of the whole sample, so that the
      beginning of a series tells of its end.
  """

  name: str
  host: Callable[..., np.ndarray]
  to_pixels: Callable[..., Any]
  eval_mode: str = ""
  description: str = ""
  dtype: str = ""
  recipe: Mapping[str, Any] = field(default_factory=dict)
  unit: str = ""
  stages: tuple[str, ...] = ()
  shape: Callable[[Geometry], tuple[int, ...]] | None = None
  value_range: tuple[float, float] | None = None
  whole: bool = False


@dataclass(frozen=True)
class Axis:
  """An axis of a drawn frame.

  Attributes:
    unit: of the labels.
    ticks: places, from 0 at the left or lower edge to 1, and their labels.
  """

  unit: str
  ticks: tuple[tuple[float, str], ...]


@dataclass(frozen=True)
class Scale:
  """What the axes and colours of a drawn frame mean.

  Attributes:
    right: axis along the columns; None: as in a photo.
    up: axis along the rows, upwards.
    values: unit of the values that colours stand for; "": none, or not known.
  """

  right: Axis | None = None
  up: Axis | None = None
  values: str = ""


@dataclass(frozen=True)
class Caption:
  """Captions that describe one modality.

  Attributes:
    kind: name in configs and records.
    fields: record fields that may hold them, besides "<kind>_caption".
    fallback: kinds that replace a missing one; the first available counts.
    general: whether it can replace a caption of the whole sample.
  """

  kind: str
  fields: tuple[str, ...] = ()
  fallback: tuple[str, ...] = ("omni",)
  general: bool = False


@dataclass(frozen=True)
class Alias:
  """Another modality whose head and context can serve this one.

  Attributes:
    option: field of config.model that turns the alias on if it equals `key`; by
      default it is the modality itself.
    key: of the other modality.
  """

  option: str
  key: str


@dataclass(frozen=True)
class CustomEmbedding:
  """Embedding of a modality that is no grid of pixels.

  Attributes:
    module: "package.module:Class" of a Linen module, `cls(width, dtype,
      **options)(frames [B *frame]) -> [B L D]`, which adds its positions.
    torch: "package.module:Class" of the same in PyTorch, `cls(width, frame,
      **options)`, with parameters as `interop.names.torch_modules` names them.
      Its file is copied to exported folders, so it may import PyTorch and the
      standard library only. "": it cannot be exported.
    frame: shape of a frame returned by `Mode.to_pixels`; values must be finite,
      also in padding.
    tokens: of a frame, L, padding included.
    options: of both classes.
    valid: `valid(frames [B *frame], xp=...) -> bool [B L]`, False for padding;
      None: no token is padding. Padding takes no part in anything, and a sample
      of padding only is refused. The PyTorch class has a method
      `valid(frames)`.
  """

  module: str
  frame: tuple[int, ...]
  tokens: int
  torch: str = ""
  options: Mapping[str, Any] = field(default_factory=dict)
  valid: Callable[..., Any] | None = None

  def valid_tokens(self, frames: Any, *, xp: Any) -> Any | None:
    """Mask of the tokens that are no padding, [B L]; None: no padding.

    Args:
      frames: [B *frame].
      xp: `numpy` or `jax.numpy`.

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
  """A modality; the table is `mico_jax.modalities.MODALITIES`.

  Attributes:
    key: name in the table and in configs.
    letter: in groups, such as "v" in "tva".
    kind: "knowledge": encoded by the vision encoder; "interface": a text.
    spec: of the array that is sent to the device.
    decode: (file bytes or raw array(s) of a sample, geometry) -> decoded sample
      for `Mode.host`; raises DecodeError.
    modes: name -> preprocessing.
    default_mode: one of `modes`, which a stored config means that names none.
    native_modes: unit of the sources -> mode that a new run takes whose config
      names none; without an entry, `default_mode`.
    example: (geometry, seed) -> a deterministic decoded sample, which `decode`
      accepts as well.
    embedding: how it becomes tokens.
    context_type: names its frame table, type vector and projection.
    head_letter: letter of a modality whose contrastive head it shares and which
      it can serve for, as an image serves for a video; "": it has its own head.
    alias: another modality that can serve it, by config.
    caption: that describes it; None: that of the whole sample.
    text_kinds: kinds of text of an interface; the longest of them in
      config.data.tokenizer.max_length is its length.
    pooling: key of mico_jax.layers.pool.POOLINGS.
    extensions: file types that imply this modality.
    default_input: options unless the config has `data.inputs` for it.
    units: of its values, one of which each source must name; (): none.
    unit_names: other names of the units, in names of files ("depth:mm:FILE").
    unit_field: field of a source's config that may name the unit, too; "":
      `units` alone does.
    rate: in Hz, to which its series are resampled, so that each source must
      state theirs; 0: they are taken as they are, or are none.
    channels: names of the channels of a series, in the order of its arrays.
    named: whether sources may name the channels of their series.
    needs_channels: units of which sources must name the channels, and all
      alike; a model reads those only.
    inline: units whose values stand themselves where others name a file.
    objects: whether a JSON object in a record stands for a file that holds it.
    in_file: whether its files may state unit, rate and channels themselves, so
      that a source need not.
    rated: whether raw arrays come as (samples, sample rate).
    check_columns: checks the columns that `data.columns` states of its tables,
      and raises ValueError; None: it has no tables.
    draw: maps a frame to what a sheet draws; None: as it is.
    scale: (geometry, mode) -> the axes and the unit of a drawn frame; None: it
      has none, or frames have different ones.
    play: maps (decoded sample, geometry) to what a page plays, mono samples in
      units of full scale and their rate in Hz; None: it makes no sound.
    notes: for tables.
  """

  key: str
  letter: str
  kind: Literal["knowledge", "interface"]
  spec: ArraySpec
  decode: Callable[[Any, Geometry], Any]
  modes: Mapping[str, Mode]
  default_mode: str
  example: Callable[[Geometry, int], Any]
  embedding: Literal["patch", "text"] | CustomEmbedding = "patch"
  context_type: str = ""
  head_letter: str = ""
  alias: Alias | None = None
  caption: Caption | None = None
  text_kinds: tuple[str, ...] = ()
  pooling: str = "cls"
  extensions: tuple[str, ...] = ()
  default_input: InputConfig = InputConfig()
  units: tuple[str, ...] = ()
  unit_names: Mapping[str, str] = field(default_factory=dict)
  unit_field: str = ""
  rate: float = 0.0
  channels: tuple[str, ...] = ()
  named: bool = False
  needs_channels: tuple[str, ...] = ()
  inline: tuple[str, ...] = ()
  objects: bool = False
  in_file: bool = False
  native_modes: Mapping[str, str] = field(default_factory=dict)
  rated: bool = False
  check_columns: Callable[[tuple[Column, ...]], None] | None = None
  draw: Callable[[np.ndarray], np.ndarray] | None = None
  scale: Callable[[Geometry, Mode], Scale] | None = None
  play: Callable[[Any, Geometry], tuple[np.ndarray, int]] | None = None
  notes: str = ""

  @property
  def head(self) -> str:
    """Letter of the contrastive head."""
    return self.head_letter or self.letter

  @property
  def stated(self) -> bool:
    """Whether there is anything to state of a sample: unit, rate, channels."""
    return bool(self.units or self.rate or self.named)

  def unit_of(self, name: str) -> str:
    """The unit of one of its names; "": there is none of that name."""
    return name if name in self.units else self.unit_names.get(name, "")

  @property
  def statements(self) -> tuple[str, ...]:
    """How units are written in names of files, the shortest of each."""
    names = {unit: unit for unit in self.units}
    for name, unit in self.unit_names.items():
      names[unit] = min(names[unit], name, key=len)
    rate = "@RATE" if self.rate else ""
    return tuple(f"{name}{rate}" for name in names.values())

  @property
  def caption_kind(self) -> str:
    """The kind of the captions that describe it."""
    return self.caption.kind if self.caption else WHOLE

  def mode(self, name: str = "", *, train: bool = True) -> Mode:
    """A preprocessing.

    Args:
      name: of the mode; "": the default one.
      train: False: its mode for evaluation.

    Raises:
      ValueError: for an unknown mode, listing the known ones.
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
