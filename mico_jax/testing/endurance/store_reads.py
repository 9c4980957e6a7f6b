"""Samples per second from a store that answers late.

  python -m mico_jax.testing.endurance.store_reads --kind webdataset --workers 2

puts shards of small pictures, each in a record of 100 KB, into a store that
waits before each answer (`mico_jax.testing.late_files`: local files in memory,
which cost a copy), and reads them through the pipeline of a run with a block
cache that holds a tenth of them. Prints samples and megabytes per second, CPU
milliseconds per sample (of all processes; copies of the store included), bytes
read over bytes of the records, the most reads in flight and the most of the
disk that the cache took. The start of the processes and the first batches are
not counted. With `--floor` it prints what the store alone takes: as many
threads as read ahead ask it for the same bytes and drop them.
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import itertools
import json
import multiprocessing
import os
import pathlib
import resource
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
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
from mico_jax.data.sources import open_sources
from mico_jax.data.storage.io_threads import THREADS
from mico_jax.data.storage.stores import FsspecStore
from mico_jax.data.tokenizer import make_tokenizer
from mico_jax.testing import late_files  # processes that import this find it

RECORD = 100_000  # bytes
BATCH = 256
WARM = 16  # batches before the clock starts
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


def fill(kind: str, count: int, shards: int, folder: pathlib.Path) -> str:
  """Puts shards into a folder; the pattern of their paths in the store."""
  each = -(-count // shards)
  samples = _samples(count)
  for shard in range(shards):
    path = folder / f"x-{shard:03d}.{WRITERS[kind].ending}"
    writer = WRITERS[kind](str(path))
    for _ in range(min(each, count - shard * each)):
      sample_id, fields, picture = next(samples)
      writer.write(sample_id, fields, {"image": picture})
    writer.close()
  return f"late:/{folder}/x-*.{WRITERS[kind].ending}"


def config_of(
  kind: str,
  path: str,
  count: int,
  threads: int,
  cache: float,
  workers: int = 0,
) -> Config:
  """A run that reads the pictures."""
  return Config(
    model=ModelConfig(vision=VisionConfig(image_size=32, patch_size=16)),
    data=DataConfig(
      sources={"a": SourceConfig(kind=kind, path=path)},
      tokenizer=TokenizerConfig(kind="omniworld"),
      num_threads=threads,
      num_workers=workers,
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


def _cpu() -> float:
  """CPU seconds of this process and those that it started."""
  ended = resource.getrusage(resource.RUSAGE_CHILDREN)
  total = time.process_time() + ended.ru_utime + ended.ru_stime
  for child in multiprocessing.active_children():
    fields = pathlib.Path(f"/proc/{child.pid}/stat").read_text()
    user, system = fields.rpartition(")")[2].split()[11:13]
    total += (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")
  return total


def measure(config: Config, count: int) -> dict[str, Any]:
  """Reads each sample twice, after some batches that are not counted.

  Args:
    config: of `config_of`.
    count: samples of the set.
  """
  blocks = pathlib.Path(os.environ["XDG_CACHE_HOME"]) / "mico_jax" / "blocks"
  tokenizer = make_tokenizer(config.data.tokenizer)
  batches = 2 * count // BATCH
  # The last that are counted are made while others are on their way.
  end = WARM + batches + 2 * config.data.prefetch
  steps = iter(Pipeline(config, tokenizer, end_step=end))
  for _ in itertools.islice(steps, WARM):
    pass
  disk, before = 0, late_files.counts()
  begin, busy = time.perf_counter(), _cpu()
  for number, _ in enumerate(itertools.islice(steps, batches)):
    if number % 8 == 0:
      disk = max(disk, _on_disk(blocks))
  seconds, cpu = time.perf_counter() - begin, _cpu() - busy
  reads, received, most = late_files.counts()
  read = batches * BATCH
  for _ in steps:  # an iterator that is left would end in its own time
    pass
  return {
    "samples_per_second": read / seconds,
    "mb_per_second": read * RECORD / seconds / 1e6,
    "cpu_ms_per_sample": cpu / read * 1e3,
    "received_over_records": (received - before[1]) / (read * RECORD),
    "most_reads_in_flight": most,
    "reads": reads - before[0],
    "disk_mb": disk / 1e6,
    "limit_mb": config.data.cache_gb * 2**30 / 1e6,
  }


def floor(path: str, count: int) -> dict[str, Any]:
  """The same bytes by threads that do nothing with them.

  Args:
    path: of one shard in the store.
    count: reads.
  """
  store = FsspecStore()
  places = store.stat(path).size // RECORD - 1
  begin, busy = time.perf_counter(), time.process_time()
  with ThreadPoolExecutor(THREADS) as threads:
    ask = lambda i: len(store.read_range(path, i % places * RECORD, RECORD))
    read = sum(threads.map(ask, range(count)))
  seconds, cpu = time.perf_counter() - begin, time.process_time() - busy
  return {
    "samples_per_second": count / seconds,
    "mb_per_second": read / seconds / 1e6,
    "cpu_ms_per_sample": cpu / count * 1e3,
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
  parser.add_argument(
    "--workers", type=int, default=0, help="processes (data.num_workers)"
  )
  parser.add_argument("--floor", action="store_true", help="the store alone")
  parser.add_argument("--cache", type=float, default=0.1, help="of the set")
  parser.add_argument("--turns", type=int, default=3)
  args = parser.parse_args(argv)
  memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
  with (
    tempfile.TemporaryDirectory() as cache,
    tempfile.TemporaryDirectory(dir=memory) as folder,
    tempfile.TemporaryDirectory(dir=memory) as counts,
  ):
    os.environ["XDG_CACHE_HOME"] = cache
    os.environ[late_files.COUNTS] = counts
    os.environ[late_files.LATENCY] = "0"
    path = fill(args.kind, args.samples, args.shards, pathlib.Path(folder))
    config = config_of(
      args.kind, path, args.samples, args.threads, args.cache, args.workers
    )
    open_sources(config)  # makes the indexes
    os.environ[late_files.LATENCY] = str(args.latency_ms / 1e3)
    for turn in range(args.turns):
      if args.floor:
        ending = WRITERS[args.kind].ending
        row = floor(f"late:/{folder}/x-000.{ending}", args.samples)
      else:
        config = dataclasses.replace(config, seed=turn)
        row = measure(config, args.samples)
      print(json.dumps({k: round(v, 3) for k, v in row.items()}), flush=True)
  return 0


if __name__ == "__main__":
  raise SystemExit(main())
