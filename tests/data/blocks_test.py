"""The block cache: right bytes, bounded disk, whatever process dies when."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest

from mico_jax.data.storage.blocks import BlockCache
from mico_jax.data.storage.cached_file import BLOCK

KEY = "0123456789abcdef" * 2
MB = 1 << 20


def content(size: int, seed: int = 0) -> bytes:
  return np.random.default_rng(seed).bytes(size)


def on_disk(folder: pathlib.Path) -> int:
  return sum(
    file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file()
  )


def test_what_was_put_is_read_and_nothing_else(tmp_path):
  cache = BlockCache(tmp_path, 8 * MB)
  data = content(5 * BLOCK + 77)
  size = len(data)
  assert cache.read(KEY, size, 0, 10) is None
  assert cache.missing(KEY, size, 3, BLOCK + 1) == (0, 2 * BLOCK)
  assert cache.put(KEY, size, BLOCK, data[BLOCK : 2 * BLOCK])
  assert cache.put(KEY, size, 4 * BLOCK, data[4 * BLOCK :])
  assert (
    cache.read(KEY, size, BLOCK + 5, 2 * BLOCK) == data[BLOCK + 5 : 2 * BLOCK]
  )
  assert cache.read(KEY, size, size - 3, size) == data[-3:]
  assert cache.read(KEY, size, BLOCK, 3 * BLOCK) is None
  # Absent blocks and what lies between them are one request.
  assert cache.missing(KEY, size, 0, size) == (0, 4 * BLOCK)
  again = BlockCache(tmp_path, 8 * MB)  # as another process has it
  assert again.read(KEY, size, 4 * BLOCK, size) == data[4 * BLOCK :]


def test_the_oldest_unread_blocks_go_and_disk_stays_below(tmp_path):
  limit = 2 * MB
  cache = BlockCache(tmp_path, limit)
  data = content(16 * MB)
  step = 4 * BLOCK
  first = data[:step]
  assert cache.put(KEY, len(data), 0, first)
  for start in range(step, len(data), step):
    assert cache.put(KEY, len(data), start, data[start : start + step])
    assert on_disk(tmp_path) <= limit
    # One that is read again and again stays.
    assert cache.read(KEY, len(data), 0, step) == first
    back = cache.read(KEY, len(data), start, start + step)
    assert back == data[start : start + step]
  assert cache.read(KEY, len(data), step, 2 * step) is None
  assert on_disk(tmp_path) > limit // 2


def test_many_files_share_the_limit(tmp_path):
  limit = MB // 2
  cache = BlockCache(tmp_path, limit)
  for i in range(60):
    key = f"{i:032x}"
    data = content(BLOCK, i)
    with contextlib.suppress(OSError):  # maps of what is open take room
      cache.put(key, len(data), 0, data)
    assert on_disk(tmp_path) <= limit
  del cache
  again = BlockCache(tmp_path, limit)
  assert again.put("f" * 32, BLOCK, 0, content(BLOCK, 7))
  assert again.read("f" * 32, BLOCK, 0, BLOCK) == content(BLOCK, 7)
  assert on_disk(tmp_path) <= limit


def test_what_does_not_fit_is_not_kept(tmp_path):
  cache = BlockCache(tmp_path, MB)
  assert not cache.put(KEY, 4 * MB, 0, bytes(2 * MB))
  assert cache.read(KEY, 4 * MB, 0, 1) is None


def test_threads_see_right_bytes_while_blocks_come_and_go(tmp_path):
  cache = BlockCache(tmp_path, MB)
  data = content(4 * MB)
  wrong, reads = [], [0]
  stop = time.monotonic() + 2

  def work(seed: int) -> None:
    rng = np.random.default_rng(seed)
    while time.monotonic() < stop:
      block = int(rng.integers(len(data) // BLOCK - 2))
      start, end = block * BLOCK, (block + 2) * BLOCK
      back = cache.read(KEY, len(data), start, end)
      if back is None:
        cache.put(KEY, len(data), start, data[start:end])
      else:
        reads[0] += 1
        if back != data[start:end]:
          wrong.append(block)

  threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join()
  assert not wrong
  assert reads[0] > 10
  assert on_disk(tmp_path) <= MB


CHILD = """
import pathlib, sys
import numpy as np
from mico_jax.data.storage.blocks import BlockCache
from mico_jax.data.storage.cached_file import BLOCK
folder, key, seed = sys.argv[1], sys.argv[2], int(sys.argv[3])
data = np.random.default_rng(0).bytes(4 << 20)
cache = BlockCache(pathlib.Path(folder), 1 << 20)
rng = np.random.default_rng(seed)
print("ready", flush=True)
while True:
  block = int(rng.integers(len(data) // BLOCK - 3))
  start, end = block * BLOCK, (block + 3) * BLOCK
  back = cache.read(key, len(data), start, end)
  if back is None:
    cache.put(key, len(data), start, data[start:end])
  elif back != data[start:end]:
    print("wrong", block, flush=True)
    sys.exit(1)
"""


def test_processes_that_are_killed_leave_no_wrong_block(tmp_path, repository):
  data = content(4 * MB)
  for turn in range(2):
    children = [
      subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path), KEY, str(2 * turn + i)],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(repository)},
        text=True,
      )
      for i in range(2)
    ]
    try:
      for child in children:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
      time.sleep(0.2 + 0.1 * turn)
      for child in children:
        assert child.poll() is None
        child.send_signal(signal.SIGKILL)
    finally:
      for child in children:
        child.kill()
        assert child.communicate()[0] == ""
    cache = BlockCache(tmp_path, MB)
    present = 0
    for start in range(0, len(data), BLOCK):
      back = cache.read(KEY, len(data), start, start + BLOCK)
      if back is not None:
        present += 1
        assert back == data[start : start + BLOCK]
    assert present > 4
    assert on_disk(tmp_path) <= MB


def test_a_cut_change_is_counted_anew(tmp_path):
  """As if killed between the bytes and the map, then between map and counts."""
  data = content(MB)
  cache = BlockCache(tmp_path, 4 * MB)
  assert cache.put(KEY, MB, 0, data[: 2 * BLOCK])
  file = cache.file(KEY, MB)

  def cut() -> None:
    with cache._changing():
      os.pwrite(file.handle, data[4 * BLOCK : 8 * BLOCK], 4 * BLOCK)
      file.set_present(4, 6)
      raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    cut()
  before = on_disk(tmp_path)
  again = BlockCache(tmp_path, 4 * MB)
  assert on_disk(tmp_path) <= before - 2 * BLOCK  # bytes that no map knew of
  assert again._used == 4 * BLOCK
  assert (
    again.read(KEY, MB, 4 * BLOCK, 6 * BLOCK) == data[4 * BLOCK : 6 * BLOCK]
  )
  assert again.read(KEY, MB, 6 * BLOCK, 7 * BLOCK) is None


def test_a_start_of_the_machine_empties_it(tmp_path, monkeypatch):
  cache = BlockCache(tmp_path, MB)
  assert cache.put(KEY, BLOCK, 0, content(BLOCK))
  del cache
  monkeypatch.setattr("mico_jax.data.storage.blocks._boot", lambda: b"later")
  cache = BlockCache(tmp_path, MB)
  assert cache.read(KEY, BLOCK, 0, BLOCK) is None
