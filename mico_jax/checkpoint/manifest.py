"""The manifest: what a checkpoint says about itself, and how that is checked.

One `manifest.json` lies beside the arrays of a step. Per parameter it holds
path, shape, dtype, logical axes and a SHA-256 of the content, since Orbax
restores a flipped byte without a word; beside them the hashes of config,
tokenizer files and self-check, the preprocessing modes, the library versions
and the topology of the run. `manifest.sha256` guards the manifest itself.

Nothing here imports JAX: hashing works on host arrays. Files are JSON and raw
bytes only; nothing of a checkpoint is ever unpickled.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import json
import platform
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from etils import epath

from mico_jax import files
from mico_jax.checkpoint import form
from mico_jax.checkpoint.form import ARRAY_ITEMS

FORMAT = "mico_jax checkpoint 1"
MANIFEST = "manifest.json"
MANIFEST_HASH = "manifest.sha256"
SELF_CHECK = "self_check.npz"
TOKENIZER_PREFIX = "tokenizer/"
CONFIG = "config.json"
DATA = "data.json"
_MOST_SELF_CHECK = 2**31  # bytes of its arrays; real ones have megabytes
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
  """A checkpoint that cannot be used or written; the message is one line."""


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
  """A key as one part of a path: "~" and "/" written as JSON Pointer does."""
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
    escaped: leave the parts as they stand in the path.
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


def describe_arrays(
  flat: Mapping[str, Any],
  *,
  logical_axes: Mapping[str, Any] | None = None,
  originals: Mapping[str, Any] | None = None,
) -> dict[str, dict[str, Any]]:
  """The manifest's entry of every array.

  Args:
    flat: host arrays by path.
    logical_axes: tuples of axis names by path.
    originals: path -> what it was imported from: a list of {"name", "dtype",
      "sha256"}, layer by layer.
  """
  axes = logical_axes or {}
  entries = {}
  for path, value in flat.items():
    array = np.asarray(value)
    entry: dict[str, Any] = {
      "shape": list(array.shape),
      "dtype": array.dtype.name,
      "sha256": array_hash(array),
    }
    if path in axes:
      entry["axes"] = list(axes[path])
    if originals and path in originals:
      entry["original"] = originals[path]
    entries[path] = entry
  return entries


def versions() -> dict[str, str]:
  """Python's and the libraries' versions, as installed."""
  found = {"python": platform.python_version()}
  for name in _PACKAGES:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  return found


def differences(
  old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = ""
) -> list[str]:
  """Dotted keys with both values wherever two nested dicts differ."""
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
  """Tuples as lists all the way down, as JSON has them."""
  if isinstance(value, (tuple, list)):
    return [_plain(v) for v in value]
  return value


def to_files(
  manifest: Mapping[str, Any], extra: Mapping[str, bytes]
) -> dict[str, bytes]:
  """The files of the `manifest` item: the manifest, its hash, the rest.

  `manifest["files"]` is filled with the hash of every extra file.
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
    CheckpointError: if it is absent, cut short, altered, or of another form.
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
  if manifest.get("format") != FORMAT:
    raise CheckpointError(
      f"{folder}: format {manifest.get('format')!r:.80}, expected {FORMAT!r}; "
      "read it with the mico_jax version that wrote it."
    )
  for problem in form.problems(manifest):
    raise CheckpointError(f"{path / MANIFEST}: {problem}.")
  return manifest


def fingerprint(folder: epath.PathLike) -> str:
  """The hash of a step folder's manifest: names its whole content."""
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
  """Files named by the manifest, config included, with their mismatches.

  Returns:
    {name: bytes} and a list of one-line problems (empty when all is well).
  """
  root = epath.Path(folder)
  places = {name: root / "manifest" / name for name in manifest["files"]}
  expected = dict(manifest["files"])
  places[CONFIG] = root / "config" / CONFIG
  expected[CONFIG] = manifest["config_sha256"]
  found, problems = {}, []
  for name, path in places.items():
    if not form.is_inside(path, root):
      raise CheckpointError(
        f"{path}: leads out of the checkpoint's folder; put the file itself "
        "there."
      )
    try:
      found[name] = _read_bytes(path)
    except CheckpointError as e:
      problems.append(str(e))
      continue
    if sha256(found[name]) != expected[name]:
      problems.append(
        f"{name}: content differs from the manifest's hash ({path})."
      )
  return found, problems


def array_problems(
  entries: Mapping[str, Mapping[str, Any]],
  arrays: Mapping[str, Any],
  *,
  item: str,
  hashes: bool = True,
) -> list[str]:
  """Compares host arrays {path: array} with their manifest entries."""
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
    elif list(array.shape) != list(entry["shape"]):
      problems.append(
        f"{item}: {path} has shape {list(array.shape)}, the manifest says "
        f"{entry['shape']}."
      )
    elif array.dtype.name != entry["dtype"]:
      problems.append(
        f"{item}: {path} has dtype {array.dtype.name}, the manifest says "
        f"{entry['dtype']}."
      )
    elif hashes and array_hash(array) != entry["sha256"]:
      problems.append(
        f"{item}: content of {path} differs from the manifest's hash."
      )
  return problems


def summarise(problems: Iterable[str], *, limit: int = 3) -> str:
  """The first few problems in one line."""
  problems = list(problems)
  text = " ".join(problems[:limit])
  rest = len(problems) - limit
  return f"{text} ({rest} more)" if rest > 0 else text


FilesFn = Callable[[], Mapping[str, bytes]]


def pack_arrays(arrays: Mapping[str, Any]) -> bytes:
  """Named arrays as the bytes of an .npz file (never pickled)."""
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
