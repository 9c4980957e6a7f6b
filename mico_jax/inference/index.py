"""A searchable index of embeddings: a folder of arrays and their rows.

    OUT/index.json                      width, checkpoint, parts
    OUT/emb/emb_0.npy                   float32 [N E], unit-norm
    OUT/metadata/metadata_0.parquet     a row for each: id, modality, path, ...

The arrays and tables are those that users of clip-retrieval and autofaiss know:
`faiss` reads the arrays as they are. Search is exact: every row is compared,
a block at a time, and equal scores rank in the order of the rows.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from mico_jax import extras
from mico_jax.config import ConfigError

FORMAT = "mico_jax index 1"
NOTE = "index.json"
COLUMNS = ("id", "modality", "path", "source", "index")
_BLOCK = 65_536  # rows that are compared at once


class Hit(NamedTuple):
  """An item that a search found.

  Attributes:
    score: cosine with the query, in [-1, 1].
    id: of the item.
    modality: of the item.
    path: of its file, or what its source has in its place.
    source: path of the data it is from; "" for a file.
    index: of the sample in its source; of a file, in the command that added it.
  """

  score: float
  id: str
  modality: str
  path: str
  source: str
  index: int


def array_path(folder: pathlib.Path, part: int) -> pathlib.Path:
  """The embeddings of a part."""
  return folder / "emb" / f"emb_{part}.npy"


def table_path(folder: pathlib.Path, part: int) -> pathlib.Path:
  """The rows of a part."""
  return folder / "metadata" / f"metadata_{part}.parquet"


def read_note(folder: pathlib.Path) -> dict[str, Any]:
  """The content of index.json.

  Raises:
    ConfigError: if the folder holds no index.
  """
  note: Any = None
  with contextlib.suppress(OSError, ValueError):
    note = json.loads((folder / NOTE).read_text())
  if not isinstance(note, dict) or note.get("format") != FORMAT:
    raise ConfigError(
      f"{folder} holds no index of embeddings; `mico-jax index --out {folder}` "
      "makes one."
    )
  return note


class Index:
  """Embeddings with their rows, in memory or mapped from files.

  Attributes:
    width: numbers of an embedding.
    checkpoint: path of the one that made them; "" if unknown.
    fingerprint: hash of that checkpoint's manifest; "" if unknown.
  """

  def __init__(
    self,
    parts: Sequence[Float[np.ndarray, "_ E"]],
    columns: Mapping[str, Sequence[Any]],
    *,
    checkpoint: str = "",
    fingerprint: str = "",
  ):
    """Takes embeddings and what their rows are.

    Args:
      parts: embeddings, unit-norm.
      columns: `COLUMNS`, of the rows of all parts together.
      checkpoint: see the class.
      fingerprint: see the class.

    Raises:
      ValueError: if the numbers of rows differ.
    """
    self._parts, self._columns = tuple(parts), columns
    self.width = self._parts[0].shape[1] if self._parts else 0
    self.checkpoint, self.fingerprint = checkpoint, fingerprint
    sizes = {name: len(columns[name]) for name in COLUMNS}
    if set(sizes.values()) != {sum(map(len, self._parts))}:
      raise ValueError(
        f"{sum(map(len, self._parts))} embeddings for columns of {sizes} rows."
      )

  @classmethod
  def open(cls, folder: str | os.PathLike[str]) -> Index:
    """Opens an index; its arrays are mapped, not read.

    Raises:
      ConfigError: if the folder holds no index, a file is missing, or pyarrow,
        which reads the tables, is.
    """
    folder = pathlib.Path(folder)
    note = read_note(folder)
    tables = read_tables(folder, note, COLUMNS)
    columns: dict[str, list[Any]] = {name: [] for name in COLUMNS}
    arrays = []
    for part, table in zip(note["parts"], tables, strict=True):
      arrays.append(
        _mapped(folder, part["number"], part["rows"], note["width"])
      )
      for name in COLUMNS:
        columns[name] += table[name]
    empty = np.zeros((0, note["width"]), np.float32)
    return cls(
      arrays or [empty],
      columns,
      checkpoint=note["checkpoint"],
      fingerprint=note["fingerprint"],
    )

  def __len__(self) -> int:
    """Number of items."""
    return len(self._columns["id"])

  def __repr__(self) -> str:
    """Its size and modalities."""
    listed = ", ".join(f"{n} {key}" for key, n in self.modalities.items())
    return f"Index({len(self)} x {self.width}: {listed or 'empty'})"

  @functools.cached_property
  def _masks(self) -> dict[str, Bool[np.ndarray, " N"]]:
    """Modality -> which rows are of it."""
    column = np.asarray(self._columns["modality"], dtype=object)
    return {key: column == key for key in dict.fromkeys(column.tolist())}

  def hit(self, row: int, score: float) -> Hit:
    """What a row is."""
    return Hit(score, *(self._columns[name][row] for name in COLUMNS))

  def nearest(
    self,
    queries: Float[np.ndarray, "Q E"],
    k: int = 10,
    modality: str = "",
  ) -> tuple[list[Int[np.ndarray, " K"]], list[Float[np.ndarray, " K"]]]:
    """Rows and cosines of the k most similar items, best first, by query.

    Args:
      queries: embeddings, unit-norm.
      k: how many; fewer if there are fewer.
      modality: of the items; "": any.

    Raises:
      ValueError: for queries of another width, that are not finite, a k below
        1, or a modality that the index does not have.
    """
    if queries.ndim != 2 or queries.shape[1] != self.width:
      raise ValueError(
        f"queries of shape {list(queries.shape)}; the index has embeddings of "
        f"{self.width} numbers, so [Q, {self.width}] is expected."
      )
    if k < 1 or not np.isfinite(queries).all():
      raise ValueError(f"{k=} and queries must be at least 1 and finite.")
    if modality and modality not in self._masks:
      raise ValueError(
        f"no {modality!r} in the index; it has {', '.join(self._masks)}."
      )
    mask = self._masks[modality] if modality else None
    return _best(self._parts, queries.astype(np.float32), k, mask)

  def search(
    self,
    queries: Float[np.ndarray, "Q E"],
    k: int = 10,
    modality: str = "",
  ) -> list[list[Hit]]:
    """The k items with the largest cosine, best first, for each query.

    See `nearest`, which gives their rows.
    """
    return [
      [
        self.hit(int(row), float(score))
        for row, score in zip(r, s, strict=True)
      ]
      for r, s in zip(*self.nearest(queries, k, modality), strict=True)
    ]

  @property
  def modalities(self) -> dict[str, int]:
    """Modality -> number of items."""
    return {key: int(mask.sum()) for key, mask in self._masks.items()}


def read_tables(
  folder: pathlib.Path, note: Mapping[str, Any], columns: Sequence[str]
) -> list[dict[str, list[Any]]]:
  """Columns of the tables of all parts.

  Raises:
    ConfigError: if pyarrow or a file is missing, or a table is damaged.
  """
  try:
    import pyarrow as pa
    import pyarrow.parquet as pq
  except ImportError:
    raise ConfigError(
      f"an index needs pyarrow: {extras.install('eval')}."
    ) from None
  tables = []
  for part in note["parts"]:
    path = table_path(folder, part["number"])
    try:
      table = pq.read_table(path, columns=list(columns)).to_pydict()
      rows = len(table[columns[0]])
    except (OSError, pa.ArrowException, KeyError) as error:
      raise ConfigError(f"{path}: cannot be read: {error}") from error
    if rows != part["rows"]:
      raise ConfigError(f"{path}: {rows} rows; {NOTE} says {part['rows']}.")
    tables.append(table)
  return tables


def _mapped(
  folder: pathlib.Path, part: int, rows: int, width: int
) -> Float[np.ndarray, "N E"]:
  path = array_path(folder, part)
  try:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
  except (OSError, ValueError) as error:
    raise ConfigError(f"{path}: cannot be read: {error}") from error
  if array.shape != (rows, width) or array.dtype != np.float32:
    raise ConfigError(
      f"{path}: {array.dtype} {list(array.shape)}; {NOTE} says float32 "
      f"[{rows}, {width}]."
    )
  return array


def _best(
  parts: Sequence[Float[np.ndarray, "_ E"]],
  queries: Float[np.ndarray, "Q E"],
  k: int,
  mask: Bool[np.ndarray, " N"] | None,
) -> tuple[list[Int[np.ndarray, " K"]], list[Float[np.ndarray, " K"]]]:
  """Rows and scores of the k best of all parts; equal ones in their order."""
  rows = [np.zeros(0, np.int64)] * len(queries)
  scores = [np.zeros(0, np.float32)] * len(queries)
  start = 0
  for part in parts:
    for first in range(0, len(part), _BLOCK):
      block = part[first : first + _BLOCK]
      found = np.arange(start + first, start + first + len(block))
      if mask is not None:
        kept = mask[found]
        if not kept.any():
          continue
        block, found = block[kept], found[kept]
      products = block @ queries.T
      for q in range(len(queries)):
        mine = products[:, q]
        if len(scores[q]) == k:  # most blocks have nothing better
          better = np.flatnonzero(mine > scores[q][-1])
          mine, new = mine[better], found[better]
        else:
          new = found
        if len(new):
          rows[q], scores[q] = _merge(rows[q], scores[q], new, mine, k)
    start += len(part)
  return rows, scores


def _merge(
  rows: Int[np.ndarray, " A"],
  scores: Float[np.ndarray, " A"],
  new_rows: Int[np.ndarray, " B"],
  new_scores: Float[np.ndarray, " B"],
  k: int,
) -> tuple[Int[np.ndarray, " K"], Float[np.ndarray, " K"]]:
  if len(new_scores) > 4 * k:  # all that reach the k-th best
    least = np.partition(new_scores, -k)[-k]
    kept = np.flatnonzero(new_scores >= least)
    new_rows, new_scores = new_rows[kept], new_scores[kept]
  rows = np.concatenate([rows, new_rows])
  scores = np.concatenate([scores, new_scores])
  order = np.argsort(-scores, kind="stable")[:k]  # rows come in order
  return rows[order], scores[order]
