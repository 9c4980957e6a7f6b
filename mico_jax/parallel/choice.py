"""Mesh, rematerialisation and micro-batches of a config, by topology."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from mico_jax.config import Config, ConfigError
from mico_jax.parallel.mesh import PIECES

GPUS = {"fsdp": -1}  # mesh of one host of GPUs: all of them share parameters


@dataclasses.dataclass(frozen=True)
class Choice:
  """Mesh, rematerialisation and micro-batches of a config.

  Plans compare choices; packaged configs keep the best one per topology.

  Attributes:
    rules: key of `mico_jax.axes.RULES`.
    mesh: axis -> number of devices; -1: all remaining ones.
    remat: key of `mico_jax.layers.stack.REMAT`.
    micro_batches: number of micro-batches of a step.
  """

  rules: str = "fsdp"
  mesh: Mapping[str, int] = dataclasses.field(
    default_factory=lambda: {"data": -1, "fsdp": PIECES}
  )
  remat: str = "full"
  micro_batches: int = 1

  def apply(self, config: Config) -> Config:
    """The config with this choice applied."""
    return dataclasses.replace(
      config,
      model=dataclasses.replace(config.model, remat=self.remat),
      train=dataclasses.replace(config.train, micro_batches=self.micro_batches),
      parallel=dataclasses.replace(
        config.parallel, rules=self.rules, mesh=dict(self.mesh)
      ),
    )


def split_argument(text: str) -> tuple[str, str]:
  """ROOT and TOPOLOGY of "ROOT@TOPOLOGY"; a missing part is ""."""
  root, _, topology = text.partition("@")
  return root, topology


def chosen(
  config: Config, choices: Mapping[str, Choice], topology: str
) -> Config:
  """The config with the choice planned for a topology.

  Args:
    config: of the run.
    choices: topology -> choice; the first is the default.
    topology: key of `choices`; "": the default.

  Raises:
    ConfigError: for an unplanned topology, listing the planned ones.
  """
  name = topology or next(iter(choices))
  if name not in choices:
    raise ConfigError(
      f"{config.name} was not planned for {name!r}; it was for "
      f"{', '.join(choices)}. Leave @{name} out and set parallel, model.remat "
      "and train.micro_batches (`mico-jax plan --sweep` compares them)."
    )
  return choices[name].apply(config)
