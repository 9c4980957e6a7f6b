"""Fields of what samples are labelled with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from mico_jax.config.fields import Choice, ConfigError, Items, Name, Range

MOST = 65_536  # classes, or numbers of one target
_Names = Annotated[tuple[Name, ...], Items(0, MOST)]
_Numbers = Annotated[
  tuple[Annotated[float, Range(-1e30, 1e30)], ...], Items(0, MOST)
]


@dataclass(frozen=True)
class TargetConfig:
  """What samples are labelled with: fields of their records."""

  # record field with the class or classes; of numbers, the field of each
  fields: Annotated[tuple[Name, ...], Items(1, MOST)] = ("label",)
  # "class": one of `classes`; "classes": a list of them, which may be empty;
  # "number": a number in each field
  kind: Annotated[str, Choice("class", "classes", "number")] = "class"
  # Names of the classes, in the order of the outputs. (): the values that the
  # training samples have, filled when the run starts.
  classes: _Names = ()
  # what the field holds for each class; (): its name
  labels: _Names = ()
  # Targets are (number - mean) / scale, for each field. (): mean and standard
  # deviation of the training samples, filled when the run starts.
  mean: _Numbers = ()
  scale: _Numbers = ()


def check_target(target: TargetConfig, where: str) -> None:
  """Checks that the parts of a target fit each other.

  Raises:
    ConfigError: otherwise; open parts are no mistake.
  """
  numbers = target.kind == "number"
  if not numbers and len(target.fields) != 1:
    raise ConfigError(
      f"{where}.fields={target.fields}: a class stands in one field; several "
      "fields are for kind='number'."
    )
  for name in ("classes", "labels"):
    values = getattr(target, name)
    if numbers and values:
      raise ConfigError(f"{where}.{name} has no effect with kind='number'.")
    if len(set(values)) < len(values):
      raise ConfigError(f"{where}.{name}: a name stands there twice.")
  if target.labels and len(target.labels) != len(target.classes):
    raise ConfigError(
      f"{where}: {len(target.labels)} labels for {len(target.classes)} "
      "classes; give one each."
    )
  sizes = {len(target.mean), len(target.scale)}
  if not numbers and sizes != {0}:
    raise ConfigError(f"{where}: mean and scale are for kind='number'.")
  if numbers and sizes not in ({0}, {len(target.fields)}):
    raise ConfigError(
      f"{where}: mean and scale need a number for each of the "
      f"{len(target.fields)} fields, or none."
    )
  if any(x <= 0 for x in target.scale):
    raise ConfigError(f"{where}.scale={target.scale}: expected numbers > 0.")
