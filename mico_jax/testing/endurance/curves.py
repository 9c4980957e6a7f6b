"""Loss curves of one small run on other meshes and in other micro-batches.

  python -m mico_jax.testing.endurance.curves --out curves.json

trains the same 50 steps on 1, 2, 4 and 8 CPU devices, with copied and with
split parameters (`parallel.rules`), directly and in 4 cached micro-batches, and
prints how far the losses lie from those of one device, and whether the mined
indices are the same. The run has every kind of randomness: dropout, stochastic
depth, patch dropout, masked captions, mined negatives.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import sys
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from mico_jax.config import (
  Config,
  MatchingConfig,
  ObjectivesConfig,
  OptimizerConfig,
  ParallelConfig,
)
from mico_jax.models import build
from mico_jax.objectives import compute
from mico_jax.parallel.mesh import make_mesh
from mico_jax.parallel.sharding import put_batch, rules_by_name
from mico_jax.testing.objective_contract import (
  TINY_MODEL,
  TOKENIZER,
  fake_batch,
  tiny_config,
)
from mico_jax.train.state import init_state
from mico_jax.train.step import make_train_step

GROUPS: dict[str, tuple[str, ...]] = {
  "contrastive": ("tva",),
  "matching": ("tva",),
  "captioning": ("tv",),
}

# Preset of rules -> the mesh of so many devices.
MESHES = {
  "ddp": lambda n: {"data": n},
  "fsdp": lambda n: {"data": max(n // 4, 1), "fsdp": min(n, 4)},
  "fsdp_tp": lambda n: {"fsdp": max(n // 2, 1), "tensor": min(n, 2)},
  "fsdp_sp": lambda n: {"data": max(n // 2, 1), "sequence": min(n, 2)},
}

ROWS = 64  # 8 devices, 4 micro-batches, mining groups of 2
TOLERANCE = 1e-5


def _config(rows: int, text: Mapping[str, Any]) -> Config:
  """The tiny model with every kind of randomness.

  Args:
    rows: of the global batch.
    text: fields of the text tower.
  """
  model = dataclasses.replace(
    TINY_MODEL,
    text=dataclasses.replace(TINY_MODEL.text, dropout=0.1, **text),
    vision=dataclasses.replace(TINY_MODEL.vision, drop_path_rate=0.1),
    matmul_precision="highest",
  )
  config = tiny_config(
    GROUPS,
    batch_size=rows,
    model=model,
    optimizer=OptimizerConfig(learning_rate=1e-3),
  )
  train = dataclasses.replace(config.train, patch_dropout=0.25)
  return dataclasses.replace(config, train=train)


def curve(
  devices: int,
  steps: int,
  *,
  rules: str = "ddp",
  micro_batches: int = 1,
  rows: int = 8,
  group_rows: int = 0,
  text: Mapping[str, Any] | None = None,
) -> tuple[Float[np.ndarray, " S"], Int[np.ndarray, "S 2 B"]]:
  """Trains the tiny model in float32.

  Args:
    devices: number of devices.
    steps: number of steps.
    rules: key of `MESHES`.
    micro_batches: parts of a step's batch.
    rows: of the global batch.
    group_rows: rows of a mining group; 0: all.
    text: fields of the text tower; None: BERT.

  Returns:
    Loss of each step, and the mined indices: of contexts, then of texts.
  """
  config = _config(rows, text or {})
  train = dataclasses.replace(
    config.train, steps=steps, micro_batches=micro_batches
  )
  matching = MatchingConfig(group_rows=group_rows)
  config = dataclasses.replace(
    config,
    train=train,
    parallel=ParallelConfig(mesh=MESHES[rules](devices), rules=rules),
    objectives=ObjectivesConfig(matching=matching),
  )
  model = build(config.model)
  mesh = make_mesh(config.parallel, jax.devices()[:devices])
  row_rules = rules_by_name(rules)
  state = init_state(model, config, mesh)
  step: Any = make_train_step(
    model, config, config.tasks["main"], TOKENIZER, mesh, return_aux=True
  )
  losses, indices = [], []
  for number in range(steps):
    batch = fake_batch(("tv", "tva"), rows=rows, seed=number)
    state, metrics, aux = step(state, put_batch(batch, mesh, row_rules))
    losses.append(float(compute(metrics["loss"])))
    indices.append(
      [np.asarray(aux[f"matching/tva/{k}_index"]) for k in ("context", "text")]
    )
  if step._cache_size() != 1:
    raise RuntimeError(f"compiled {step._cache_size()} times, expected once")
  return np.array(losses), np.array(indices)


def compare(steps: int, counts: list[int], parts: int) -> Iterator[Any]:
  """One result for each mesh and each number of micro-batches."""
  options = {"rows": ROWS, "group_rows": 2}
  losses, indices = curve(1, steps, **options)
  yield {"devices": 1, "micro_batches": 1, "losses": losses.tolist()}
  for rules in MESHES:
    for devices in counts:
      for micro_batches in (1, parts):
        if devices == 1 and (micro_batches == 1 or rules != "ddp"):
          continue
        other, mined = curve(
          devices, steps, rules=rules, micro_batches=micro_batches, **options
        )
        yield {
          "rules": rules,
          "devices": devices,
          "micro_batches": micro_batches,
          "largest_difference": float(np.abs(other - losses).max()),
          "same_indices": bool((mined == indices).all()),
        }


def main() -> int:
  """The command line."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--steps", type=int, default=50)
  parser.add_argument("--devices", default="1,2,4,8")
  parser.add_argument("--micro-batches", type=int, default=4)
  parser.add_argument("--out", type=pathlib.Path)
  args = parser.parse_args()
  jax.config.update("jax_platforms", "cpu")
  counts = [int(x) for x in args.devices.split(",")]
  jax.config.update("jax_num_cpu_devices", max(counts))
  results = []
  for result in compare(args.steps, counts, args.micro_batches):
    results.append(result)
    shown = {k: v for k, v in result.items() if k != "losses"}
    print(json.dumps(shown), flush=True)
  if args.out:
    args.out.write_text(json.dumps(results, indent=1))
  good = all(
    r["largest_difference"] <= TOLERANCE and r["same_indices"]
    for r in results[1:]
  )
  return 0 if good else 1


if __name__ == "__main__":
  sys.exit(main())
