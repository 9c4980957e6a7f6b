"""Opening a set of hundreds of millions of samples, as training does.

  python -m mico_jax.testing.endurance.many_samples --kind webdataset

writes the index of a set that is not there: files and columns are sparse and
hold what the first steps read, hashes of ids are all there and all different.
It is opened through the pipeline, with worker processes that open it again, and
some batches are read; then all of that once more in a new process. The first
turn looks for ids that repeat, and makes the selection of the split; later ones
find both in the user's cache. Prints seconds until the sources and the pipeline
are open and until the first batch, what opening added to memory, the place of a
row in the order, and the most memory (PSS, mapped files included) of all
processes from then on.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from mico_jax.config import Config, SourceConfig
from mico_jax.data.index import lines, places, samples, tars
from mico_jax.data.index.columns import lay_out
from mico_jax.data.index.repeats import hash_of
from mico_jax.data.order import Order
from mico_jax.data.storage import Storage
from mico_jax.testing.tiny_data import config_of, png, write_tar

BATCH, STEPS = 32, 8
KINDS = ("webdataset", "manifest")
SPLITS = 16  # one line in so many is of another split
_ROOM = 2048  # bytes of a sample in a shard
_LINE = 128  # bytes of a line
_PIECE = 1 << 22


class _Sparse:
  """An index file whose columns are zeros where nothing was written."""

  def __init__(
    self,
    path: pathlib.Path,
    dtypes: Mapping[str, str],
    counts: Mapping[str, int],
    meta: Mapping[str, Any],
  ):
    self._dtypes = {n: np.dtype(d) for n, d in dtypes.items()}
    head, self._places, size = lay_out(self._dtypes, counts, meta)
    self._file = os.open(path, os.O_RDWR | os.O_CREAT)
    os.truncate(self._file, size)
    os.pwrite(self._file, head, 0)

  def put(self, at: int, **values: Any) -> None:
    """Writes values into columns from row `at` on."""
    for name, value in values.items():
      dtype = self._dtypes[name]
      data = np.asarray(value, dtype).tobytes()
      os.pwrite(self._file, data, self._places[name] + at * dtype.itemsize)

  def close(self) -> None:
    """Closes the file."""
    os.close(self._file)


def _hashes(start: int, stop: int) -> np.ndarray:
  """A different number for each row, spread over 64 bits (splitmix64)."""
  with np.errstate(over="ignore"):
    z = np.arange(start, stop, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in (
      (30, 0xBF58476D1CE4E5B9),
      (27, 0x94D049BB133111EB),
    ):
      z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
  return (z ^ (z >> np.uint64(31))).view(np.int64)


def _stamped(path: pathlib.Path, size: int) -> dict[str, Any]:
  """What an index says of its file; makes the file, sparse, of that size."""
  with open(path, "ab") as file:
    file.truncate(size)
  then = time.time() - 3600
  os.utime(path, (then, then))
  stamp = Storage().stat(str(path))
  return {"stamp": list(stamp), "made": time.time_ns()}


def _example(folder: pathlib.Path) -> dict[str, Any]:
  """What the index of a shard says besides its numbers."""
  members = [("s.png", png(0)), ("s.txt", b"a cube")]
  tar = write_tar(folder / "example.tar", members)
  return samples.build(str(tar), Storage(), "first")[1]


def write_shards(
  folder: pathlib.Path, count: int, shards: int, read: Iterable[int]
) -> None:
  """Sparse shards and their indexes; `read`: the samples that are there."""
  each, example = count // shards, _example(folder)
  by_shard: dict[int, list[int]] = {}
  for index in read:
    by_shard.setdefault(index // each, []).append(index % each)
  dtypes = {**tars.DTYPES, **samples.DTYPES}
  members = (*tars.DTYPES, "member")
  counts = {n: each * (2 if n in members else 1) for n in dtypes}
  counts.update(name=each * 2 * 14, key=each * 10)
  for number in range(shards):
    path = folder / f"x-{number:06d}.tar"
    meta = {
      **example,
      **{"samples": each, "files": 2 * each, "sha256": f"{number:064x}"},
      **{"counts": [each], "kind": samples.kind_of("first")},
    }
    with open(path, "wb") as tar:
      for at in by_shard.get(number, ()):
        os.pwrite(tar.fileno(), png(at), at * _ROOM + 512)
        os.pwrite(tar.fileno(), b"a cube", at * _ROOM + 1536)
    meta |= _stamped(path, each * _ROOM + 1024)
    place = pathlib.Path(f"{path}{places.SUFFIX}")
    index = _Sparse(place, dtypes, counts, meta)
    index.put(0, id_hash=_hashes(number * each, (number + 1) * each))
    for at in by_shard.get(number, ()):
      sizes, first = [len(png(at)), 6], at * _ROOM + 512
      index.put(2 * at, offset=[first, first + 1024], size=sizes)
      index.put(2 * at, member=[2 * at, 2 * at + 1])
      key = f"{number:03d}{at:07d}"[:10].encode()
      index.put(at * 10, key=np.frombuffer(key, np.uint8))
      index.put(at, first=2 * at, key_end=(at + 1) * 10)
      if at:
        index.put(at - 1, key_end=at * 10)
    index.close()


def write_lines(folder: pathlib.Path, count: int, read: Iterable[int]) -> None:
  """A sparse manifest and its index; one line in `SPLITS` is of "test"."""
  path = folder / "manifest.jsonl"
  read = sorted(set(read))
  (folder / "a.png").write_bytes(png(7))
  with open(path, "wb") as file:
    for row in read:
      os.pwrite(file.fileno(), _line(row), row * _LINE)
  meta = {
    **{"sha256": f"{count:064x}", "samples": count, "good": count},
    **{
      "broken": -1,
      "splits": [None, "train", "test"],
      "kind": lines.LINES.kind,
    },
    "fields": ["id", "image", "captions.vision", "split"],
    **_stamped(path, count * _LINE),
  }
  place = pathlib.Path(f"{path}{places.SUFFIX}")
  index = _Sparse(place, lines.DTYPES, dict.fromkeys(lines.DTYPES, count), meta)
  for start in range(0, count, _PIECE):
    rows = np.arange(start, min(start + _PIECE, count))
    index.put(start, id_hash=_hashes(start, int(rows[-1]) + 1))
    index.put(start, split=np.where(rows % SPLITS, 1, 2))
  for row in read:
    line = _line(row).rstrip()
    index.put(row, start=row * _LINE, size=len(line), number=row + 1)
    index.put(row, id_hash=hash_of(f"s{row}"), fields=15)
  index.close()


def _line(row: int) -> bytes:
  fields = {
    "id": f"s{row}",
    "image": "a.png",
    "captions": {"vision": "a cube"},
    "split": "train" if row % SPLITS else "test",
  }
  return json.dumps(fields).encode().ljust(_LINE - 1) + b"\n"


def config_for(kind: str, folder: pathlib.Path, workers: int) -> Config:
  """A run over the set."""
  source = (
    SourceConfig(kind=kind, path=str(folder / "manifest.jsonl"), split="train")
    if kind == "manifest"
    else SourceConfig(kind=kind, path=str(folder / "x-*.tar"))
  )
  data = {"num_workers": workers, "prefetch": 2}
  return config_of(
    batch=BATCH, steps=STEPS, groups=("ti",), data=data, a=source
  )


def write(kind: str, folder: pathlib.Path, count: int, shards: int) -> None:
  """Writes the set; `count` is that of the index."""
  config = config_for(kind, folder, 0)
  size = count
  if kind == "manifest":  # rows of the split, in order
    size = count - -(-count // SPLITS)
  order = Order(config, {"a": size})
  wanted = [r.index for s in range(STEPS) for r in order.rows(s)[1]]
  wanted += [0, *(i * size // 512 for i in range(512))]
  if kind == "manifest":
    # Of SPLITS lines the first is left out.
    rest = SPLITS - 1
    write_lines(
      folder, count, (i // rest * SPLITS + i % rest + 1 for i in wanted)
    )
  else:
    write_shards(folder, count, shards, wanted)


def read(kind: str, folder: pathlib.Path, workers: int) -> dict[str, float]:
  """Opens the set and reads some batches, in this process."""
  from mico_jax.data.pipeline import Pipeline
  from mico_jax.data.sources import open_sources
  from mico_jax.data.tokenizer import make_tokenizer
  from mico_jax.data.usable import tell_groups
  from mico_jax.testing.endurance import host_memory

  config = config_for(kind, folder, workers)
  tokenizer = make_tokenizer(config.data.tokenizer)
  before, held = host_memory.total(), host_memory.total("Pss_Anon")
  begin, busy = time.perf_counter(), time.process_time()
  sources = open_sources(config)
  opened, busy = time.perf_counter(), time.process_time() - busy
  grown = host_memory.total("Pss_Anon") - held
  with host_memory.peak() as memory:
    tell_groups(config, sources)
    pipeline = Pipeline(config, tokenizer, sources=sources)
    ready = time.perf_counter()
    batches = iter(pipeline)
    _, _, batch = next(batches)
    first = time.perf_counter()
    weights = float(batch["weight"].sum())
    for _, _, batch in batches:
      weights += float(batch["weight"].sum())
    assert weights == BATCH * STEPS
    assert not pipeline.bad_samples.count
    start = time.perf_counter()
    for step in range(1000, 1100):
      pipeline.order.rows(step)
    place = (time.perf_counter() - start) / (100 * BATCH)
  return {
    "samples": len(sources["a"]),
    "open_seconds": opened - begin,
    "open_cpu_seconds": busy,
    "open_grown_mb": grown / 1e6,
    "pipeline_seconds": ready - begin,
    "first_batch_seconds": first - begin,
    "place_us": place * 1e6,
    "imported_mb": before / 1e6,
    "peak_pss_mb": memory.pss / 1e6,
    "of_it_anonymous_mb": memory.anonymous / 1e6,
    "processes": memory.processes,
  }


def main(argv: Sequence[str] | None = None) -> int:
  """Prints a line of JSON a turn."""
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
  )
  parser.add_argument("--kind", choices=KINDS, default=KINDS[0])
  parser.add_argument("--samples", type=int, default=300_000_000)
  parser.add_argument("--shards", type=int, default=3000)
  parser.add_argument("--workers", type=int, default=2, help="processes")
  parser.add_argument("--turns", type=int, default=2)
  parser.add_argument("--dir", help="an empty folder; default: a temporary one")
  parser.add_argument("--read", action="store_true", help=argparse.SUPPRESS)
  args = parser.parse_args(argv)
  if args.read:
    row = read(args.kind, pathlib.Path(args.dir), args.workers)
    print(json.dumps({k: round(v, 2) for k, v in row.items()}), flush=True)
    return 0
  with tempfile.TemporaryDirectory(dir=args.dir) as name:
    folder = pathlib.Path(name)
    data = folder / "data"
    data.mkdir()
    write(
      args.kind, data, args.samples // args.shards * args.shards, args.shards
    )
    command = [
      sys.executable,
      "-m",
      __spec__.name,
      "--read",
      "--dir",
      str(data),
    ]
    command += ["--kind", args.kind, "--workers", str(args.workers)]
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
    for _ in range(args.turns):
      subprocess.run(command, env=environment, check=True)
  return 0


if __name__ == "__main__":
  raise SystemExit(main())
