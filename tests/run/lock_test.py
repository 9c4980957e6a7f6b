"""Two runs cannot share a workdir; a dead one does not keep it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import pytest

from mico_jax.config import ConfigError
from mico_jax.run import lock
from mico_jax.run.lock import WorkdirLock
from mico_jax.testing import memory_path


def entry_of(workdir, **changes):
  """The lock file of a run of this process, with changes."""
  held = WorkdirLock(workdir)
  held.acquire()
  entry = json.loads((workdir / lock.FILE).read_text())
  held.release()
  return {**entry, **changes}


def test_second_run_names_the_holder(tmp_path):
  first = WorkdirLock(tmp_path)
  first.acquire()
  with pytest.raises(ConfigError) as caught:
    WorkdirLock(tmp_path).acquire()
  message = str(caught.value)
  assert f"in use by process {os.getpid()} on " in message
  assert "\n" not in message
  first.release()
  assert not (tmp_path / lock.FILE).exists()
  second = WorkdirLock(tmp_path)
  second.acquire()
  second.release()


def test_lock_of_a_dead_process_is_taken_over(tmp_path, capsys):
  done = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"],
                        capture_output=True, text=True, check=True)  # fmt: skip
  entry = entry_of(tmp_path, pid=int(done.stdout), token="other")
  (tmp_path / lock.FILE).write_text(json.dumps(entry))
  held = WorkdirLock(tmp_path)
  held.acquire()
  assert "is gone" in capsys.readouterr().err
  held.release()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_dead_process_that_nobody_waited_for_is_gone(tmp_path, capsys):
  """As under a container's first process that is no init."""
  sleep = "import time; time.sleep(60)"
  child = subprocess.Popen([sys.executable, "-c", sleep])
  started = lock._started(child.pid)
  entry = entry_of(tmp_path, pid=child.pid, started=started, token="other")
  (tmp_path / lock.FILE).write_text(json.dumps(entry))
  with pytest.raises(ConfigError, match="in use"):
    WorkdirLock(tmp_path).acquire()
  child.kill()
  while lock._stat(child.pid)[0] != "Z":
    time.sleep(0.01)
  held = WorkdirLock(tmp_path)
  held.acquire()
  assert "is gone" in capsys.readouterr().err
  held.release()
  child.wait()


def test_number_of_a_dead_process_may_be_used_again(tmp_path):
  entry = entry_of(tmp_path, pid=os.getppid(), started="1", token="other")
  (tmp_path / lock.FILE).write_text(json.dumps(entry))
  held = WorkdirLock(tmp_path)
  held.acquire()
  held.release()


def test_living_process_keeps_it(tmp_path):
  pid = os.getppid()
  entry = entry_of(tmp_path, pid=pid, started=lock._started(pid), token="other")
  (tmp_path / lock.FILE).write_text(json.dumps(entry))
  with pytest.raises(ConfigError, match=f"process {pid}"):
    WorkdirLock(tmp_path).acquire()


def test_other_host_keeps_it_while_it_renews(tmp_path, monkeypatch):
  entry = entry_of(tmp_path, host="elsewhere", token="other")
  path = tmp_path / lock.FILE
  path.write_text(json.dumps(entry))
  held = WorkdirLock(tmp_path, lease=0.2)
  held.acquire()  # nothing changed during the lease
  held.release()
  path.write_text(json.dumps(entry))
  read = WorkdirLock._read

  def renewing(self):
    found = read(self)
    if found:
      path.write_text(json.dumps({**found, "beats": found["beats"] + 1}))
    return found

  monkeypatch.setattr(WorkdirLock, "_read", renewing)
  with pytest.raises(ConfigError, match="on elsewhere"):
    WorkdirLock(tmp_path, lease=2.0).acquire()


def test_lock_cut_short_counts_as_none(tmp_path):
  (tmp_path / lock.FILE).write_text('{"pid": 1')
  held = WorkdirLock(tmp_path)
  held.acquire()
  held.release()


def test_renewal(tmp_path, monkeypatch):
  monkeypatch.setattr(lock, "BEAT", 0.02)
  held = WorkdirLock(tmp_path)
  held.acquire()
  path = tmp_path / lock.FILE
  for _ in range(200):
    if json.loads(path.read_text())["beats"] > 2:
      break
    held._ended.wait(0.02)
  else:
    raise AssertionError("not renewed")
  held.release()


def test_remote_workdir(monkeypatch):
  monkeypatch.setattr(lock, "_SETTLE", 0.0)
  memory_path.register()
  held = WorkdirLock("memory://lock/run")
  held.acquire()
  with pytest.raises(ConfigError, match="in use"):
    WorkdirLock("memory://lock/run").acquire()
  held.release()
