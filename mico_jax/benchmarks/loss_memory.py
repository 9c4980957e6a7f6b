"""Compiled memory of the losses that compare the whole global batch.

`python -m mico_jax.benchmarks.loss_memory` compiles the contrastive loss with
its gradients, and the mining of texts, for 8 CPU devices at growing global
batches, and prints the temporaries of one device (`memory_analysis`). These are
compiler figures; nothing is run. `--topology v5e:16x16` compiles for that slice
instead, on any machine with libtpu.
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

from mico_jax import aot
from mico_jax.kernels.batch_sharding import BatchSharding
from mico_jax.kernels.contrastive import contrastive_pair
from mico_jax.objectives.mining import draw_from_all

CPU_DEVICES = 8
LENGTH = 40  # token ids of a text
KINDS = ("xla", "chunked", "ring", "mining")


def compiled(
  kind: str, rows: int, width: int, partition: BatchSharding, chunk: int
) -> Any:
  """The compiled program of one loss.

  Args:
    kind: a contrastive backend, or "mining".
    rows: of the global batch.
    width: of an embedding.
    partition: over the devices to compile for.
    chunk: columns of a block; 0: automatic.

  Returns:
    A `jax.stages.Compiled`.
  """

  def array(shape: tuple[int, ...], dtype: Any, spec: Any) -> Any:
    sharding = NamedSharding(partition.mesh, spec)
    return jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)

  split, whole = partition.spec(), PartitionSpec()
  side = array((rows, width), jnp.bfloat16, split)
  fingerprint = array((rows, 2), jnp.uint32, split)
  scale = array((), jnp.float32, whole)

  def loss(query: Any, key: Any, temperature: Any, fingerprint: Any) -> Any:
    pair = contrastive_pair(
      query,
      key,
      temperature=temperature,
      fingerprint=fingerprint,
      label_smoothing=0.1,
      partition=partition,
      chunk=chunk,
      backend=kind,
    )
    return (pair.to_key + pair.to_query).mean()

  def mine(
    query: Any, key: Any, temperature: Any, fingerprint: Any, ids: Any
  ) -> Any:
    start = jax.random.key(0)
    number = jnp.arange(rows, dtype=jnp.uint32)
    rng_keys = jax.vmap(lambda i: jax.random.fold_in(start, i))(number)
    return draw_from_all(
      rng_keys,
      query,
      key,
      ids,
      temperature=temperature,
      valid=jnp.ones((rows,), bool),
      fingerprint=fingerprint,
      partition=partition,
      chunk=chunk,
    )

  arguments = [side, side, scale, fingerprint]
  run: Any = jax.grad(loss, (0, 1, 2))
  if kind == "mining":
    run = mine
    arguments.append(array((rows, LENGTH), jnp.int32, split))
  traced = jax.jit(run).trace(*arguments)
  platform = partition.mesh.devices.flat[0].platform
  return traced.lower(lowering_platforms=(platform,)).compile()


def main(argv: Sequence[str] | None = None) -> None:
  """Prints one JSON line per kind and global batch."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--topology", default="", help="e.g. v5e:16x16")
  parser.add_argument("--rows", default="1024,8192,65536")
  parser.add_argument("--width", type=int, default=512)
  parser.add_argument("--chunk", type=int, default=0, help="0: automatic")
  parser.add_argument("--kinds", default=",".join(KINDS))
  options = parser.parse_args(argv)
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_num_cpu_devices", CPU_DEVICES)
  name = options.topology
  devices = np.asarray(
    aot.devices(name) if name else jax.devices("cpu"), dtype=object
  )
  partition = BatchSharding(Mesh(devices, ("data",)), ("data",))
  for kind in options.kinds.split(","):
    for rows in (int(x) for x in options.rows.split(",")):
      memory = compiled(
        kind, rows, options.width, partition, options.chunk
      ).memory_analysis()
      figures = {
        "kind": kind,
        "topology": name or f"cpu:{devices.size}",
        "rows": rows,
        "width": options.width,
        "temporaries_mib": round(memory.temp_size_in_bytes / 2**20, 2),
        "arguments_mib": round(memory.argument_size_in_bytes / 2**20, 2),
      }
      print(json.dumps(figures), flush=True)


if __name__ == "__main__":
  main()
