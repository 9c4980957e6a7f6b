import errno
import pathlib

import pytest

from mico_jax.failures import TransientError, delays, is_transient, wait_out


class ClientError(Exception):
  def __init__(self, code):
    super().__init__(f"code {code}")
    self.response = {"ResponseMetadata": {"HTTPStatusCode": code}}


class HttpError(OSError):
  def __init__(self, code):
    super().__init__("no")
    self.code = code


@pytest.mark.parametrize(
  "error",
  [
    OSError(errno.EIO, "I/O error"),
    OSError(errno.ESTALE, "stale"),
    OSError(errno.ENOSPC, "full"),
    ConnectionResetError("reset"),
    TimeoutError("slow"),
    ClientError(503),
    HttpError(429),
    TransientError("away"),
    ValueError("UNAVAILABLE: try again"),
  ],
)
def test_what_may_pass(error):
  assert is_transient(error)
  wrapped = RuntimeError("wrapped")
  wrapped.__cause__ = error
  assert is_transient(wrapped)


@pytest.mark.parametrize(
  "error",
  [
    FileNotFoundError(errno.ENOENT, "no such file"),
    IsADirectoryError(errno.EISDIR, "folder"),
    PermissionError(errno.EACCES, "no"),
    OSError(errno.ENAMETOOLONG, "too long"),
    ClientError(404),
    HttpError(403),
    ValueError("not a picture"),
    MemoryError(),
  ],
)
def test_what_stays(error):
  assert not is_transient(error)


def test_delays_grow_and_end():
  found = list(delays(100.0))
  assert sum(found) == pytest.approx(100.0)
  assert found[0] <= 0.3
  assert max(found) <= 45.0


def test_wait_out_tries_again_and_gives_up():
  waited, calls = [], []

  def call():
    calls.append(1)
    if len(calls) < 4:
      raise OSError(errno.EIO, "I/O error")
    return "there"

  notes = []
  assert wait_out(call, "reading x", sleep=waited.append, note=notes.append)
  assert len(waited) == len(notes) == 3
  assert "reading x" in notes[0]
  calls.clear()
  with pytest.raises(TransientError, match="still failing after 1 s"):
    wait_out(
      lambda: (_ for _ in ()).throw(OSError(errno.EIO, "I/O error")),
      "reading x",
      patience=1.0,
      sleep=waited.append,
    )
  with pytest.raises(FileNotFoundError):
    wait_out(
      pathlib.Path("/nowhere/x").read_bytes, "reading x", sleep=waited.append
    )
