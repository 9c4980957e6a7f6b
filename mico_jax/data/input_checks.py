"""Checks of the modalities, modes and units that a config names."""

from __future__ import annotations

from collections.abc import Sequence

from mico_jax.config import Config, ConfigError
from mico_jax.data import augmentation
from mico_jax.data.samples import geometry, groups_of, keys_of
from mico_jax.data.statements import common_channels
from mico_jax.modalities import MODALITIES, as_columns, preprocessing
from mico_jax.printing import known_names


def check_inputs(config: Config) -> None:
  """Checks the modalities, modes and transforms that a config names.

  Raises:
    ConfigError: for an unknown modality, mode or transform, for modes of a task
      that crop the pictures of one sample differently, and for transforms that
      do not fit them.
  """
  augmentation.check_windows(config.data.audio)
  _check_columns(config)
  for key, options in config.data.inputs.items():
    if key not in MODALITIES:
      raise ConfigError(
        f"data.inputs names {key!r}; {known_names(key, MODALITIES)}"
      )
    try:
      preprocessing.mode_of(config, key, train=True)
      preprocessing.mode_of(config, key, train=False)
    except ValueError as error:
      raise ConfigError(f"data.inputs.{key}: {error}") from error
    augmentation.check_sampling(key, options)
    augmentation.check_draft(key, options)
  for name, task in config.tasks.items():
    groups = groups_of(task)
    keys = keys_of(groups)
    for train in (True, False):
      _check_alignment(config, name, keys, train=train)
    augmentation.check(config, name, groups, keys)


def _check_columns(config: Config) -> None:
  """Refuses columns that are none, and those of other modalities."""
  able = {k: m.check_columns for k, m in MODALITIES.items() if m.check_columns}
  for key, entries in config.data.columns.items():
    if key not in able:
      raise ConfigError(f"data.columns names {key!r}; {known_names(key, able)}")
    try:
      able[key](as_columns(entries))
    except (TypeError, ValueError) as error:
      raise ConfigError(f"data.columns.{key}: {error}") from error


def _check_alignment(
  config: Config, task: str, keys: Sequence[str], *, train: bool
) -> None:
  """Refuses modes that crop aligned pictures of a sample differently."""
  modes = {k: preprocessing.mode_of(config, k, train=train) for k in keys}
  places = {
    k: mode.recipe["place"]
    for k, mode in modes.items()
    if mode.recipe
    if "place" in mode.recipe
  }
  if len(set(places.values())) > 1:
    kind = "mode" if train else "eval_mode"
    settings = ", ".join(
      f"data.inputs.{k}.{kind}={modes[k].name!r} ({place})"
      for k, place in places.items()
    )
    raise ConfigError(
      f"tasks.{task}: pictures of one sample are cut differently and do not "
      f"align: {settings}. Choose modes that place alike."
    )


def check_stated(config: Config, source: str, key: str) -> None:
  """Checks that a source states what a modality needs, and its modes accept.

  Raises:
    ConfigError: otherwise, since no sample of the source could be read.
  """
  modality = MODALITIES[key]
  if not modality.stated:
    return
  where, g = f"data.sources.{source}", geometry(config, key, source)
  field = f"{where}.{modality.unit_field or f'units[{key!r}]'}"
  if modality.units and not g.unit and not modality.in_file:
    *first, last = modality.units
    raise ConfigError(
      f"{field} is empty; {key} needs its unit: {', '.join(first)} or {last}."
    )
  named = g.unit in modality.needs_channels
  if named and common_channels(config, key) != g.channels:
    raise ConfigError(
      f"{where}.channels[{key!r}] must name the channels, as all sources of "
      f"{key} do: a model reads the same of all."
    )
  if named and not g.channels:
    raise ConfigError(
      f"{where}.channels[{key!r}] is empty; {key} needs the names of its "
      "channels."
    )
  if not g.unit:
    return
  example = modality.example(g, 0)
  try:
    for train in (True, False):
      preprocessing.mode_of(config, key, train=train).host(example, g, None)
  except ValueError as error:
    raise ConfigError(f"{field}: {error}") from error
