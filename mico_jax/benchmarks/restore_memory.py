"""Host memory of restoring a training state.

  python -m mico_jax.benchmarks.restore_memory --preset mico_g14 --dir scratch

writes a checkpoint of a model's parameters and both Adam moments, leaf by leaf,
and restores it in another process onto 8 CPU devices with sharded parameters.
Prints the size of the state, the peak memory of that process (`ru_maxrss`,
including the state), and their ratio. Needs as much disk space as the state;
the folder is removed.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import resource
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from mico_jax.checkpoint import storage
from mico_jax.checkpoint.described import Extras
from mico_jax.checkpoint.manager import Manager
from mico_jax.checkpoint.steps import CHECKPOINTS
from mico_jax.checkpoint.streamed import Leaf, write_step
from mico_jax.config import Config, ParallelConfig
from mico_jax.models import PRESETS, build
from mico_jax.parallel.mesh import make_mesh
from mico_jax.train.state import TrainState, abstract_state

DEVICES = 8


def _config(preset: str) -> Config:
  parallel = ParallelConfig(mesh={"fsdp": -1}, rules="fsdp")
  return dataclasses.replace(Config(), model=PRESETS[preset], parallel=parallel)


def _like(config: Config) -> TrainState:
  mesh = make_mesh(config.parallel)
  return abstract_state(build(config.model), config, mesh)


def write(folder: pathlib.Path, preset: str) -> int:
  """Writes a checkpoint of step 1 into a workdir; returns its bytes."""
  config = _config(preset)
  like = _like(config)
  rng = np.random.default_rng(0)

  def leaf(shape: Any) -> Leaf:
    def read() -> np.ndarray:
      if np.issubdtype(shape.dtype, np.floating):
        return rng.random(shape.shape, np.float32).astype(shape.dtype)
      return np.ones(shape.shape, shape.dtype)

    return Leaf(tuple(shape.shape), np.dtype(shape.dtype), read)

  trees = {
    name: {
      path: leaf(x)
      for path, x in storage.path_dict(getattr(like, name)).items()
    }
    for name in ("params", "opt_state")
  }
  target = folder / CHECKPOINTS / "1"
  target.mkdir(parents=True)
  params = trees.pop("params")
  write_step(
    target, params, config=config, extras=Extras(), step=1, items=trees
  )
  leaves = [*params.values(), *trees["opt_state"].values()]
  return sum(x.nbytes for x in leaves)


def restore(folder: pathlib.Path, preset: str) -> dict[str, Any]:
  """Restores the checkpoint in this process; memory in bytes."""
  config = _config(preset)
  like = _like(config)
  before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  restored = Manager(folder, config=config).restore(like)
  if restored is None or restored.step != 1:
    raise RuntimeError(f"nothing was restored from {folder}")
  arrays = (restored.state.params, restored.state.opt_state)
  jax.block_until_ready(arrays)
  held = sum(
    shard.data.nbytes
    for x in jax.tree.leaves(arrays)
    for shard in x.addressable_shards
  )
  peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
  return {"before": before, "held": held, "peak": peak}


def main(argv: Sequence[str] | None = None) -> None:
  """Prints one JSON line."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--preset", default="mico_g14", choices=list(PRESETS))
  parser.add_argument("--dir", type=pathlib.Path, default=pathlib.Path("."))
  parser.add_argument("--restore", help=argparse.SUPPRESS)
  options = parser.parse_args(argv)
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_num_cpu_devices", DEVICES)
  if options.restore:
    print(json.dumps(restore(pathlib.Path(options.restore), options.preset)))
    return
  options.dir.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=options.dir) as name:
    size = write(pathlib.Path(name), options.preset)
    done = subprocess.run(
      [
        *(sys.executable, "-m", "mico_jax.benchmarks.restore_memory"),
        *("--preset", options.preset, "--restore", name),
      ],
      stdout=subprocess.PIPE,
      text=True,
      check=True,
    )
  memory = json.loads(done.stdout.splitlines()[-1])
  gib = {f"{k}_gib": round(v / 2**30, 3) for k, v in memory.items()}
  print(
    json.dumps(
      {
        "preset": options.preset,
        "state_gib": round(size / 2**30, 3),
        **gib,
        "peak_over_state": round(memory["peak"] / size, 3),
      }
    )
  )


if __name__ == "__main__":
  main()
