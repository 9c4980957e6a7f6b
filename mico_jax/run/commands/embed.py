"""Embedding many files: in shards, resumable, broken files skipped.

A job works in `<out>.parts`: `job.json` says what is embedded with which
checkpoint, and each finished shard is one `.npz`, written atomically. A killed
job run again continues behind its last shard; at the end the shards become one
output and the folder goes.
"""

from __future__ import annotations

import concurrent.futures
import json
import os
import pathlib
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from mico_jax import extras
from mico_jax.checkpoint import manifest as manifest_lib
from mico_jax.config import ConfigError
from mico_jax.data.guard import StalledDecoder
from mico_jax.data.stalled import EVALUATION, REASON, Stalled
from mico_jax.inference.omni_model import OmniModel
from mico_jax.inference.prepare import NOT_FINITE, Item, not_finite
from mico_jax.modalities import MODALITIES, DecodeError
from mico_jax.run.commands.entries import EmbedItem, failing, writable

FORMATS = (".parquet", ".npy", ".npz")
_JOB = "embed"  # stands for a source in the list of stalled files


@dataclass(frozen=True)
class EmbedReport:
  """Outcome of an embedding job.

  Attributes:
    out: the output file.
    items: embedded, those of an earlier part of the job included.
    failed: files that were skipped.
    resumed: items that an earlier part had embedded.
    seconds: of this part.
    items_per_second: of this part.
    errors: file that lists the skipped ones; "" if there are none.
  """

  out: str
  items: int
  failed: int
  resumed: int
  seconds: float
  items_per_second: float
  errors: str = ""


def check_out(
  out: str | os.PathLike[str],
  *,
  overwrite: bool,
  inputs: Sequence[str] = (),
) -> pathlib.Path:
  """Checks an output path before any work is done.

  Args:
    out: of the job.
    overwrite: whether existing files may be replaced.
    inputs: files that must not be.

  Raises:
    ConfigError: for an unknown format, a missing package or an existing file.
  """
  path = pathlib.Path(out)
  if path.suffix not in FORMATS:
    raise ConfigError(
      f"--out {str(path)!r}: the name must end in {', '.join(FORMATS)}."
    )
  if path.suffix == ".parquet":
    try:
      import pyarrow  # noqa: F401
    except ImportError:
      raise ConfigError(
        f"--out x.parquet needs pyarrow: {extras.install('eval')}, or write "
        ".npy."
      ) from None
  rows = _rows_path(path)
  for file in (path, rows):
    if file is not None and file.exists() and not overwrite:
      raise ConfigError(f"{file} exists; give another --out or --overwrite.")
  # A loop of links is no error here, a NUL in a name is found when it is read.
  real = {os.path.realpath(file) for file in inputs if "\0" not in file}
  if rows is not None and os.path.realpath(rows) in real:
    raise ConfigError(
      f"--out {str(path)!r} lists its rows in {rows}, which is an input; give "
      "another --out."
    )
  return path


def _rows_path(path: pathlib.Path) -> pathlib.Path | None:
  """The list of rows beside an output; None: the output holds it itself."""
  return None if path.suffix == ".parquet" else path.with_suffix(".jsonl")


def embed_files(
  model: OmniModel,
  entries: Sequence[EmbedItem],
  out: str | os.PathLike[str],
  *,
  fingerprint: str = "",
  shard_size: int = 256,
  overwrite: bool = False,
  progress: Callable[[int, int, int], None] | None = None,
) -> EmbedReport:
  """Embeds files and writes one row per readable file, in order.

  Args:
    model: from `mico_jax.load`.
    entries: files of any mix of modalities.
    out: `.parquet` (id, modality, path, source, index, embedding), or
      `.npy`/`.npz` with a `.jsonl` of all but the embedding beside it.
    fingerprint: of the checkpoint; a job is only resumed with the same one.
    shard_size: files per shard: what a kill can cost.
    overwrite: replace an existing output, drop an unfinished other job.
    progress: called with (done, total, embedded since the last call).

  Raises:
    ConfigError: if nothing is given, the output exists, or `<out>.parts`
      belongs to another job.
    DecodeError: if not one file could be read.
    StalledDecoder: for a file that takes longer than `data.timeout`; the same
      job run again skips it when it stalls again.
    TransientError: for storage or memory that stays short.
  """
  path = check_out(out, overwrite=overwrite)
  if not entries:
    raise ConfigError("nothing to embed: no file given.")
  parts = _open_job(path, entries, fingerprint, shard_size, overwrite)
  start_time = time.monotonic()
  starts = range(0, len(entries), shard_size)
  todo = [s for s in starts if not _shard(parts, s).exists()]
  resumed = len(entries) - sum(len(entries[s : s + shard_size]) for s in todo)
  done = resumed
  if progress is not None:
    progress(done, len(entries), 0)
  for start, arrays, errors in _prepared(
    model, entries, todo, shard_size, parts
  ):
    rows = _embed_shard(model, entries, arrays, errors)
    _write_shard(_shard(parts, start), rows, errors)
    done += len(entries[start : start + shard_size])
    if progress is not None:
      progress(done, len(entries), len(rows))
  seconds = time.monotonic() - start_time
  items, failed = _merge(path, parts, entries, starts, model.embed_dim)
  shutil.rmtree(parts)
  worked = len(entries) - resumed
  return EmbedReport(
    out=str(path),
    items=items,
    failed=failed,
    resumed=resumed,
    seconds=seconds,
    items_per_second=worked / max(seconds, 1e-9),
    errors=str(_errors_path(path)) if failed else "",
  )


def _errors_path(path: pathlib.Path) -> pathlib.Path:
  return path.with_name(f"{path.name}.errors.jsonl")


def _shard(parts: pathlib.Path, start: int) -> pathlib.Path:
  return parts / f"{start:09d}.npz"


def _open_job(
  path: pathlib.Path,
  entries: Sequence[EmbedItem],
  fingerprint: str,
  shard_size: int,
  overwrite: bool,
) -> pathlib.Path:
  """The job's folder, new or of an earlier part."""
  parts = path.with_name(f"{path.name}.parts")
  listed = json.dumps(
    [{**e.describe(), **e.statement()} for e in entries]
  ).encode()
  job = {
    "checkpoint": fingerprint,
    "entries": manifest_lib.sha256(listed),
    "count": len(entries),
    "shard_size": shard_size,
  }
  note = parts / "job.json"
  if note.exists():
    if json.loads(note.read_text()) == job:
      return parts
    if not overwrite:
      raise ConfigError(
        f"{parts} belongs to an unfinished job with other files or another "
        "checkpoint; finish that one, or give another --out or --overwrite."
      )
  shutil.rmtree(parts, ignore_errors=True)
  parts.mkdir(parents=True)
  _write_atomically(note, json.dumps(job).encode())
  return parts


def _write_atomically(path: pathlib.Path, data: bytes) -> None:
  part = path.with_name(f"{path.name}.tmp")
  part.write_bytes(data)
  os.replace(part, path)


# Prepared arrays of one shard: modality -> (indices in the job, rows).
_Arrays = dict[str, tuple[list[int], np.ndarray]]


def _prepared(
  model: OmniModel,
  entries: Sequence[EmbedItem],
  starts: Sequence[int],
  shard_size: int,
  parts: pathlib.Path,
) -> Iterator[tuple[int, _Arrays, dict[int, str]]]:
  """Decoded shards; the next one is read while this one is embedded."""
  stalled = Stalled(str(parts))

  def prepare(key: str, mine: list[int]) -> tuple[Any, list[int], list[str]]:
    """Rows, their places in `mine`, and the errors of the other places."""
    while True:
      # A quarantined file is not read, it fails with the reason.
      values = [
        entries[i].item()
        if stalled.id(_JOB, i) is None
        else Item(failing(REASON), name=entries[i].path)
        for i in mine
      ]
      try:
        rows, kept, failed = model.preparer.prepare(key, values)
        return rows, kept, [str(error) for error in failed]
      except StalledDecoder as error:
        error.source, error.index = _JOB, mine[error.index]
        if not stalled.note(error, EVALUATION):
          raise

  def read(start: int) -> tuple[int, _Arrays, dict[int, str]]:
    indices = range(start, min(start + shard_size, len(entries)))
    arrays: _Arrays = {}
    errors: dict[int, str] = {}
    for key in dict.fromkeys(entries[i].key for i in indices):
      mine = [i for i in indices if entries[i].key == key]
      rows, kept, failed = prepare(key, mine)
      good = {mine[k] for k in kept}
      bad = [i for i in mine if i not in good]
      errors.update(zip(bad, failed, strict=True))
      if rows is not None:
        arrays[key] = ([mine[k] for k in kept], rows)
    return start, arrays, errors

  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    waiting = None
    for start in starts:
      following = pool.submit(read, start)
      if waiting is not None:
        yield waiting.result()
      waiting = following
    if waiting is not None:
      yield waiting.result()


def _embed_shard(
  model: OmniModel,
  entries: Sequence[EmbedItem],
  arrays: _Arrays,
  errors: dict[int, str],
) -> dict[int, Float[np.ndarray, " E"]]:
  """Finite rows by index; the others become errors."""
  rows: dict[int, np.ndarray] = {}
  for key, (indices, array) in arrays.items():
    vectors = model.embed_arrays({key: array}, MODALITIES[key].letter)
    for i, row, bad in zip(indices, vectors, not_finite(vectors), strict=True):
      if bad:
        errors[i] = f"{entries[i].path}: the embedding {NOT_FINITE}"
      else:
        rows[i] = row
  return rows


def _write_shard(
  path: pathlib.Path, rows: dict[int, np.ndarray], errors: dict[int, str]
) -> None:
  indices = sorted(rows)
  _write_atomically(
    path,
    manifest_lib.pack_arrays(
      {
        "indices": np.asarray(indices, np.int64),
        "embeddings": np.stack([rows[i] for i in indices])
        if indices
        else np.zeros((0, 0), np.float32),
        "errors": np.frombuffer(json.dumps(errors).encode(), np.uint8),
      }
    ),
  )


def _merge(
  path: pathlib.Path,
  parts: pathlib.Path,
  entries: Sequence[EmbedItem],
  starts: Sequence[int],
  width: int,
) -> tuple[int, int]:
  """Writes the output from all shards; returns items and failures."""
  indices: list[int] = []
  vectors = []
  errors: dict[int, str] = {}
  for start in starts:
    shard = manifest_lib.unpack_arrays(_shard(parts, start).read_bytes())
    indices += shard["indices"].tolist()
    vectors.append(shard["embeddings"].reshape(-1, width))
    failures = json.loads(shard["errors"].tobytes())
    errors.update({int(i): text for i, text in failures.items()})
  lines = [
    json.dumps(
      {**entries[i].describe(), "error": writable(text)}, ensure_ascii=False
    )
    for i, text in sorted(errors.items())
  ]
  if lines:
    text = "".join(f"{line}\n" for line in lines)
    _write_atomically(_errors_path(path), text.encode())
  else:  # Of a former output that was replaced.
    _errors_path(path).unlink(missing_ok=True)
  if not indices:
    first = errors[min(errors)]
    raise DecodeError(
      f"none of {len(entries)} files could be read; the first: {first} See "
      f"{_errors_path(path)}."
    )
  _write_output(path, [entries[i] for i in indices], np.concatenate(vectors))
  return len(indices), len(errors)


def _write_output(
  path: pathlib.Path,
  entries: Sequence[EmbedItem],
  vectors: Float[np.ndarray, "N E"],
) -> None:
  part = path.with_name(f"{path.stem}.tmp{path.suffix}")
  if path.suffix == ".parquet":
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [e.describe() for e in entries]
    flat = pa.array(np.ascontiguousarray(vectors, np.float32).reshape(-1))
    columns: dict[str, Any] = {
      **{name: [row[name] for row in rows] for name in rows[0]},
      "embedding": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
    }
    pq.write_table(pa.table(columns), part)
  else:
    if path.suffix == ".npy":
      np.save(part, vectors)
    else:
      np.savez(part, embeddings=vectors)
    text = "".join(
      json.dumps(e.describe(), ensure_ascii=False) + "\n" for e in entries
    )
    listed = _rows_path(path)
    assert listed is not None  # Only .parquet has none.
    _write_atomically(listed, text.encode())
  os.replace(part, path)
