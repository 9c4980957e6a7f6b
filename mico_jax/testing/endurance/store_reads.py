"""Samples per second from a store that answers late.

  python -m mico_jax.testing.endurance.store_reads --kind webdataset

puts shards of small pictures, each in a record of 100 KB, into a store in
memory that waits before each answer, and reads them through the pipeline of a
run with a block cache that holds a tenth of them. Prints samples and megabytes
per second, CPU milliseconds per sample (copies of the store included), bytes
read over bytes of distinct records, the most reads in flight and the most of
the disk that the cache took.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import os
import pathlib
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from mico_jax.config import (
  Config,
  DataConfig,
  ModelConfig,
  SourceConfig,
  TaskConfig,
  TokenizerConfig,
  VisionConfig,
)
from mico_jax.data.pipeline import Pipeline
from mico_jax.data.shard_writers import WRITERS
from mico_jax.data.tokenizer import make_tokenizer
from mico_jax.testing import slow_store

RECORD = 100_000  # bytes
BATCH = 256
KINDS = tuple(WRITERS)


def _samples(count: int) -> Iterator[tuple[str, dict[str, Any], bytes]]:
  """A picture of one grey; what follows its end is read and not decoded."""
  for number in range(count):
    out = io.BytesIO()
    grey = np.full((32, 32, 3), number % 256, np.uint8)
    Image.fromarray(grey).save(out, "png")
    picture = out.getvalue()
    rest = np.random.default_rng(number).bytes(RECORD - len(picture))
    yield f"s{number}", {"caption": "a small cube"}, picture + rest


def fill(kind: str, count: int, shards: int) -> str:
  """Puts shards into the store; the pattern of their paths."""
  slow_store.register()
  each = -(-count // shards)
  samples = _samples(count)
  with tempfile.TemporaryDirectory() as folder:
    for shard in range(shards):
      name = f"x-{shard:03d}.{WRITERS[kind].ending}"
      path = pathlib.Path(folder) / name
      writer = WRITERS[kind](str(path))
      for _ in range(min(each, count - shard * each)):
        sample_id, fields, picture = next(samples)
        writer.write(sample_id, fields, {"image": picture})
      writer.close()
      slow_store.put(f"slow://set/{name}", path.read_bytes())
      path.unlink()
  return f"slow://set/x-*.{WRITERS[kind].ending}"


def config_of(
  kind: str, path: str, count: int, threads: int, cache: float
) -> Config:
  """A run that reads the pictures."""
  return Config(
    model=ModelConfig(vision=VisionConfig(image_size=32, patch_size=16)),
    data=DataConfig(
      sources={"a": SourceConfig(kind=kind, path=path)},
      tokenizer=TokenizerConfig(kind="omniworld"),
      num_threads=threads,
      cache_gb=cache * count * RECORD / 2**30,
    ),
    tasks={
      "one": TaskConfig(
        sources={"a": 1},
        batch_size=BATCH,
        objectives={"contrastive": ("ti",)},
      )
    },
  )


def _on_disk(folder: pathlib.Path) -> int:
  return sum(f.stat().st_blocks * 512 for f in folder.rglob("*") if f.is_file())


def measure(config: Config, count: int, latency: float) -> dict[str, Any]:
  """Reads each sample once.

  Args:
    config: of `config_of`.
    count: samples.
    latency: seconds before each answer.
  """
  blocks = pathlib.Path(os.environ["XDG_CACHE_HOME"]) / "mico_jax" / "blocks"
  tokenizer = make_tokenizer(config.data.tokenizer)
  pipeline = Pipeline(config, tokenizer, end_step=count // BATCH)
  knobs = slow_store.SlowFileSystem.knobs = slow_store.Knobs(latency=latency)
  disk, batches = 0, iter(pipeline)
  begin, busy = time.perf_counter(), time.process_time()
  for number, _ in enumerate(batches):
    if number % 8 == 0:
      disk = max(disk, _on_disk(blocks))
  seconds = time.perf_counter() - begin
  read = count // BATCH * BATCH
  return {
    "samples_per_second": read / seconds,
    "mb_per_second": read * RECORD / seconds / 1e6,
    "cpu_ms_per_sample": (time.process_time() - busy) / read * 1e3,
    "received_over_records": knobs.received / (read * RECORD),
    "most_reads_in_flight": knobs.most,
    "reads": knobs.reads,
    "disk_mb": disk / 1e6,
    "limit_mb": config.data.cache_gb * 2**30 / 1e6,
  }


def main(argv: Sequence[str] | None = None) -> int:
  """Prints a line of JSON a turn."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--kind", choices=KINDS, default=KINDS[0])
  parser.add_argument("--samples", type=int, default=8192)
  parser.add_argument("--shards", type=int, default=16)
  parser.add_argument("--latency-ms", type=float, default=50.0)
  parser.add_argument("--threads", type=int, default=2, help="that decode")
  parser.add_argument("--cache", type=float, default=0.1, help="of the set")
  parser.add_argument("--turns", type=int, default=3)
  args = parser.parse_args(argv)
  with tempfile.TemporaryDirectory() as folder:
    os.environ["XDG_CACHE_HOME"] = folder
    path = fill(args.kind, args.samples, args.shards)
    config = config_of(args.kind, path, args.samples, args.threads, args.cache)
    for turn in range(args.turns):
      config = dataclasses.replace(config, seed=turn)
      row = measure(config, args.samples, args.latency_ms / 1e3)
      print(json.dumps({k: round(v, 3) for k, v in row.items()}), flush=True)
  return 0


if __name__ == "__main__":
  raise SystemExit(main())
