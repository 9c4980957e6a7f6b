"""A run that hangs says where and ends."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest

from mico_jax.run.cluster import status
from mico_jax.run.cluster.watchdog import Watchdog


def test_barks_once_with_stacks(tmp_path, capsys):
  ended = threading.Event()
  codes: list[int] = []

  def end(code):
    codes.append(code)
    ended.set()

  with Watchdog(0.2, tmp_path, end=end) as dog:
    dog.beat(41)
    assert ended.wait(10)
  assert codes == [status.HUNG]
  text = (tmp_path / "hang-0.txt").read_text()
  assert "since step 41" in text
  assert "test_barks_once_with_stacks" in text
  assert "same command resumes" in capsys.readouterr().err


@pytest.mark.parametrize("seconds", [0.0, 0.4])
def test_quiet_while_it_beats_or_pauses(tmp_path, seconds):
  codes: list[int] = []
  with Watchdog(seconds, tmp_path, end=codes.append) as dog:
    for step in range(8):
      dog.beat(step)
      time.sleep(0.1)
    with dog.paused():
      time.sleep(0.8)
  assert codes == []


def test_process_ends_with_its_own_status(tmp_path):
  program = (
    "import sys, time\n"
    "from mico_jax.run.cluster.watchdog import Watchdog\n"
    "with Watchdog(0.2, sys.argv[1]):\n"
    "  time.sleep(600)\n"
  )
  done = subprocess.run(
    [sys.executable, "-c", program, str(tmp_path)],
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )
  assert done.returncode == status.HUNG
  assert "no step finished at all" in done.stderr
  assert "sleep" in done.stderr or "Thread" in done.stderr
