"""The manifest: description and verification of a checkpoint.

One `manifest.json` is stored beside the arrays of a step. It holds path, shape,
dtype, logical axes and a SHA-256 of the content of each parameter, since a
flipped byte would otherwise go unnoticed; the hashes of config, tokenizer files
and self-check; the preprocessing modes, the library versions and the topology
of the run. `manifest.sha256` is the hash of the manifest itself.

An array that was saved in shards has one hash per shard, made by the process
that held it: `grid` is the shape of a shard, `sha256` the list of hashes in C
order of the shards. An array in one piece has no `grid` and one hash, as all
arrays of format 1.

This module does not import JAX: hashing works on host arrays. Files are JSON
and raw bytes; nothing of a checkpoint is ever unpickled.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import json
import math
import platform
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
from etils import epath

from mico_jax import files
from mico_jax.checkpoint import form, ranges
from mico_jax.checkpoint.form import ARRAY_ITEMS
from mico_jax.checkpoint.ranges import Range

FORMAT = "mico_jax checkpoint 2"
FORMATS = ("mico_jax checkpoint 1", FORMAT)  # readable ones
MANIFEST = "manifest.json"
MANIFEST_HASH = "manifest.sha256"
SELF_CHECK = "self_check.npz"
TOKENIZER_PREFIX = "tokenizer/"
CONFIG = "config.json"
DATA = "data.json"
_MOST_SELF_CHECK = 2**31  # bytes, a thousand times those of a real one
ITEMS = (*ARRAY_ITEMS, "data", "config", "manifest")

_PACKAGES = (
  "jax",
  "jaxlib",
  "flax",
  "optax",
  "orbax-checkpoint",
  "grain",
  "numpy",
)


class CheckpointError(ValueError):
  """A checkpoint cannot be read or written; the message is one line."""


def sha256(data: bytes) -> str:
  """Hex digest of some bytes."""
  return hashlib.sha256(data).hexdigest()


def array_hash(array: Any) -> str:
  """SHA-256 of an array's dtype, shape and C-ordered little-endian bytes."""
  array = np.asarray(array)
  if array.dtype.byteorder == ">":
    array = array.astype(array.dtype.newbyteorder("<"))
  digest = hashlib.sha256(f"{array.dtype.name}{list(array.shape)}".encode())
  digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
  return digest.hexdigest()


def escape(key: str) -> str:
  """A key as one part of a path, "~" and "/" escaped as in JSON Pointer."""
  return key.replace("~", "~0").replace("/", "~1")


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
  """Nested dict -> {"a/b/c": leaf}, in sorted order; see `escape`."""
  flat: dict[str, Any] = {}
  for key in sorted(tree):
    value, path = tree[key], f"{prefix}{escape(key)}"
    if isinstance(value, Mapping):
      flat.update(flatten(value, f"{path}/"))
    else:
      flat[path] = value
  return flat


def unflatten(
  flat: Mapping[str, Any], *, escaped: bool = False
) -> dict[str, Any]:
  """{"a/b/c": leaf} -> nested dict; the inverse of `flatten`.

  Args:
    flat: leaves by path.
    escaped: keep the parts of paths escaped.
  """
  tree: dict[str, Any] = {}
  for path, value in flat.items():
    parts = path.split("/")
    if not escaped:
      parts = [p.replace("~1", "/").replace("~0", "~") for p in parts]
    node = tree
    for part in parts[:-1]:
      node = node.setdefault(part, {})
    node[parts[-1]] = value
  return tree


def shards(entry: Mapping[str, Any]) -> list[tuple[Range, str]]:
  """The shards of an array with their hashes.

  Raises:
    CheckpointError: if grid and number of hashes contradict each other.
  """
  shape, hashes = entry["shape"], entry["sha256"]
  grid = entry.get("grid", shape)
  hashes = [hashes] if isinstance(hashes, str) else hashes
  try:
    count = ranges.count(shape, grid)
  except ValueError as e:
    raise CheckpointError(f"the manifest contradicts itself: {e}.") from e
  if count != len(hashes):
    raise CheckpointError(
      "the manifest contradicts itself: an array of "
      f"{count} shard(s) has {len(hashes)} hash(es)."
    )
  return list(zip(ranges.of_grid(shape, grid), hashes, strict=True))


def nbytes(entry: Mapping[str, Any], where: Range | None = None) -> int:
  """Bytes of an array of the manifest, or of a part of it."""
  shape = entry["shape"] if where is None else ranges.sizes(where)
  dtype = entry["dtype"]
  return math.prod(shape) * np.dtype(getattr(ml_dtypes, dtype, dtype)).itemsize


def describe_shards(
  layout: Mapping[str, Mapping[str, Any]],
  notes: Sequence[Mapping[str, Mapping[str, str]]],
  *,
  logical_axes: Mapping[str, Any] | None = None,
) -> dict[str, dict[str, Any]]:
  """The manifest's entry of every array of a sharded state.

  Args:
    layout: path -> "shape", "dtype", and "grid": the shape of a shard.
    notes: of each process: path -> start of a shard, "0,64" say -> hash.
    logical_axes: as for `describe_arrays`.

  Raises:
    CheckpointError: if a shard has no hash.
  """
  entries = {}
  for path, about in layout.items():
    shape, grid = about["shape"], about["grid"]
    hashes: dict[str, str] = {}
    for note in notes:
      hashes.update(note.get(path, {}))
    starts = [ranges.key(where) for where in ranges.of_grid(shape, grid)]
    missing = [start for start in starts if start not in hashes]
    if missing:
      raise CheckpointError(
        f"{path}: no process hashed the shard at [{missing[0]}]; do all see "
        "the same folder?"
      )
    digests = [hashes[start] for start in starts]
    entry: dict[str, Any] = {"shape": list(shape), "dtype": about["dtype"]}
    if len(digests) == 1:
      entry["sha256"] = digests[0]
    else:
      entry |= {"grid": list(grid), "sha256": digests}
    entries[path] = entry
  return _with_axes(entries, logical_axes)


def _with_axes(
  entries: dict[str, dict[str, Any]], logical_axes: Mapping[str, Any] | None
) -> dict[str, dict[str, Any]]:
  for path, entry in entries.items():
    if logical_axes and path in logical_axes:
      entry["axes"] = list(logical_axes[path])
  return entries


def describe_arrays(
  flat: Mapping[str, Any], *, logical_axes: Mapping[str, Any] | None = None
) -> dict[str, dict[str, Any]]:
  """The manifest's entry of every array.

  Args:
    flat: host arrays by path.
    logical_axes: tuples of axis names by path.
  """
  entries = {}
  for path, value in flat.items():
    array = np.asarray(value)
    entries[path] = {
      "shape": list(array.shape),
      "dtype": array.dtype.name,
      "sha256": array_hash(array),
    }
  return _with_axes(entries, logical_axes)


def versions() -> dict[str, str]:
  """Python's and the libraries' versions, as installed."""
  installed = {"python": platform.python_version()}
  for name in _PACKAGES:
    try:
      installed[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  return installed


def differences(
  old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = ""
) -> list[str]:
  """One line per difference of two nested dicts: dotted key, both values."""
  lines = []
  for key in sorted({*old, *new}, key=str):
    name = f"{prefix}{key}"
    if key not in old:
      lines.append(f"{name}: absent, now {new[key]!r}")
    elif key not in new:
      lines.append(f"{name}: {old[key]!r}, now absent")
    elif isinstance(old[key], Mapping) and isinstance(new[key], Mapping):
      lines += differences(old[key], new[key], f"{name}.")
    elif _plain(old[key]) != _plain(new[key]):
      lines.append(f"{name}: {old[key]!r}, now {new[key]!r}")
  return lines


def _plain(value: Any) -> Any:
  """The value with lists for tuples, as it comes back from JSON."""
  if isinstance(value, (tuple, list)):
    return [_plain(v) for v in value]
  return value


def to_files(
  manifest: Mapping[str, Any], extra: Mapping[str, bytes]
) -> dict[str, bytes]:
  """The files of the `manifest` item: manifest, its hash, extra files.

  The stored manifest has the hash of every extra file in "files".
  """
  full = {
    **manifest,
    "format": FORMAT,
    "files": {name: sha256(data) for name, data in sorted(extra.items())},
  }
  text = json.dumps(full, indent=1, sort_keys=True).encode()
  return {**extra, MANIFEST: text, MANIFEST_HASH: sha256(text).encode()}


def read(folder: epath.PathLike) -> dict[str, Any]:
  """Reads and checks the manifest of a step folder.

  Raises:
    CheckpointError: if it is absent, cut short, altered, or of another format.
  """
  path = epath.Path(folder) / "manifest"
  text = _read_bytes(path / MANIFEST)
  expected = _read_bytes(path / MANIFEST_HASH).decode(errors="replace").strip()
  if sha256(text) != expected:
    raise CheckpointError(
      f"{path / MANIFEST}: content differs from {MANIFEST_HASH}; the file was "
      "altered or cut short. Use another step or a copy."
    )
  try:
    manifest = json.loads(text)
  except (ValueError, RecursionError) as error:
    raise CheckpointError(
      f"{path / MANIFEST}: no valid JSON ({error})."
    ) from error
  if not isinstance(manifest, dict):
    raise CheckpointError(
      f"{path / MANIFEST}: holds a {type(manifest).__name__}, expected an "
      "object."
    )
  if manifest.get("format") not in FORMATS:
    raise CheckpointError(
      f"{folder}: format {manifest.get('format')!r:.80}, expected {FORMAT!r}; "
      "read it with the mico_jax version that wrote it."
    )
  for problem in form.problems(manifest):
    raise CheckpointError(f"{path / MANIFEST}: {problem}.")
  return manifest


def fingerprint(folder: epath.PathLike) -> str:
  """The hash of a step folder's manifest, which identifies its content."""
  path = epath.Path(folder) / "manifest" / MANIFEST_HASH
  return _read_bytes(path).decode(errors="replace").strip()


def _read_bytes(path: Any) -> bytes:
  try:
    return files.read_bytes(path)
  except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
    raise CheckpointError(
      f"{path}: no such file; this is not a complete mico_jax checkpoint."
    ) from None


def read_files(
  folder: epath.PathLike, manifest: Mapping[str, Any]
) -> tuple[dict[str, bytes], list[str]]:
  """Reads and verifies the files that the manifest names, and the config.

  Returns:
    {name: bytes} and a list of problems, one line each.

  Raises:
    CheckpointError: if a path leads out of the folder.
  """
  root = epath.Path(folder)
  places = {name: root / "manifest" / name for name in manifest["files"]}
  expected = dict(manifest["files"])
  places[CONFIG] = root / "config" / CONFIG
  expected[CONFIG] = manifest["config_sha256"]
  contents, problems = {}, []
  for name, path in places.items():
    if not form.is_inside(path, root):
      raise CheckpointError(
        f"{path}: leads out of the checkpoint's folder; put the file itself "
        "there."
      )
    try:
      contents[name] = _read_bytes(path)
    except CheckpointError as e:
      problems.append(str(e))
      continue
    if sha256(contents[name]) != expected[name]:
      problems.append(
        f"{name}: content differs from the manifest's hash ({path})."
      )
  return contents, problems


def array_problems(
  entries: Mapping[str, Mapping[str, Any]],
  arrays: Mapping[str, Any],
  *,
  item: str,
  hashes: bool = True,
) -> list[str]:
  """Compares host arrays with their entries; one line per problem.

  Args:
    entries: of the manifest, by path.
    arrays: by path.
    item: "params", "opt_state" or "ema", for the messages.
    hashes: whether to compare contents too.
  """
  problems = [
    f"{item}: {path} is in the manifest but not in the checkpoint."
    for path in entries
    if path not in arrays
  ]
  for path, value in arrays.items():
    entry = entries.get(path)
    array = np.asarray(value)
    if entry is None:
      problems.append(f"{item}: {path} is not in the manifest.")
    elif wrong := differs(item, path, entry, array.shape, array.dtype.name):
      problems.append(wrong)
    elif hashes:
      for where, sha256 in shards(entry):
        if array_hash(array[ranges.slices(where)]) != sha256:
          problems.append(content_differs(item, path))
          break
  return problems


def differs(
  item: str,
  path: str,
  entry: Mapping[str, Any],
  shape: Sequence[int],
  dtype: str,
) -> str:
  """The problem of an array of another shape or dtype; "": none."""
  for what, actual, expected in (
    ("shape", list(shape), list(entry["shape"])),
    ("dtype", dtype, entry["dtype"]),
  ):
    if actual != expected:
      return (
        f"{item}: {path} has {what} {actual}, the manifest says {expected}."
      )
  return ""


def content_differs(item: str, path: str) -> str:
  """The problem of an array whose bytes are not those that were saved."""
  return f"{item}: content of {path} differs from the manifest's hash."


def summarise(problems: Sequence[str]) -> str:
  """The first three problems in one line."""
  more = f" ({len(problems) - 3} more)" if len(problems) > 3 else ""
  return " ".join(problems[:3]) + more


FilesFn = Callable[[], Mapping[str, bytes]]


def pack_arrays(arrays: Mapping[str, Any]) -> bytes:
  """The bytes of an .npz file of named arrays, without pickling."""
  buffer = io.BytesIO()
  plain: dict[str, Any] = {k: np.asarray(v) for k, v in arrays.items()}
  np.savez(buffer, **plain)
  return buffer.getvalue()


def unpack_arrays(data: bytes) -> dict[str, np.ndarray]:
  """The inverse of `pack_arrays`.

  Raises:
    CheckpointError: if the bytes are not an .npz file of plain arrays.
  """
  try:
    with np.load(io.BytesIO(data), allow_pickle=False) as file:
      size = sum(i.file_size for i in file.zip.infolist())
      if size > _MOST_SELF_CHECK:
        raise ValueError(f"it declares {size} bytes")
      return {name: file[name] for name in file.files}
  except Exception as e:  # zip, zlib and NumPy raise many kinds
    text = " ".join(str(e).split())[:160] or type(e).__name__
    raise CheckpointError(f"self-check cannot be read: {text}.") from e
