"""How a config lies on devices: what plans compare and shipped configs keep."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from mico_jax.config import Config, ConfigError
from mico_jax.parallel.mesh import PIECES

GPUS = {"fsdp": -1}  # of one host, which share everything


@dataclasses.dataclass(frozen=True)
class Choice:
  """Mesh, rematerialisation and micro-batches of a config.

  Attributes:
    rules: key of `mico_jax.axes.RULES`.
    mesh: axis -> size; -1: all that are left.
    remat: key of `mico_jax.layers.stack.REMAT`.
    micro_batches: of a step.
  """

  rules: str = "fsdp"
  mesh: Mapping[str, int] = dataclasses.field(
    default_factory=lambda: {"data": -1, "fsdp": PIECES}
  )
  remat: str = "full"
  micro_batches: int = 1

  def apply(self, config: Config) -> Config:
    """The config with this choice."""
    return dataclasses.replace(
      config,
      model=dataclasses.replace(config.model, remat=self.remat),
      train=dataclasses.replace(config.train, micro_batches=self.micro_batches),
      parallel=dataclasses.replace(
        config.parallel, rules=self.rules, mesh=dict(self.mesh)
      ),
    )


def split_argument(given: str) -> tuple[str, str]:
  """ROOT and TOPOLOGY of "ROOT@TOPOLOGY"; "" for what is not given."""
  root, _, topology = given.partition("@")
  return root, topology


def chosen(
  config: Config, choices: Mapping[str, Choice], topology: str
) -> Config:
  """The config as it was planned for a topology.

  Args:
    config: of the run.
    choices: topology -> choice; the first is the default.
    topology: key of `choices`; "": the default.

  Raises:
    ConfigError: listing the planned ones.
  """
  name = topology or next(iter(choices))
  if name not in choices:
    raise ConfigError(
      f"{config.name} was not planned for {name!r}; it was for "
      f"{', '.join(choices)}. Leave @{name} out and set parallel, model.remat "
      "and train.micro_batches (`mico-jax plan --sweep` compares them)."
    )
  return choices[name].apply(config)
