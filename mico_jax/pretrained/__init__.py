"""Weights that come with this package, by name.

    model = mico_jax.load("omniworld-tiny")

`WEIGHTS` is the table. Beside this file lie, for each name, NAME.zip, a step
folder as every run writes it (without the optimizer's state), and NAME.json,
what is known of it: hash, data, licence, command, scores. Both are made by
`python -m mico_jax.pretrained.make RUN --name NAME`.

`FOREIGN` lists weights of others that `mico-jax import` reads. They are never
fetched by this package on its own.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.resources
import json
from collections.abc import Mapping
from typing import Any

from mico_jax.pretrained.foreign import FOREIGN, Foreign

WEIGHTS: Mapping[str, str] = {
  "omniworld-tiny": "image, video, audio, depth, normals and text of OmniWorld",
}


class DamagedWeights(ValueError):
  """A packaged file is not the one that was packaged."""


@dataclasses.dataclass(frozen=True)
class Weights:
  """What is known of packaged weights.

  Attributes:
    name: key of `WEIGHTS`.
    sha256: of the packaged file.
    bytes: of the packaged file.
    step: of the run that made them.
    parameters: how many numbers they hold.
    dtype: that the numbers were rounded to; they are stored as float32.
    modalities: keys of the modalities that they take.
    data: what they were trained on.
    licence: of the weights.
    command: of the run.
    commit: of this repository, which ran the command.
    run: fingerprint of the checkpoint before rounding.
    evaluation: command that measured the scores.
    scores: results after rounding, by name.
    before: the same results of the run, before rounding.
  """

  name: str
  sha256: str
  bytes: int
  step: int
  parameters: int
  dtype: str
  modalities: tuple[str, ...]
  data: str
  licence: str
  command: str
  commit: str
  run: str
  evaluation: str
  scores: Mapping[str, float]
  before: Mapping[str, float]

  @classmethod
  def of(cls, values: Mapping[str, Any]) -> Weights:
    """From the content of NAME.json."""
    given: dict[str, Any] = dict(values)
    given["modalities"] = tuple(values["modalities"])
    return cls(**given)

  def content(self) -> bytes:
    """The packaged zip file, verified.

    Raises:
      DamagedWeights: if it is absent, altered or cut short.
    """
    file = _folder() / f"{self.name}.zip"
    try:
      data = file.read_bytes()
    except OSError as error:
      raise DamagedWeights(
        f"{file}: {error.strerror or type(error).__name__}; install mico_jax "
        "again."
      ) from error
    found = hashlib.sha256(data).hexdigest()
    if found != self.sha256:
      raise DamagedWeights(
        f"{file}: SHA-256 {found[:16]}..., expected {self.sha256[:16]}...; the "
        "file was altered or cut short. Install mico_jax again."
      )
    return data


def _folder() -> Any:
  """Where the packaged files lie."""
  return importlib.resources.files(__name__)


@functools.cache
def describe(name: str) -> Weights:
  """What is known of packaged weights.

  Args:
    name: key of `WEIGHTS`.
  """
  text = (_folder() / f"{name}.json").read_text(encoding="utf-8")
  return Weights.of(json.loads(text))


def list_pretrained() -> list[str]:
  """Names of the packaged weights, which `mico_jax.load` takes."""
  return list(WEIGHTS)


__all__ = [
  "FOREIGN",
  "WEIGHTS",
  "DamagedWeights",
  "Foreign",
  "Weights",
  "describe",
  "list_pretrained",
]
