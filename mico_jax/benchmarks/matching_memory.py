"""Compiled memory of matching at growing global and constant local batch.

`python -m mico_jax.benchmarks.matching_memory` compiles the whole matching
objective (encoding of small inputs, mining of texts from the global batch and
of contexts within groups, the three pairs of every row through the text tower)
with its gradient for 8 and for 512 CPU devices of 128 rows each, and prints the
temporaries of one device (`memory_analysis`). These are compiler figures;
nothing is run.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mico_jax.config import (
  Config,
  DataConfig,
  InputConfig,
  MatchingConfig,
  ModelConfig,
  ObjectivesConfig,
  TaskConfig,
  TextConfig,
  VisionConfig,
)
from mico_jax.data.tokenizer import TokenizerInfo
from mico_jax.kernels.batch_sharding import BatchSharding
from mico_jax.models import build
from mico_jax.train.state import abstract_params
from mico_jax.train.step import make_loss

GROUP = "tv"
SIZE = 32  # pixels
LENGTH = 40  # token ids of a text
WORDS = TokenizerInfo(
  pad=0, cls=1, sep=2, mask=3, vocab_size=512, random_range=(5, 512)
)
MODEL = ModelConfig(
  vision=VisionConfig(
    image_size=SIZE, patch_size=16, width=64, depth=1, num_heads=4, mlp_dim=128
  ),
  text=TextConfig(
    vocab_size=WORDS.vocab_size,
    width=64,
    depth=2,
    num_heads=4,
    mlp_dim=256,
    max_positions=LENGTH,
    dropout=0.0,
  ),
  embed_dim=512,
  frame_table={"video": 1},
)


def compiled(devices: Sequence[Any], local_rows: int, group_rows: int) -> Any:
  """The compiled gradient of matching.

  Args:
    devices: to compile for, all along one axis.
    local_rows: rows of each device.
    group_rows: rows of a mining group.

  Returns:
    A `jax.stages.Compiled`.
  """
  mesh = Mesh(np.asarray(devices, dtype=object), ("data",))
  partition = BatchSharding(mesh, ("data",))
  rows = local_rows * len(devices)
  task = TaskConfig(batch_size=rows, objectives={"matching": (GROUP,)})
  config = Config(
    model=MODEL,
    data=DataConfig(inputs={"video": InputConfig(frames=1)}),
    objectives=ObjectivesConfig(matching=MatchingConfig(group_rows=group_rows)),
    tasks={"main": task},
  )
  model = build(config.model)
  loss = make_loss(model, config, task, WORDS, partition=partition)

  def rows_of(shape: tuple[int, ...], dtype: Any) -> Any:
    sharding = NamedSharding(mesh, PartitionSpec("data"))
    return jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=sharding)

  batch = {
    "row": rows_of((), jnp.int32),
    "weight": rows_of((), jnp.float32),
    "pixels": {"video": rows_of((1, SIZE, SIZE, 3), jnp.float32)},
    "inputs": {},
    "present": {"video": rows_of((), jnp.bool_)},
    "text": {GROUP: rows_of((LENGTH,), jnp.int32)},
  }
  whole = NamedSharding(mesh, PartitionSpec())
  params = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole),
    abstract_params(model, config),
  )
  run = jax.grad(lambda p, b: loss(p, b, step=jnp.int32(0))[0])
  return jax.jit(run, out_shardings=whole).lower(params, batch).compile()


def measure(devices: int, local_rows: int, group_rows: int) -> dict[str, Any]:
  """Figures for a number of devices, which must exist."""
  chosen = jax.devices("cpu")[:devices]
  memory = compiled(chosen, local_rows, group_rows).memory_analysis()
  return {
    "devices": devices,
    "global_batch": devices * local_rows,
    "group_rows": group_rows,
    "temporaries_mib": round(memory.temp_size_in_bytes / 2**20, 3),
    "arguments_mib": round(memory.argument_size_in_bytes / 2**20, 3),
  }


def main(argv: Sequence[str] | None = None) -> None:
  """Prints one JSON line per number of devices."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--devices", default="8,512")
  parser.add_argument("--local-rows", type=int, default=128)
  parser.add_argument("--group-rows", type=int, default=32)
  options = parser.parse_args(argv)
  counts = [int(x) for x in options.devices.split(",")]
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_num_cpu_devices", max(counts))
  results = [
    measure(count, options.local_rows, options.group_rows) for count in counts
  ]
  for figures in results:
    share = figures["temporaries_mib"] / results[0]["temporaries_mib"]
    print(json.dumps({**figures, "share_of_first": round(share, 4)}))


if __name__ == "__main__":
  main()
