"""The preprocessing modes that a new run takes where its config names none.

They depend on the unit that the sources declare, and are written into the
config when the run starts, so that a checkpoint always names them; a stored
config of before, which names none, keeps meaning `Modality.default_mode`.
"""

from __future__ import annotations

import dataclasses

from mico_jax.config import Config
from mico_jax.data.samples import groups_of, keys_of
from mico_jax.data.statements import stated
from mico_jax.modalities import MODALITIES, preprocessing


def pin_modes(config: Config) -> Config:
  """The config with the modes that `Modality.native_modes` give named in it.

  Sources whose units need different modes leave the mode open: the check of
  each source says which of them do not fit.

  Args:
    config: of a run, its groups and sources checked.
  """
  groups = [g for task in config.tasks.values() for g in groups_of(task)]
  used = {*keys_of(groups), *config.data.inputs}
  inputs = dict(config.data.inputs)
  for key, modality in MODALITIES.items():
    options = preprocessing.input_config(config, key)
    units = _units(config, key)
    modes = {modality.native_modes.get(unit, "") for unit in units}
    if key in used and not options.mode and len(modes) == 1 and "" not in modes:
      inputs[key] = dataclasses.replace(options, mode=modes.pop())
  data = dataclasses.replace(config.data, inputs=inputs)
  return dataclasses.replace(config, data=data)


def _units(config: Config, key: str) -> set[str]:
  """The units that the sources of the tasks and of the evaluation declare."""
  settings, sources = config.evaluation, config.data.sources
  names = {settings.source, settings.probe_source}
  names.update(*(task.sources for task in config.tasks.values()))
  specs = [sources[name] for name in names if name in sources]
  return {stated(spec, key).unit for spec in specs} - {""}
