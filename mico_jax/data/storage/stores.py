"""Remote stores: whole files, ranges of bytes, and when a file changed.

A scheme such as "s3://" is read through obstore where it is installed (extra
`obstore`) and knows the scheme, else through fsspec. Calls block; they are safe
from several threads, and safe to repeat.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

# Those whose credentials and addresses obstore takes from the environment.
_OBSTORE_SCHEMES = ("s3", "gs", "az", "http", "https")


class Stamp(NamedTuple):
  """What changes when a file changes.

  Attributes:
    size: in bytes.
    tag: its time, or the tag that the store gives it.
  """

  size: int
  tag: str


class CutShortError(ConnectionError):
  """A store sent fewer bytes than it has."""


@runtime_checkable
class Store(Protocol):
  """Files of one scheme; `path` is whole: "s3://bucket/name"."""

  def stat(self, path: str) -> Stamp:
    """Size and tag of a file; FileNotFoundError without one."""
    ...

  def read(self, path: str) -> bytes:
    """The whole content."""
    ...

  def read_range(self, path: str, offset: int, size: int) -> bytes:
    """Bytes from `offset` on: `size`, or fewer at the end of the file."""
    ...

  def write(self, path: str, data: bytes) -> None:
    """Replaces a file."""
    ...


class FsspecStore:
  """A scheme that fsspec has a file system for."""

  def stat(self, path: str) -> Stamp:
    """See `Store`."""
    system, name = _filesystem(path)
    info = system.info(name)
    if info.get("type") == "directory":
      raise IsADirectoryError(f"{path} is a folder")
    tags = [info.get(k) for k in ("etag", "ETag", "mtime", "created")]
    return Stamp(int(info["size"]), " ".join(str(t) for t in tags if t))

  def read(self, path: str) -> bytes:
    """See `Store`."""
    system, name = _filesystem(path)
    return system.cat_file(name)

  def read_range(self, path: str, offset: int, size: int) -> bytes:
    """See `Store`."""
    system, name = _filesystem(path)
    return system.cat_file(name, start=offset, end=offset + size)

  def write(self, path: str, data: bytes) -> None:
    """See `Store`."""
    system, name = _filesystem(path)
    system.pipe_file(name, data)


class ObstoreStore:
  """A scheme that obstore reads, without Python's lock."""

  def stat(self, path: str) -> Stamp:
    """See `Store`."""
    import obstore

    meta = _asked(obstore.head, path)
    tag = meta.get("e_tag") or meta["last_modified"].isoformat()
    return Stamp(int(meta["size"]), str(tag))

  def read(self, path: str) -> bytes:
    """See `Store`."""
    import obstore

    return _asked(lambda *a: obstore.get(*a).bytes().to_bytes(), path)

  def read_range(self, path: str, offset: int, size: int) -> bytes:
    """See `Store`."""
    import obstore

    data = _asked(obstore.get_range, path, start=offset, length=size)
    return data.to_bytes()

  def write(self, path: str, data: bytes) -> None:
    """See `Store`."""
    import obstore

    _asked(lambda *a: obstore.put(*a, data), path)


def _asked(call: Callable[..., Any], path: str, **options: Any) -> Any:
  """A call of obstore, with refusals as Python names them."""
  from obstore import exceptions

  try:
    return call(*_bucket(path), **options)
  except (
    exceptions.PermissionDeniedError,
    exceptions.UnauthenticatedError,
  ) as error:
    text = " ".join(str(error).split())[:200]
    raise PermissionError(f"refused: {text}") from error


@functools.lru_cache(maxsize=8192)
def _filesystem(path: str) -> tuple[Any, str]:
  import fsspec

  return fsspec.core.url_to_fs(path)


@functools.lru_cache(maxsize=64)
def _opened(root: str) -> Any:
  from obstore.store import from_url

  # Repeating is done here (`Storage`), with the patience of the run.
  return from_url(
    root,
    client_options={"allow_http": True, "timeout": "1h"},
    retry_config={"max_retries": 0},
  )


def _bucket(path: str) -> tuple[Any, str]:
  scheme, rest = path.split("://", 1)
  bucket, _, name = rest.partition("/")
  return _opened(f"{scheme}://{bucket}"), name


@functools.cache
def store_of(scheme: str) -> Store:
  """The client that reads a scheme."""
  if scheme in _OBSTORE_SCHEMES and importlib.util.find_spec("obstore"):
    return ObstoreStore()
  return FsspecStore()
