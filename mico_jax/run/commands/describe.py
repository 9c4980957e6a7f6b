"""Content of a checkpoint or a config, for `mico-jax inspect`."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from mico_jax import config as config_lib
from mico_jax.checkpoint import manifest, restore, steps
from mico_jax.config import Config
from mico_jax.models import build


@dataclass(frozen=True)
class Inspection:
  """Content of a checkpoint or a config.

  Attributes:
    config: of the run.
    params: path -> {"shape", "dtype", "axes"}.
    about: step, versions, topology, preprocessing, tokenizer, metrics.
  """

  config: Config
  params: Mapping[str, Mapping[str, Any]]
  about: Mapping[str, Any]

  def counts(self) -> dict[str, int]:
    """Number of parameters by top-level key, and in all."""
    counts: dict[str, int] = {}
    for path, entry in self.params.items():
      top = path.partition("/")[0]
      size = int(np.prod(entry["shape"], dtype=np.int64))
      counts[top] = counts.get(top, 0) + size
    return {**counts, "total": sum(counts.values())}

  def summary(self) -> list[tuple[str, str]]:
    """What it is in a few rows, (name, value)."""
    config, counts = self.config, self.counts()
    parts = [f"{k} {_short(v)}" for k, v in counts.items() if k != "total"]
    vision, text = config.model.vision, config.model.text
    rows = [("name", config.name)]
    if "step" in self.about:
      rows.append(("step", f"{self.about['step']} of {config.train.steps}"))
    rows += [
      ("parameters", f"{_short(counts['total'])}: {', '.join(parts)}"),
      (
        "vision",
        f"{vision.encoder} {vision.width} x {vision.depth}, "
        f"{vision.image_size} pixels, patches of {vision.patch_size}",
      ),
      ("text", f"{text.width} x {text.depth}, {text.vocab_size or '?'} tokens"),
      (
        "joint space",
        f"{config.model.embed_dim} numbers; heads "
        f"{', '.join(config.model.heads)}",
      ),
    ]
    for name, source in config.data.sources.items():
      where = source.path or f"{source.size:,} samples"
      split = f" ({source.split})" if source.split else ""
      rows.append((f"source {name}", f"{source.kind} {where}{split}"))
    for name, task in config.tasks.items():
      learned = "; ".join(
        f"{objective} {', '.join(groups)}"
        for objective, groups in task.objectives.items()
        if groups
      )
      rows.append((f"task {name}", f"{learned}; batch of {task.batch_size}"))
    rate, steps = config.optimizer.learning_rate, config.train.steps
    rows.append(("training", f"{steps:,} steps, learning rate {rate:g}"))
    return rows

  def overview(self) -> str:
    """The parameter table."""
    from clu import parameter_overview

    tree = manifest.unflatten(
      {
        path.replace("/", "."): jax.ShapeDtypeStruct(
          tuple(e["shape"]), e["dtype"]
        )
        for path, e in self.params.items()
      }
    )
    return parameter_overview.get_parameter_overview(tree, include_stats=False)

  def as_dict(self) -> dict[str, Any]:
    """JSON types only."""
    return {
      **self.about,
      "config": json.loads(config_lib.to_json(self.config)),
      "params": {k: dict(v) for k, v in self.params.items()},
      "counts": self.counts(),
    }


def _short(count: int) -> str:
  """A number of parameters as one says it: "1.2M"."""
  for size, unit in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
    if count >= size:
      return f"{count / size:.3g}{unit}"
  return str(count)


def of_config(config: Config) -> Inspection:
  """A config's parameters, from shapes alone: nothing is allocated."""
  model = build(config.model)
  shapes = manifest.flatten(model.abstract_params())
  axes = manifest.flatten(model.logical_axes())
  params = {
    path: {
      "shape": list(s.shape),
      "dtype": s.dtype.name,
      "axes": list(axes[path]),
    }
    for path, s in shapes.items()
  }
  return Inspection(config, params, {})


def of_checkpoint(path: str | os.PathLike[str]) -> Inspection:
  """A checkpoint's manifest and config; the arrays are not read.

  Raises:
    CheckpointError: if there is none, or its small files do not verify.
  """
  folder = restore.step_folders(path)[0]
  content = manifest.read(folder)
  files, problems = manifest.read_files(folder, content)
  if problems:
    raise manifest.CheckpointError(manifest.summarise(problems))
  keys = ("step", "versions", "topology", "preprocessing", "tokenizer")
  about = {"path": str(folder), **{k: content[k] for k in keys}}
  about["metrics"] = content["metrics"]
  about["items"] = {
    name: sum(int(np.prod(e["shape"], dtype=np.int64)) for e in item.values())
    for name, item in content["items"].items()
  }
  if folder.parent.name == steps.CHECKPOINTS:
    about["steps"] = steps.list_steps(folder.parent)
  config = restore.parse_config(files[manifest.CONFIG], folder)
  return Inspection(config, content["items"]["params"], about)
