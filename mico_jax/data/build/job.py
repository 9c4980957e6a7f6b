"""A build as plain data, and the note of it that its folder holds."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from mico_jax.config import ConfigError
from mico_jax.data.build.inputs import Input
from mico_jax.data.build.stages import STAGES, Stage, make_stages
from mico_jax.data.build.status import STATUSES
from mico_jax.data.shard_writers import WRITERS
from mico_jax.data.storage import is_remote
from mico_jax.modalities import MODALITIES
from mico_jax.printing import known_names

NOTE = "build.json"
# Packages whose versions decide the bytes that come out.
_PACKAGES = ("av", "array_record", "numpy", "pillow", "soundfile")


@dataclasses.dataclass(frozen=True)
class Job:
  """Everything that a build follows from.

  Attributes:
    input: raw material.
    out: folder of the result; local.
    stages: keys of `mico_jax.data.build.stages.STAGES`, in order; (): samples
      are packed as they are.
    options: stage -> option -> value.
    shards: units; 0: as the input has them.
    format: key of `mico_jax.data.shard_writers.WRITERS`.
    status: key of `mico_jax.data.build.status.STATUSES`.
    require: keys of modalities and kinds of captions that a sample must have;
      one without is a failed row.
    strict: the first failed row ends the build.
    timeout: seconds that a stage may work on a row, or a batch, without a sign
      of life (a frame, a call); then its process is replaced, and a row that
      hangs twice has failed. Where workers build.
    gpus: of a worker; under engine "ray" alone. A share such as 0.25 lets
      several workers have one.
  """

  input: Input
  out: str
  stages: tuple[str, ...] = ()
  options: Mapping[str, Mapping[str, Any]] = dataclasses.field(
    default_factory=dict
  )
  shards: int = 0
  format: str = "array_record"
  status: str = "parquet"
  require: tuple[str, ...] = ()
  strict: bool = False
  timeout: float = 600.0
  gpus: float = 0.0

  @property
  def stem(self) -> str:
    """What the names of its files begin with."""
    return self.input.split or "all"

  def make_stages(self) -> list[Stage]:
    """Its stages with their options.

    Raises:
      ConfigError: for wrong ones.
    """
    return make_stages(self.stages, self.options)

  def check(self) -> list[Stage]:
    """Checks all that can be known up front; returns the stages.

    Raises:
      ConfigError: saying what to change.
    """
    for name, value, table in (
      ("format", self.format, WRITERS),
      ("status", self.status, STATUSES),
    ):
      if value not in table:
        raise ConfigError(f"{name}={value!r}; {known_names(value, table)}")
    if is_remote(self.out):
      raise ConfigError(
        f"out={self.out!r} is remote; build into a local or mounted folder and "
        "copy the shards."
      )
    if not 0 < self.timeout < math.inf:
      raise ConfigError(f"timeout={self.timeout:g}: expected seconds over 0.")
    if not 0 <= self.gpus < math.inf or (
      self.gpus > 1 and self.gpus != int(self.gpus)
    ):
      raise ConfigError(
        f"gpus={self.gpus:g}: expected a share up to 1, or a whole number."
      )
    STATUSES[self.status].check()
    stages = self.make_stages()
    for stage in stages:
      stage.check()
    cutting = [s.name for s in stages if s.cuts]
    made = [key for stage in stages for key in stage.makes]
    if (cutting or self.input.spans) and not made:
      what = f"stage {cutting[0]}" if cutting else "the list"
      storing = ", ".join(n for n, s in STAGES.items() if s.makes)
      raise ConfigError(
        f"{what} names parts of files, and nothing stores them; add one of the "
        f"stages {storing}."
      )
    if twice := sorted({key for key in made if made.count(key) > 1}):
      names = [s.name for s in stages if twice[0] in s.makes]
      raise ConfigError(f"stages {' and '.join(names)} both store {twice[0]}.")
    lists = [s.name for s in stages if s.lists]
    if lists and not WRITERS[self.format].lists:
      raise ConfigError(
        f"stage {lists[0]} stores lists of frames, which format={self.format} "
        "cannot hold; use h264, or format=array_record."
      )
    kinds = {m.caption_kind for m in MODALITIES.values()}
    for name in self.require:
      if name not in MODALITIES and name not in kinds:
        known = ", ".join(sorted({*MODALITIES, *kinds}))
        raise ConfigError(f"require={name!r}; known: {known}.")
    return stages

  def note(self) -> dict[str, Any]:
    """What the bytes of the result follow from, as JSON."""
    identity = json.dumps(
      self.input.identity(), sort_keys=True, default=dataclasses.asdict
    )
    return {
      "input": hashlib.sha256(identity.encode()).hexdigest(),
      "stages": list(self.stages),
      "options": {
        stage.name: dataclasses.asdict(stage.options)
        for stage in self.make_stages()
      },
      "shards": self.shards,
      "format": self.format,
      "status": self.status,
      "require": list(self.require),
      "versions": {name: metadata.version(name) for name in _PACKAGES},
    }


def claim(job: Job) -> bool:
  """Makes the folder of a build its own; whether it is new.

  Several processes of one build may do so at once.

  Raises:
    ConfigError: for a folder that holds another build, or other files.
  """
  folder = pathlib.Path(job.out)
  folder.mkdir(parents=True, exist_ok=True)
  path = folder / f"{job.stem}.{NOTE}"
  note = json.loads(json.dumps(job.note()))
  if not path.exists():
    shards = sorted(folder.glob(f"{job.stem}-*-of-*"))
    if shards:
      raise ConfigError(
        f"{shards[0]} exists; name another folder or remove it."
      )
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    part.write_text(json.dumps(note, indent=1, sort_keys=True) + "\n")
    try:
      os.link(part, path)  # fails where another process was quicker
      return True
    except FileExistsError:
      pass
    finally:
      part.unlink()
  try:
    old = json.loads(path.read_text())
  except ValueError as error:
    raise ConfigError(f"{path} is no JSON; remove the folder.") from error
  for name in note:
    if old.get(name) != note[name]:
      raise ConfigError(
        f"{path} exists for another build: {name} was "
        f"{_short(old.get(name))}, is now {_short(note[name])}. Name another "
        "folder, or remove this one."
      )
  return False


def _short(value: Any) -> str:
  text = json.dumps(value)
  return text if len(text) <= 200 else f"{text[:200]}..."
