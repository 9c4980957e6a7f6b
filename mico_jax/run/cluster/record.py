"""One small file that many processes read and exactly one may change.

`Record.swap` writes only over the version that `Record.read` returned: of all
that try at once, one wins. Local files do it under `flock`, in place, so that
a full disk does not keep a holder from renewing; S3 with If-Match and
If-None-Match, Google's store with generations. A store of another kind has no
such condition: there the file is compared right before it is written.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from typing import Any

from etils import epath

from mico_jax import failures, files

SIZE = 1024  # bytes that a local record takes at least: it never grows

# Of the file systems that know no flock.
_NO_FLOCK = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)


class Record:
  """The file; each method raises what the store raises."""

  def read(self) -> tuple[bytes | None, Any]:
    """Its content, None if there is no file, and the version for `swap`."""
    raise NotImplementedError

  def swap(self, data: bytes, version: Any) -> Any:
    """Writes over a version.

    Args:
      data: the new content.
      version: as `read` or `swap` returned it.

    Returns:
      The new version; None if another process was faster, or may have been:
      then call `read`.
    """
    raise NotImplementedError

  def delete(self, version: Any) -> None:
    """Removes the file if it still is this version, as far as is known."""
    raise NotImplementedError


def open_record(path: epath.PathLike) -> Record:
  """The record of a path of any scheme."""
  text = os.fspath(path)
  if files.is_local(text):
    return _Local(text)
  if text.startswith("s3://"):
    return _S3(text)
  if text.startswith("gs://"):
    return _Google(text)
  return _Plain(text)


class _Local(Record):
  def __init__(self, path: str):
    self._path = path

  @contextlib.contextmanager
  def _locked(self, flags: int) -> Iterator[int]:
    """The open file, which is still the one of this name, under flock."""
    import fcntl

    while True:
      handle = os.open(self._path, flags, 0o644)
      try:
        try:
          fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:
          if error.errno not in _NO_FLOCK:
            raise
        try:
          same = os.stat(self._path).st_ino == os.fstat(handle).st_ino
        except FileNotFoundError:
          same = False
        if same:
          yield handle
          return
      finally:
        os.close(handle)  # gives the lock back

  @staticmethod
  def _content(handle: int) -> bytes:
    return os.pread(handle, 64 * SIZE, 0).rstrip(b" \n")

  def read(self) -> tuple[bytes | None, Any]:
    try:
      with self._locked(os.O_RDWR) as handle:
        content = self._content(handle)
    except FileNotFoundError:
      return None, b""
    return content, content  # nothing is as good as an empty file

  def swap(self, data: bytes, version: Any) -> Any:
    with self._locked(os.O_RDWR | os.O_CREAT) as handle:
      if self._content(handle) != version:
        return None
      padded = data.ljust(SIZE)
      written = os.pwrite(handle, padded, 0)
      if written != len(padded):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self._path)
      if os.fstat(handle).st_size > len(padded):
        os.ftruncate(handle, len(padded))
    return data

  def delete(self, version: Any) -> None:
    with (
      contextlib.suppress(FileNotFoundError),
      self._locked(os.O_RDWR) as handle,
    ):
      if self._content(handle) == version:
        os.unlink(self._path)


class _Plain(Record):
  def __init__(self, path: str):
    self._path = epath.Path(path)

  def read(self) -> tuple[bytes | None, Any]:
    try:
      content = self._path.read_bytes()
    except FileNotFoundError:
      return None, b""
    return content, content

  def swap(self, data: bytes, version: Any) -> Any:
    if self.read()[1] != version:
      return None
    self._path.write_bytes(data)
    return data

  def delete(self, version: Any) -> None:
    if self.read()[1] == version:
      self._path.unlink()


class _S3(Record):
  def __init__(self, path: str):
    import fsspec

    self._fs = fsspec.filesystem("s3")
    bucket, _, key = path.removeprefix("s3://").partition("/")
    self._where = {"Bucket": bucket, "Key": key}

  def read(self) -> tuple[bytes | None, Any]:
    from fsspec.asyn import sync

    async def get() -> tuple[bytes, str]:
      answer = await self._fs._call_s3("get_object", **self._where)
      async with answer["Body"] as body:
        return await body.read(), answer["ETag"]

    try:
      answer: Any = sync(self._fs.loop, get)
    except FileNotFoundError:
      return None, None
    return answer

  def swap(self, data: bytes, version: Any) -> Any:
    condition = {"IfMatch": version} if version else {"IfNoneMatch": "*"}
    try:
      answer = self._fs.call_s3(
        "put_object", Body=data, **self._where, **condition
      )
    except FileNotFoundError:  # deleted in between
      return None
    except Exception as error:
      # 409: another write with a condition is under way.
      if failures.http_status(error) in (404, 409, 412):
        return None
      raise
    return answer["ETag"]

  def delete(self, version: Any) -> None:
    if self.read()[1] == version:
      self._fs.call_s3("delete_object", **self._where)


class _Google(Record):
  def __init__(self, path: str):
    import fsspec

    self._fs = fsspec.filesystem("gs")
    self._bucket, _, self._key = path.removeprefix("gs://").partition("/")

  def read(self) -> tuple[bytes | None, Any]:
    try:
      headers, content = self._fs.call(
        "GET", "b/{}/o/{}", self._bucket, self._key, alt="media"
      )
    except FileNotFoundError:
      return None, "0"
    return content, headers["x-goog-generation"]

  def swap(self, data: bytes, version: Any) -> Any:
    try:
      answer = self._fs.call(
        "POST",
        f"{self._fs._location}/upload/storage/v1/b/{self._bucket}/o",
        uploadType="media",
        name=self._key,
        ifGenerationMatch=str(version),
        headers={"Content-Type": "application/json"},
        data=data,
        json_out=True,
      )
    except FileExistsError:  # gcsfs's word for a condition that does not hold
      return None
    return str(answer["generation"])

  def delete(self, version: Any) -> None:
    with contextlib.suppress(FileExistsError, FileNotFoundError):
      self._fs.call(
        "DELETE",
        "b/{}/o/{}",
        self._bucket,
        self._key,
        ifGenerationMatch=str(version),
      )
