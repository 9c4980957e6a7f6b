"""Memory of the loader over hundreds of thousands of samples.

  python -m mico_jax.testing.endurance.loader_memory --workers 2

reads local WebDataset shards of small pictures again and again through the
pipeline of a run, and looks at the memory of all its processes after every
`--every` samples: the sum of what is resident (libraries that they share count
several times; other programs do not change it), and what of it no file backs.
What it grew by is that of the last quarter against the first quarter after the
warm-up. Prints a line of JSON for each look, then one with the growth; exits 1
where it is above `--limit`.
"""

from __future__ import annotations

import argparse
import io
import json
import pathlib
import statistics
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from typing import Any

from mico_jax.config import Config, SourceConfig
from mico_jax.data.pipeline import Pipeline
from mico_jax.data.tokenizer import make_tokenizer
from mico_jax.testing.endurance import host_memory
from mico_jax.testing.tiny_data import config_of, png

BATCH = 64


def write_shards(folder: pathlib.Path, count: int, shards: int) -> str:
  """Shards of small pictures with a text; the pattern of their paths."""
  each = -(-count // shards)
  for shard in range(shards):
    with tarfile.open(folder / f"x-{shard:04d}.tar", "w") as tar:
      for number in range(shard * each, min(count, (shard + 1) * each)):
        for ending, data in (
          ("png", png(number)),
          ("txt", f"a small cube {number}".encode()),
        ):
          info = tarfile.TarInfo(f"s{number}.{ending}")
          info.size = len(data)
          tar.addfile(info, io.BytesIO(data))
  return str(folder / "x-*.tar")


def config_for(path: str, samples: int, workers: int, threads: int) -> Config:
  """A run that reads so many samples of the shards."""
  return config_of(
    batch=BATCH,
    steps=samples // BATCH,
    groups=("ti",),
    data={"num_workers": workers, "num_threads": threads, "cache_mib": 0},
    a=SourceConfig(kind="webdataset", path=path),
  )


def watch(config: Config, every: int) -> Iterator[dict[str, Any]]:
  """Reads the run's batches; what memory was after every so many samples."""
  pipeline = Pipeline(config, make_tokenizer(config.data.tokenizer))
  begin, read, due = time.perf_counter(), 0, every
  for _, _, batch in pipeline:
    read += len(batch["row"])
    if read >= due:
      due += every
      seconds = time.perf_counter() - begin
      yield {
        "samples": read,
        "rss_mb": host_memory.total("Rss") / 1e6,
        "anonymous_mb": host_memory.total("Pss_Anon") / 1e6,
        "samples_per_second": read / seconds,
      }


def growth(looks: Sequence[dict[str, Any]], field: str) -> float:
  """How much the last quarter holds beyond the first, as a share of it."""
  part = max(len(looks) // 4, 1)
  first = statistics.fmean(row[field] for row in looks[:part])
  last = statistics.fmean(row[field] for row in looks[-part:])
  return last / first - 1


def main(argv: Sequence[str] | None = None) -> int:
  """Prints lines of JSON; 1 if memory grew by more than the limit."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--samples", type=int, default=200_000, help="after it")
  parser.add_argument("--warm", type=int, default=20_000, help="samples before")
  parser.add_argument("--every", type=int, default=5_000)
  parser.add_argument("--records", type=int, default=20_000, help="of the set")
  parser.add_argument("--shards", type=int, default=20)
  parser.add_argument(
    "--workers", type=int, default=2, help="processes; 0: none"
  )
  parser.add_argument(
    "--threads", type=int, default=2, help="without processes"
  )
  parser.add_argument("--limit", type=float, default=0.02)
  args = parser.parse_args(argv)
  with tempfile.TemporaryDirectory() as folder:
    path = write_shards(pathlib.Path(folder), args.records, args.shards)
    total = args.warm + args.samples
    config = config_for(path, total + args.every, args.workers, args.threads)
    looks = []
    for look in watch(config, args.every):
      if args.warm < look["samples"] <= total:
        looks.append(look)
      print(json.dumps({k: round(v, 2) for k, v in look.items()}), flush=True)
  grown = {name: growth(looks, name) for name in ("rss_mb", "anonymous_mb")}
  row = {f"{name}_growth": round(value, 5) for name, value in grown.items()}
  print(json.dumps({**row, "limit": args.limit}), flush=True)
  return int(max(grown.values()) > args.limit)


if __name__ == "__main__":
  raise SystemExit(main())
