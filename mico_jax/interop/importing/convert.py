"""Conversion of foreign tensors into our parameters.

`plan` fits the tensors of a file into a model by a weight map (such as
`mico.entries`) and reports everything that is missing, unexpected or mis-shaped
before any number is read. Its leaves are read when they are written: each
source tensor is read once, checked for non-finite values, hashed, and copied
into its place in the stacked array.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent import futures
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mico_jax.checkpoint.streamed import Leaf
from mico_jax.interop.files.tensors import Tensor, Tensors, WeightsError, record
from mico_jax.interop.names.weight_map import Entry, copy_blocks, to_ours

LIMIT = 8  # names of each kind in an error
THREADS = min(4, os.cpu_count() or 1)  # that read, hash and place tensors
Path = tuple[str, ...]
# (value in our layout, wanted shape) -> value of that shape.
Resizer = Callable[[np.ndarray, tuple[int, ...]], Any]


@dataclass
class Conversion:
  """The result of `plan`: destination of every tensor of a file.

  Attributes:
    leaves: our parameters by path "a/b/c".
    records: one per tensor of the file: name, dtype, shape, bytes, `place`
      (path of the parameter, or why it is in none) and, once read, sha256.
    resized: names of tables that were resized.
    extra: tensors that no parameter holds, or not as they were, by the name in
      the file.
  """

  leaves: dict[str, Leaf] = field(default_factory=dict)
  records: dict[str, dict[str, Any]] = field(default_factory=dict)
  resized: list[str] = field(default_factory=list)
  extra: dict[str, Tensor] = field(default_factory=dict)

  def keep(self, tensor: Tensor, why: str) -> None:
    """Keeps a tensor beside the parameters, for the reason `why`."""
    self.extra[tensor.name] = tensor
    self.records.setdefault(tensor.name, record(tensor, place=why))

  def fit(
    self,
    entry: Entry,
    parts: Sequence[Tensor],
    shape: tuple[int, ...],
    resize: Resizer | None,
  ) -> list[str]:
    """Makes a parameter of its tensors.

    Args:
      entry: of the parameter.
      parts: its tensors, in the order of `entry.tensors()`.
      shape: of the parameter.
      resize: brings a table of another size to ours; None: an error.

    Returns:
      One line per tensor of a wrong shape.
    """
    path, want = "/".join(entry.path), _wanted(entry, shape)
    resized, misshaped = False, []
    for part in parts:
      got = _piece_shape(entry, part.shape)
      if got == want:
        continue
      if resize is not None and got is not None and len(got) == len(want):
        resized = True
        self.resized.append(part.name)
        self.records[part.name] = record(part, place=f"{path} (resized)")
        self.keep(part, "resized")
        continue
      misshaped.append(
        f"{part.name} {list(part.shape)} ({list(got or ())} as {path}, "
        f"expected {list(want)})"
      )
    for part in parts:
      self.records.setdefault(part.name, record(part, place=path))
    self.leaves[path] = _leaf(
      entry, parts, shape, self.records, resize if resized else None
    )
    return misshaped


def digest(array: np.ndarray) -> str:
  """SHA-256 of an array's bytes in C order."""
  data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
  return hashlib.sha256(data.data).hexdigest()


def check_numbers(name: str, array: np.ndarray) -> np.ndarray:
  """The array as float32, if that loses nothing.

  Raises:
    WeightsError: for NaN, infinity or numbers that float32 cannot hold.
  """
  if array.dtype.kind not in "fV" and array.dtype.name != "bfloat16":
    raise WeightsError(
      f"{name!r} holds {array.dtype}, expected floating-point weights."
    )
  if not np.isfinite(array).all():
    count = int(array.size - np.isfinite(array).sum())
    raise WeightsError(
      f"{name!r} holds {count} NaN or infinite values of {array.size}; the "
      "weights are broken, take another checkpoint."
    )
  if array.dtype.itemsize > 4:
    single = array.astype(np.float32)
    if not np.array_equal(single.astype(array.dtype), array):
      raise WeightsError(
        f"{name!r} is {array.dtype} with values that float32 cannot hold; "
        "convert the file to float32 first, so that the rounding is yours."
      )
    return single
  return array


def _piece_shape(
  entry: Entry, shape: tuple[int, ...]
) -> tuple[int, ...] | None:
  """Shape in our layout of a tensor of `shape`; None if it cannot be one."""
  like = np.broadcast_to(np.zeros((), np.int8), shape)
  try:
    return to_ours(like, entry).shape
  except (ValueError, IndexError):
    return None


def plan(
  tensors: Tensors,
  table: Iterable[Entry],
  shapes: Mapping[Path, Any],
  *,
  ignored: Mapping[str, str] | None = None,
  optional: Sequence[str] = (),
  resizers: Mapping[str, Resizer] | None = None,
  hint: str = "",
) -> Conversion:
  """Fits tensors into parameters.

  Args:
    tensors: by the names of the table.
    table: where each parameter comes from.
    shapes: arrays (or the like) of our parameters, by path.
    ignored: regex of names without a parameter -> why; kept in `extra`.
    optional: regexes of paths "a/b/c" that the file may lack.
    resizers: regex of paths -> function that resizes such a table.
    hint: end of the error about weights that do not fit.

  Raises:
    WeightsError: listing the names that are missing, unexpected, mis-shaped.
  """
  conversion = Conversion()
  left, missing, misshaped, unexpected = dict(tensors), [], [], []
  for entry in table:
    path = "/".join(entry.path)
    names = entry.tensors()
    absent = [name for name in names if name not in left]
    if absent:
      if len(absent) < len(names) or not _any(optional, path):
        missing += absent
        for name in names:
          left.pop(name, None)
      continue
    parts = [left.pop(name) for name in names]
    shape = tuple(shapes[entry.path].shape)
    resize = _match(resizers or {}, path)
    misshaped += conversion.fit(entry, parts, shape, resize)
  for name, tensor in left.items():
    why = _match(ignored or {}, name)
    if why is None:
      unexpected.append(tensor.name)
    else:
      conversion.keep(tensor, why)
  kinds = {
    "missing": missing,
    "unexpected": unexpected,
    "mis-shaped": misshaped,
  }
  problems = [
    f"{kind} {', '.join(names[:LIMIT])}"
    + (f" and {len(names) - LIMIT} more" if len(names) > LIMIT else "")
    for kind, names in kinds.items()
    if names
  ]
  if problems:
    raise WeightsError(f"the weights do not fit: {'; '.join(problems)}. {hint}")
  return conversion


def _any(patterns: Iterable[str], path: str) -> bool:
  return any(re.search(pattern, path) for pattern in patterns)


def _match(table: Mapping[str, Any], name: str) -> Any:
  return next((v for p, v in table.items() if re.search(p, name)), None)


def _wanted(entry: Entry, shape: tuple[int, ...]) -> tuple[int, ...]:
  """Shape in our layout of one tensor of a parameter of `shape`."""
  one = shape[1:] if entry.layers else shape
  if len(entry.names) == 1:
    return one
  return (*one[:-1], one[-1] // len(entry.names))


def _leaf(
  entry: Entry,
  parts: Sequence[Tensor],
  shape: tuple[int, ...],
  records: dict[str, dict[str, Any]],
  resize: Resizer | None,
) -> Leaf:
  """The stacked and packed array of an entry, read when it is written."""
  width = len(entry.names)
  want = _wanted(entry, shape)

  def put(out: np.ndarray, at: int) -> None:
    part = parts[at]
    raw = part.load()
    records[part.name]["sha256"] = digest(raw)
    value = to_ours(check_numbers(part.name, raw), entry)
    if resize is not None:
      value = resize(np.asarray(value, np.float32), want)
    place = out[at // width] if entry.layers else out
    if width > 1:
      first = (at % width) * want[-1]
      place = place[..., first : first + want[-1]]
    copy_blocks(place, value)

  def read() -> np.ndarray:
    out = np.empty(shape, np.float32)
    with futures.ThreadPoolExecutor(THREADS) as pool:
      for _ in pool.map(lambda at: put(out, at), range(len(parts))):
        pass  # the first error of the order is raised
    return out

  def original() -> list[dict[str, str]]:
    return [
      {key: records[part.name][key] for key in ("name", "dtype", "sha256")}
      for part in parts
    ]

  return Leaf(shape, np.dtype(np.float32), read, original)


def settle_ties(
  tensors: Tensors, ties: Mapping[str, str], equal: dict[str, str]
) -> tuple[Tensors, dict[str, Tensor]]:
  """Removes the copies of tied tensors.

  Where the two differ the copy wins, as it does when PyTorch loads.

  Args:
    tensors: by the names of the table.
    ties: name of the copy -> name of the original.
    equal: filled with the names in the file of copies and originals that are
      equal.

  Returns:
    The other tensors, and the originals that a different copy replaces.
  """
  rest, replaced = dict(tensors), {}
  for copy, name in ties.items():
    if copy not in rest:
      continue
    other = rest.pop(copy)
    if name not in rest:
      rest[name] = other
      continue
    one = rest[name]
    if (one.shape, one.dtype) == (other.shape, other.dtype) and digest(
      one.load()
    ) == digest(other.load()):
      equal[other.name] = one.name
      continue
    rest[name] = other
    replaced[one.name] = one
  return rest, replaced
