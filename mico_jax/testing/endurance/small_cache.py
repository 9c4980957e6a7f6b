"""Streaming a set that is a hundred times as large as the cache of its blocks.

  python -m mico_jax.testing.endurance.small_cache --kind webdataset --times 100

puts shards of small pictures, each in a record of 100 KB, into a store in
memory that waits before each answer, every shard under several names, and reads
samples at random through the pipeline of a run whose cache holds 1 / `--times`
of the set. Prints samples per second, the longest wait for a batch after the
first ones and the median one, bytes read over bytes of the records, and the
most of the disk that the cache took, looked at the whole time. Exits 1 where
that was more than the limit, a batch was late by `--stall` seconds or a sample
was replaced.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import tempfile
import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from mico_jax.config import Config, SourceConfig
from mico_jax.data.pipeline import Pipeline
from mico_jax.data.shard_writers import WRITERS
from mico_jax.data.tokenizer import make_tokenizer
from mico_jax.testing import slow_store
from mico_jax.testing.tiny_data import config_of, png

RECORD = 100_000  # bytes
SHARD = 256  # records
BATCH = 64
_WARM = 8  # batches until waits count
KINDS = tuple(WRITERS)


def fill(kind: str, shards: int, names: int) -> str:
  """Puts shards into the store, each under several names; their pattern."""
  store = slow_store.register().store
  ending = WRITERS[kind].ending
  rng = np.random.default_rng(0)
  with tempfile.TemporaryDirectory() as folder:
    for shard in range(shards):
      path = pathlib.Path(folder) / "x"
      writer = WRITERS[kind](str(path))
      for number in range(SHARD):
        # What follows the end of a picture is read and not decoded.
        picture = png(number)
        picture += rng.bytes(RECORD - len(picture))
        fields = {"caption": "a small cube"}
        writer.write(f"s{shard}-{number}", fields, {"image": picture})
      writer.close()
      first = f"/set/x-{shard:04d}-000.{ending}"
      slow_store.put(f"slow:/{first}", path.read_bytes())
      path.unlink()
      for name in range(1, names):
        other = f"/set/x-{shard:04d}-{name:03d}.{ending}"
        store[other] = store[first]
  return f"slow://set/x-*.{ending}"


def config_for(
  kind: str, path: str, steps: int, size: int, times: float
) -> Config:
  """A run over a set of `size` bytes, with a cache of a part of it."""
  return config_of(
    batch=BATCH,
    steps=steps,
    groups=("ti",),
    data={"num_threads": 2, "cache_gb": size / times / 2**30},
    a=SourceConfig(kind=kind, path=path),
  )


class _Disk:
  """The most bytes of files in a folder, looked at by a thread."""

  def __init__(self, folder: pathlib.Path):
    self.most = 0
    self._folder, self._end = folder, threading.Event()
    self._thread = threading.Thread(target=self._watch, daemon=True)
    self._thread.start()

  def _watch(self) -> None:
    while not self._end.wait(0.1):
      self.look()

  def look(self) -> None:
    """Looks once."""
    total = 0
    for file in self._folder.rglob("*"):
      try:
        total += file.stat().st_blocks * 512
      except FileNotFoundError:  # went meanwhile
        continue
    self.most = max(self.most, total)

  def close(self) -> None:
    """Looks a last time."""
    self._end.set()
    self._thread.join()
    self.look()


def measure(config: Config, latency: float) -> dict[str, Any]:
  """Reads the batches of a run.

  Args:
    config: of `config_for`.
    latency: seconds before each answer.
  """
  cache = pathlib.Path(os.environ["XDG_CACHE_HOME"]) / "mico_jax" / "blocks"
  pipeline = Pipeline(config, make_tokenizer(config.data.tokenizer))
  knobs = slow_store.SlowFileSystem.knobs = slow_store.Knobs(latency=latency)
  disk, waits, read = _Disk(cache), [], 0
  begin = last = time.perf_counter()
  for _, _, batch in pipeline:
    now = time.perf_counter()
    waits.append(now - last)
    last, read = now, read + len(batch["row"])
  disk.close()
  waits = waits[_WARM:] or waits
  return {
    "samples": read,
    "samples_per_second": read / (last - begin),
    "median_wait_s": statistics.median(waits),
    "longest_wait_s": max(waits),
    "received_over_records": knobs.received / (read * RECORD),
    "disk_mb": disk.most / 1e6,
    "limit_mb": config.data.cache_gb * 2**30 / 1e6,
    "replaced": pipeline.bad_samples.count,
  }


def main(argv: Sequence[str] | None = None) -> int:
  """Prints a line of JSON; 1 where something is not as promised."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--kind", choices=KINDS, default=KINDS[0])
  parser.add_argument("--samples", type=int, default=32768, help="to read")
  parser.add_argument("--shards", type=int, default=16)
  parser.add_argument("--names", type=int, default=32, help="of each shard")
  parser.add_argument("--times", type=float, default=100, help="set over cache")
  parser.add_argument("--latency-ms", type=float, default=50.0)
  parser.add_argument("--stall", type=float, default=10.0, help="seconds")
  args = parser.parse_args(argv)
  with tempfile.TemporaryDirectory() as folder:
    os.environ["XDG_CACHE_HOME"] = folder
    path = fill(args.kind, args.shards, args.names)
    size = args.shards * args.names * SHARD * RECORD
    steps = args.samples // BATCH
    config = config_for(args.kind, path, steps, size, args.times)
    row = {"set_mb": size / 1e6, **measure(config, args.latency_ms / 1e3)}
  print(json.dumps({k: round(v, 3) for k, v in row.items()}), flush=True)
  return int(
    row["disk_mb"] > row["limit_mb"]
    or row["longest_wait_s"] > args.stall
    or row["replaced"] > 0
  )


if __name__ == "__main__":
  raise SystemExit(main())
