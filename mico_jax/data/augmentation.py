"""Augmentation of the training samples of a task (`tasks.*.augment`).

What a transform draws is keyed by (seed, epoch, sample, its name); all
modalities of a sample share it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from mico_jax.config import AudioConfig, Config, ConfigError, InputConfig
from mico_jax.data import language
from mico_jax.data.faults import guarded
from mico_jax.data.order import fold, generator
from mico_jax.data.records import Record
from mico_jax.data.targets import targets_of
from mico_jax.modalities import (
  MODALITIES,
  DecodeError,
  Geometry,
  Mode,
  letters,
  preprocessing,
)
from mico_jax.modalities.augmentation import COLOR, LOG_MEL, MIX, VIEW
from mico_jax.modalities.transforms import (
  Augmentation,
  Transform,
  make_transforms,
)

# What is mixed: the modality that has such a stage.
MIXED = next(
  key
  for key, modality in MODALITIES.items()
  if any(MIX in mode.stages for mode in modality.modes.values())
)
_QUESTIONS = "question_answering"  # whose answers would not fit a mixture


@dataclass(frozen=True)
class Partner:
  """What is mixed into a sample.

  Attributes:
    waveform: of the other sound.
    texts: group -> the text of the other sample.
  """

  waveform: Float[np.ndarray, " N"]
  texts: Mapping[str, str]


class TaskAugmentation:
  """The transforms of a task."""

  def __init__(self, config: Config, task: str):
    """Makes the transforms.

    Raises:
      ConfigError: for an unknown one, or a wrong option.
    """
    self.transforms = make_transforms(
      config.tasks[task].augment, f"tasks.{task}.augment"
    )
    mixing = [t for t in self.transforms if t.stage == MIX]
    self._probability = getattr(mixing[0], "probability", 1.0) if mixing else 0

  def draw(
    self, rng_key: tuple[Any, ...], partner: Partner | None = None
  ) -> Augmentation | None:
    """The augmentation of a sample; None: the task has no transforms.

    Args:
      rng_key: of the sample.
      partner: what is mixed in; None: nothing.
    """
    if not self.transforms:
      return None
    return Augmentation(
      self.transforms,
      functools.partial(generator, *rng_key, "augment"),
      None if partner is None else partner.waveform,
    )

  def partner(
    self, rng_key: tuple[Any, ...], index: int, size: int
  ) -> int | None:
    """Index of the sample whose sound is mixed in; None: none is.

    Args:
      rng_key: of the sample.
      index: of the sample.
      size: samples of its source.
    """
    if not self._probability or size < 2:
      return None
    if generator(*rng_key, "mix").random() >= self._probability:
      return None
    other = fold(*rng_key, "partner") % (size - 1)
    return other + (other >= index)


def read_partner(
  record: Record,
  kinds: Mapping[str, Mapping[str, float]],
  sizes: Geometry,
  rng_key: tuple[Any, ...],
  decoded: Callable[[Callable[[], Any]], Any],
) -> Partner | None:
  """Sound and texts of another sample; None: it cannot be mixed in.

  It is audible, and has a text for every group.

  Args:
    record: the other sample.
    kinds: group -> caption kind -> weight.
    sizes: for decoding its sound.
    rng_key: of the sample into which it is mixed.
    decoded: gives a sound from the cache, or from a function that decodes it.

  Raises:
    TransientError: for storage or memory that stays short.
  """

  def decode() -> Float[np.ndarray, " N"]:
    raw = guarded(lambda: record.read((MIXED,)), MIXED, reads=True)
    if MIXED not in raw:
      raise DecodeError("the sample has no sound.")
    return MODALITIES[MIXED].decode(raw[MIXED], sizes)

  def read() -> Partner | None:
    texts = {
      group: language.choose_text(record, of, generator(*rng_key, "text"))[0]
      for group, of in kinds.items()
    }
    waveform = decoded(decode)
    return Partner(waveform, texts) if np.any(waveform) else None

  try:
    return guarded(read, MIXED)
  except DecodeError:  # named when a batch asks for it
    return None


def check(
  config: Config, name: str, groups: Sequence[str], keys: Sequence[str]
) -> None:
  """Checks the transforms of a task against its modalities and their modes.

  Args:
    config: of the run.
    name: of the task.
    groups: of the task.
    keys: its modalities.

  Raises:
    ConfigError: for an unknown transform, a wrong option, a transform that
      changes nothing or would part aligned pictures.
  """
  where = f"tasks.{name}.augment"
  transforms = make_transforms(config.tasks[name].augment, where)
  modes = {
    key: preprocessing.mode_of(config, key, train=True)
    for key in keys
    if MODALITIES[key].kind == "knowledge"
  }
  for transform in transforms:
    _check_stage(f"{where}.{transform.name}", transform, modes)
    stages = [mode.stages for mode in modes.values()]
    problem = transform.problem(stages, config.model.vision.image_size)
    only = transform.groups_only
    asked = bool(config.tasks[name].objectives.get(_QUESTIONS))
    if only and (asked or any(letters(g) != only for g in groups)):
      problem = (
        f"goes with tasks of {only!r} alone and without {_QUESTIONS}; groups "
        f"here: {', '.join(groups)}."
      )
    elif transform.stage == MIX and targets_of(config, config.tasks[name]):
      problem = (
        "mixes the sounds of two samples, but labels are those of one; remove "
        "it, or the objectives that learn labels."
      )
    elif transform.stage == MIX and config.data.text_buckets:
      problem = (
        "joined texts are longer than those that data.text_buckets counted; "
        "set that to ()."
      )
    if problem:
      raise ConfigError(f"{where}.{transform.name}: {problem}")


def _check_stage(
  where: str, transform: Transform, modes: Mapping[str, Mode]
) -> None:
  """Checks that modes call a transform's stage, where any of theirs does."""
  able = {
    key: [m.name for m in MODALITIES[key].modes.values() if _in(transform, m)]
    for key in modes
  }
  if not any(able.values()):
    known = [
      key
      for key, modality in MODALITIES.items()
      if any(_in(transform, mode) for mode in modality.modes.values())
    ]
    raise ConfigError(
      f"{where} changes {', '.join(known)}, but the task reads "
      f"{', '.join(modes) or 'none'}; remove it."
    )
  for key, mode in modes.items():
    placed = transform.stage == VIEW and "place" in mode.recipe
    if not _in(transform, mode) and (able[key] or placed):
      raise ConfigError(
        f"{where}: data.inputs.{key}.mode={mode.name!r} does not take it (it "
        f"draws itself, or has other values); modes that do: "
        f"{', '.join(able[key]) or 'none'}."
      )


def _in(transform: Transform, mode: Mode) -> bool:
  return transform.stage in mode.stages


def check_draft(key: str, options: InputConfig) -> None:
  """Checks that a modality whose files may be decoded smaller has colours.

  Raises:
    ConfigError: otherwise: values of maps are not mixed.
  """
  stages = {s for mode in MODALITIES[key].modes.values() for s in mode.stages}
  if options.draft and COLOR not in stages:
    raise ConfigError(
      f"data.inputs.{key}.draft={options.draft:g}: {key} is no picture of "
      "colours; leave it at 0."
    )
  if 0 < options.draft < 1:
    raise ConfigError(
      f"data.inputs.{key}.draft={options.draft:g}: pictures would be smaller "
      "than image_size; expected 0, or 1 and more."
    )


def check_sampling(key: str, options: InputConfig) -> None:
  """Checks that a modality has what its options choose, and reads them all.

  Raises:
    ConfigError: for frames of words, sampling of what has no frames, and
      numbers of another way of sampling.
  """
  default = InputConfig()
  if MODALITIES[key].embedding == "text":
    modes = {"mode": options.mode, "eval_mode": options.eval_mode}
    if options != dataclasses.replace(default, **modes):
      raise ConfigError(
        f"data.inputs.{key}: words have no frames and no dropout; remove it. "
        "Their length is data.tokenizer.max_length."
      )
    return
  for name, way in (("fps", "fps"), ("stride", "dense")):
    value = getattr(options, name)
    if value != getattr(default, name) and options.sampling != way:
      raise ConfigError(
        f"data.inputs.{key}.{name}={value} has no effect with sampling="
        f"{options.sampling!r}; set sampling={way!r}, or remove it."
      )
  if options.sampling == "chunk":
    return
  modes = MODALITIES[key].modes.values()
  stages = {stage for mode in modes for stage in mode.stages}
  # Slices have a length in rows, not in seconds.
  wanted = {VIEW} if options.sampling == "fps" else {VIEW, LOG_MEL}
  if not stages & wanted:
    raise ConfigError(
      f"data.inputs.{key}.sampling={options.sampling!r}: {key} has no such "
      "frames to choose from; leave it at 'chunk'."
    )


def check_windows(config: AudioConfig) -> None:
  """Checks that windows of sound and the hop between them hold samples.

  Raises:
    ConfigError: otherwise; their energies would be no numbers.
  """
  for name, least in (("window_ms", 2), ("hop_ms", 1)):
    samples = round(config.sample_rate * getattr(config, name) / 1000)
    if samples < least:
      raise ConfigError(
        f"data.audio.{name}={getattr(config, name)} is {samples} samples at "
        f"{config.sample_rate} Hz, expected at least {least}; raise it."
      )
