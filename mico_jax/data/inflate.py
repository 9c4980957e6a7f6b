"""Plain copies of compressed tar files, which `mico-jax data convert` reads."""

from __future__ import annotations

import bz2
import contextlib
import dataclasses
import gzip
import lzma
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

from mico_jax.config import ConfigError, SourceConfig
from mico_jax.data.faults import describe
from mico_jax.data.sources.shards import COMPRESSED, files_of
from mico_jax.data.storage import is_remote, short

_OPENERS = {
  ".gz": gzip.open,
  ".tgz": gzip.open,
  ".bz2": bz2.open,
  ".xz": lzma.open,
}
_PIECE = 1 << 20  # bytes


@contextlib.contextmanager
def inflated(
  spec: SourceConfig, folder: pathlib.Path, name: str
) -> Iterator[SourceConfig]:
  """A source whose compressed tar files are plain.

  They are unpacked into `folder`, which needs room for all of them and is
  removed at the end; after an error it stays, for the next start.

  Args:
    spec: of the source; one without compressed files is given back.
    folder: for the plain files.
    name: of the source, for messages.

  Raises:
    ConfigError: for files that are not local, damaged, or of an unknown type.
  """
  paths = files_of(spec.path, name) if spec.kind == "webdataset" else []
  if not any(p.lower().endswith(COMPRESSED) for p in paths):
    yield spec
    return
  folder.mkdir(parents=True, exist_ok=True)
  plain = []
  for number, path in enumerate(paths):
    if not path.lower().endswith(COMPRESSED):
      plain.append(os.path.abspath(path))
      continue
    target = folder / f"{number:06d}.tar"
    if not target.exists():
      _inflate(path, target)
    plain.append(str(target.absolute()))
  yield dataclasses.replace(spec, path=",".join(plain))
  shutil.rmtree(folder)


def _inflate(path: str, target: pathlib.Path) -> None:
  """Unpacks a file, which appears when it is complete."""
  suffix = os.path.splitext(path)[1].lower()
  if is_remote(path):
    raise ConfigError(f"{short(path)}: copy compressed files to a local disk.")
  if suffix not in _OPENERS:
    raise ConfigError(
      f"{short(path)}: {suffix} is not read; unpack it first, by zstd -d."
    )
  part = target.with_suffix(".part")
  opener: Any = _OPENERS[suffix]
  try:
    with opener(path, "rb") as source, open(part, "wb") as out:
      shutil.copyfileobj(source, out, _PIECE)
  except (OSError, EOFError, ValueError, lzma.LZMAError) as error:
    part.unlink(missing_ok=True)
    if isinstance(error, OSError) and error.errno is not None:
      raise
    raise ConfigError(f"{short(path)}: {describe(error)}") from error
  except Exception as error:  # zlib.error
    part.unlink(missing_ok=True)
    raise ConfigError(f"{short(path)}: {describe(error)}") from error
  os.replace(part, target)
