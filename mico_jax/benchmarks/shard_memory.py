"""Host memory of saving and restoring a sharded state.

  python -m mico_jax.benchmarks.shard_memory --mib 2048 --processes 8 --dir out

starts processes of one CPU device each, shards a state over them and saves it;
as many new processes restore it. Prints the MiB of a shard and, of the process
with the largest peak, the increase of memory divided by the shard: 1 is the
shard alone, since the memory of a CPU device is the host's. About 30 MiB of the
increase belong to neither, so a small shard gives a larger ratio. Linux only;
needs as much disk space as the state; the folder is removed.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import pathlib
import socket
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mico_jax.checkpoint import ranges
from mico_jax.checkpoint.manager import Manager
from mico_jax.checkpoint.manifest import array_hash
from mico_jax.config import Config
from mico_jax.parallel import distributed
from mico_jax.train.state import TrainState

ARRAY_MIB = 16


def _memory(kind: str) -> int:
  """Current ("VmRSS") or peak ("VmHWM") memory of this process in bytes."""
  for line in pathlib.Path("/proc/self/status").read_text().splitlines():
    if line.startswith(kind):
      return int(line.split()[1]) * 1024
  raise RuntimeError(f"/proc/self/status has no {kind}: this needs Linux")


def _mark() -> int:
  """Resets the peak memory; returns the current memory in bytes."""
  gc.collect()
  pathlib.Path("/proc/self/clear_refs").write_text("5")
  return _memory("VmRSS")


def _like(count: int, width: int, mesh: jax.sharding.Mesh) -> TrainState:
  """Sharded matrices of 512 rows and a replicated vector."""
  split = jax.NamedSharding(mesh, jax.P("fsdp"))
  whole = jax.NamedSharding(mesh, jax.P())
  params: dict[str, Any] = {
    f"w{i:03d}": jax.ShapeDtypeStruct((512, width), jnp.float32, sharding=split)
    for i in range(count)
  }
  params["b"] = jax.ShapeDtypeStruct((512,), jnp.float32, sharding=whole)
  zero = jax.ShapeDtypeStruct((), jnp.int32, sharding=whole)
  return TrainState(zero, params, {"count": zero}, None, zero, zero)


def _make(like: TrainState) -> TrainState:
  """A state of random numbers; each process makes its shards."""

  def array(x: jax.ShapeDtypeStruct) -> jax.Array:
    def part(index: tuple[slice, ...] | None) -> np.ndarray:
      where = ranges.of_index(index, x.shape)
      shape = ranges.sizes(where)
      if x.dtype == jnp.int32:
        return np.zeros(shape, np.int32)
      return np.random.default_rng(where[0]).random(shape, np.float32)

    return jax.make_array_from_callback(x.shape, x.sharding, part)

  return jax.tree.map(array, like)


def measure(folder: pathlib.Path, mib: int, *, restore: bool) -> dict[str, Any]:
  """Saves or restores the state; all processes call it together."""
  mesh = jax.make_mesh((jax.device_count(),), ("fsdp",))
  # A small state first, so that imports and compilation do not count.
  small = _like(2, 64, mesh)
  first = Manager(folder / f"first-{restore}", config=Config())
  first.save(1, _make(small))
  first.restore(small)
  first.close()
  like = _like(max(mib // ARRAY_MIB, 1), ARRAY_MIB * 2**20 // 2048, mesh)
  manager = Manager(folder / "run", config=Config())
  before = _mark()
  if restore:
    restored = manager.restore(like)
    if restored is None:
      raise RuntimeError("nothing was restored")
    params = restored.state.params
  else:
    state = _make(like)
    manager.save(1, state)
    manager.wait()
    params = state.params
  peak = _memory("VmHWM") - before
  manager.close()
  shards = [
    shard.data
    for x in jax.tree.leaves(params)
    for shard in x.addressable_shards
  ]
  return {
    "mib": sum(data.nbytes for data in shards) / 2**20,
    "peak": peak / 2**20,
    "hashes": [array_hash(data) for data in shards],
  }


def _start(
  folder: pathlib.Path, mib: int, processes: int, *options: str
) -> list[dict[str, Any]]:
  """Starts the processes; returns the measurement of each."""
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  base = {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "",
    "MICO_JAX_COORDINATOR": f"127.0.0.1:{port}",
    "MICO_JAX_NUM_PROCESSES": str(processes),
  }
  command = [
    *(sys.executable, "-m", "mico_jax.benchmarks.shard_memory"),
    *("--mib", str(mib), "--worker", str(folder), *options),
  ]
  started = [
    subprocess.Popen(
      command,
      env={**base, "MICO_JAX_PROCESS_ID": str(i)},
      stdout=subprocess.PIPE,
      text=True,
    )
    for i in range(processes)
  ]
  try:
    texts = [process.communicate(timeout=900)[0] for process in started]
  finally:
    for process in started:
      process.kill()
  if any(process.returncode for process in started):
    raise RuntimeError("a process failed, see above")
  return [json.loads(text.splitlines()[-1]) for text in texts]


def run(folder: pathlib.Path, mib: int, processes: int) -> dict[str, float]:
  """Saves in some processes and restores in as many new processes."""
  saved = _start(folder, mib, processes)
  restored = _start(folder, mib, processes, "--restore")
  if [x["hashes"] for x in saved] != [x["hashes"] for x in restored]:
    raise RuntimeError("the restored state differs from the saved one")
  ratio = lambda runs: round(max(x["peak"] / x["mib"] for x in runs), 3)
  return {
    "shard_mib": round(saved[0]["mib"], 3),
    "save": ratio(saved),
    "restore": ratio(restored),
  }


def main(argv: Sequence[str] | None = None) -> None:
  """Prints one JSON line."""
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--mib", type=int, default=2048, help="of the state")
  parser.add_argument("--processes", type=int, default=8)
  parser.add_argument("--dir", type=pathlib.Path, default=pathlib.Path("."))
  parser.add_argument("--worker", type=pathlib.Path, help=argparse.SUPPRESS)
  parser.add_argument("--restore", action="store_true", help=argparse.SUPPRESS)
  options = parser.parse_args(argv)
  if options.worker:
    distributed.initialize_from_env()
    result = measure(options.worker, options.mib, restore=options.restore)
    print(json.dumps(result))
    return
  options.dir.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=options.dir) as name:
    result = run(pathlib.Path(name), options.mib, options.processes)
  print(json.dumps({"mib": options.mib, **result}))


if __name__ == "__main__":
  main()
