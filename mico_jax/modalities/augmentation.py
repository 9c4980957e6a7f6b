"""Augmentation of one training sample: what its transforms have drawn.

A transform belongs to a stage, which says what it maps to what. Modes call the
stages that they name in `Mode.stages`:

- "view": which part of a picture is seen, how it is turned and what is blank
  (`View`). Drawn once for all aligned pictures of a sample.
- "color": uint8 frames [T, Y, X, 3] of colours, the same draw for all frames.
- "mix": (own sound, another sample's sound) to one sound.
- "sound": a mono waveform.
- "log_mel": slices of log-mel energies [T, frames, bins]; 0 is the mean.

Every transform draws from a generator of its own name, so that one more or less
changes no other's draws. The table of transforms is
`mico_jax.modalities.transforms.TRANSFORMS`; this file is copied to exported
folders with the modes, which call nothing of it there.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Shaped

VIEW, COLOR, MIX, SOUND, LOG_MEL = "view", "color", "mix", "sound", "log_mel"
ROWS, COLS = 1, 2  # axes of frames [T, Y, X, ...]


@dataclasses.dataclass(frozen=True)
class View:
  """The part of a picture that is seen.

  Attributes:
    rows: of the picture for which it was drawn.
    cols: of that picture.
    box: top, left, height and width in its pixels; (): all, as the mode cuts.
    flips: axes that are mirrored, `ROWS` or `COLS`.
    blanks: top, left, height and width of what is hidden, as shares of the
      result.
    interpolation: of colours: "bilinear", "bicubic" (both antialiased), or "":
      the mode's.
  """

  rows: int
  cols: int
  box: tuple[int, ...] = ()
  flips: tuple[int, ...] = ()
  blanks: tuple[tuple[float, ...], ...] = ()
  interpolation: str = ""

  def cut(
    self, frames: Shaped[np.ndarray, "T Y X *C"]
  ) -> Shaped[np.ndarray, "T y x *C"]:
    """The box of frames, which may have another number of pixels."""
    rows, cols = frames.shape[1:3]
    top, left, height, width = self.box
    if (rows, cols) != (self.rows, self.cols):
      down, across = rows / self.rows, cols / self.cols
      height = min(rows, max(1, round(height * down)))
      width = min(cols, max(1, round(width * across)))
      top = min(rows - height, round(top * down))
      left = min(cols - width, round(left * across))
    return frames[:, top : top + height, left : left + width]

  def hide(
    self, frames: Shaped[np.ndarray, "T Y X *C"], value: Any
  ) -> Shaped[np.ndarray, "T Y X *C"]:
    """Frames of the result with `value` where nothing is to be seen."""
    if not self.blanks:
      return frames
    frames = frames.copy()
    rows, cols = frames.shape[1:3]
    for top, left, height, width in self.blanks:
      y = slice(round(top * rows), round((top + height) * rows))
      x = slice(round(left * cols), round((left + width) * cols))
      frames[:, y, x] = value
    return frames


class Transform(abc.ABC):
  """A transform; the first paragraph of its docstring is its help.

  Subclasses are frozen dataclasses; their fields are its options, set by
  `tasks.NAME.augment={"<name>": {"<field>": value}}`.

  Attributes:
    name: key in the table.
    stage: see above.
    groups_only: the only letters that groups of its task may have beside "t";
      "": any.
  """

  name: ClassVar[str]
  stage: ClassVar[str]
  groups_only: ClassVar[str] = ""

  @abc.abstractmethod
  def __call__(self, value: Any, rng: np.random.Generator) -> Any:
    """The changed value of its stage, drawn from `rng`."""

  def problem(self, stages: Sequence[tuple[str, ...]], size: int) -> str:
    """What is wrong with its options; "": nothing.

    Args:
      stages: of the modes of the modalities of a task.
      size: rows and columns of the encoder's input.
    """
    del stages, size
    return ""

  @classmethod
  def summary(cls) -> str:
    """The first paragraph of its docstring in one line."""
    return " ".join((cls.__doc__ or "").strip().partition("\n\n")[0].split())


class Augmentation:
  """The transforms of a task, and their draws for one sample."""

  def __init__(
    self,
    transforms: Sequence[Transform],
    generator: Callable[[str], np.random.Generator],
    other: Float[np.ndarray, " N"] | None = None,
  ):
    """Draws nothing yet.

    Args:
      transforms: of the task, in order.
      generator: name of a transform -> generator in its first state.
      other: sound of another sample, to be mixed in; None: none is.
    """
    self._transforms, self._generator = tuple(transforms), generator
    self._other = other
    self._view: View | None = None

  def view(self, frames: Shaped[np.ndarray, "T Y X *C"]) -> View:
    """What is seen of aligned pictures: drawn by the first, kept for others."""
    if self._view is None:
      self._view = self._apply(VIEW, View(*frames.shape[1:3]))
    assert self._view is not None
    return self._view

  def color(
    self, frames: Shaped[np.ndarray, "T Y X 3"]
  ) -> Shaped[np.ndarray, "T Y X 3"]:
    """Frames in other colours."""
    return self._apply(COLOR, frames)

  def sound(self, waveform: Float[np.ndarray, " N"]) -> Float[np.ndarray, " M"]:
    """A waveform, mixed with the other one and changed."""
    mixing = any(t.stage == MIX for t in self._transforms)
    if self._other is not None and mixing:
      waveform = self._apply(MIX, (waveform, self._other))
    return self._apply(SOUND, waveform)

  def log_mel(
    self, slices: Float[np.ndarray, "T frames bins"]
  ) -> Float[np.ndarray, "T frames bins"]:
    """Slices with masks."""
    return self._apply(LOG_MEL, slices)

  def _apply(self, stage: str, value: Any) -> Any:
    for transform in self._transforms:
      if transform.stage == stage:
        value = transform(value, self._generator(transform.name))
    return value
