"""Two runs cannot share a workdir; a dead one does not keep it."""

from __future__ import annotations

import errno
import http.server
import json
import os
import subprocess
import sys
import threading
import time
import urllib.parse

import pytest

from mico_jax.config import ConfigError
from mico_jax.run.cluster import lock, record, status
from mico_jax.run.cluster.lock import WorkdirLock
from mico_jax.testing import memory_path, s3_server


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
    found, version = read(self)
    if found:
      path.write_text(json.dumps({**found, "beats": found["beats"] + 1}))
    return found, version

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


def test_remote_workdir():
  memory_path.register()
  held = WorkdirLock("memory://lock/run")
  held.acquire()
  with pytest.raises(ConfigError, match="in use"):
    WorkdirLock("memory://lock/run").acquire()
  held.release()


# ------------------------------------------------------------- holding it
def test_renewal_survives_anything(tmp_path, monkeypatch, capsys):
  monkeypatch.setattr(lock, "BEAT", 0.02)
  ends: list[int] = []
  held = WorkdirLock(tmp_path, lease=5.0, end=ends.append)
  held.acquire()
  swap, errors = (
    record._Local.swap,
    iter(
      [RuntimeError("no OSError"), SystemExit(3), OSError(errno.EIO, "I/O")]
    ),
  )

  def failing(self, data, version):
    for error in errors:
      raise error
    return swap(self, data, version)

  before = json.loads((tmp_path / lock.FILE).read_text())["beats"]
  monkeypatch.setattr(record._Local, "swap", failing)
  for _ in range(500):
    if json.loads((tmp_path / lock.FILE).read_text())["beats"] > before + 4:
      break
    time.sleep(0.02)
  else:
    raise AssertionError("not renewed")
  assert ends == []
  assert "no OSError" in capsys.readouterr().err
  held.release()


@pytest.mark.parametrize("how", ["raises", "hangs"])
def test_holder_that_cannot_renew_ends_itself(
  how, tmp_path, monkeypatch, capsys
):
  monkeypatch.setattr(lock, "BEAT", 0.05)
  ends: list[int] = []
  held = WorkdirLock(tmp_path, lease=0.4, end=ends.append)
  held.acquire()
  stop = threading.Event()

  def broken(self, data, version):
    if how == "hangs":
      stop.wait(20)
    raise OSError(errno.ESTALE, "stale")

  began = time.monotonic()
  monkeypatch.setattr(record._Local, "swap", broken)
  while not ends and time.monotonic() < began + 10:
    time.sleep(0.01)
  assert ends == [status.LOST]
  # Not before another host could have taken it, and soon after.
  assert 0.3 < time.monotonic() - began < 5
  assert "could not be renewed" in capsys.readouterr().err
  stop.set()
  held.release()


def test_holder_that_lost_it_ends_itself(tmp_path, monkeypatch):
  monkeypatch.setattr(lock, "BEAT", 0.05)
  ends: list[int] = []
  held = WorkdirLock(tmp_path, end=ends.append)
  held.acquire()
  entry = json.loads((tmp_path / lock.FILE).read_text())
  (tmp_path / lock.FILE).write_text(json.dumps({**entry, "token": "other"}))
  for _ in range(200):
    if ends:
      break
    time.sleep(0.02)
  assert ends[0] == status.LOST
  held.release()
  assert json.loads((tmp_path / lock.FILE).read_text())["token"] == "other"


def test_a_full_disk_does_not_keep_from_renewing(tmp_path, monkeypatch):
  """The file is written in place and never grows."""
  held = WorkdirLock(tmp_path)
  held.acquire()
  before = os.stat(tmp_path / lock.FILE)
  assert held._take(held._version)
  after = os.stat(tmp_path / lock.FILE)
  assert (after.st_ino, after.st_size) == (before.st_ino, before.st_size)
  held.release()


# ----------------------------------------------------- many at the same moment
# Waits for a line of stdin, then says whether it got the lock, and holds it.
_STARTER = """
import sys
from mico_jax.config import ConfigError
from mico_jax.run.cluster.lock import WorkdirLock
from mico_jax.testing import memory_path
held = WorkdirLock(sys.argv[1], lease=0.2)
print("ready", flush=True)
sys.stdin.readline()
try:
  held.acquire()
  print("won", flush=True)
except ConfigError as error:
  print("lost", error, flush=True)
sys.stdin.readline()
held.release()
"""


def contest(workdir: str, write_stale, *, rounds: int, starts: int = 6):
  """Lets processes start on a stale lock at once; the winners of each round."""
  winners = []
  for _ in range(rounds):
    write_stale()
    running = [
      subprocess.Popen(
        [sys.executable, "-c", _STARTER, workdir],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
      )
      for _ in range(starts)
    ]
    for process in running:
      assert process.stdout.readline() == "ready\n"
    for process in running:
      process.stdin.write("\n")
      process.stdin.flush()
    said = [process.stdout.readline() for process in running]
    winners.append(sum(line == "won\n" for line in said))
    assert all(line.startswith(("won", "lost")) for line in said), said
    for process in running:
      process.communicate("\n", timeout=60)
  return winners


def threads_at_once(workdir: str, write_stale, *, rounds: int, starts: int):
  """As `contest`, with threads of this process: quicker and closer together."""
  winners = []
  for _ in range(rounds):
    write_stale()
    gate = threading.Barrier(starts)
    won: list[WorkdirLock] = []
    other: list[BaseException] = []

    def start(gate=gate, won=won, other=other):
      # A busy machine may hold it for longer than this lease.
      held = WorkdirLock(workdir, lease=0.2, end=lambda code: None)
      gate.wait()
      try:
        held.acquire()
        won.append(held)
      except ConfigError:
        pass
      except BaseException as error:
        other.append(error)

    running = [threading.Thread(target=start) for _ in range(starts)]
    for thread in running:
      thread.start()
    for thread in running:
      thread.join()
    assert other == []
    winners.append(len(won))
    for held in won:
      held.release()
  return winners


def stale(workdir, **changes):
  """Content of a lock whose holder on this host is gone."""
  other = {"token": "stale", "pid": 2**22 + 1, "started": "1", **changes}
  return json.dumps(entry_of(workdir, **other))


@pytest.mark.parametrize("left", ["here", "elsewhere", "absent", "cut"])
def test_one_of_many_local_starts_wins(tmp_path, left):
  changes = {"host": "elsewhere"} if left == "elsewhere" else {}
  content = stale(tmp_path, **changes)
  if left == "cut":
    content = content[:20]
  path = tmp_path / lock.FILE

  def write_stale():
    if left == "absent":
      path.unlink(missing_ok=True)
    else:
      path.write_text(content)

  rounds = 3 if left == "elsewhere" else 15
  found = threads_at_once(str(tmp_path), write_stale, rounds=rounds, starts=8)
  assert found == [1] * rounds


def test_one_of_many_local_processes_wins(tmp_path):
  content = stale(tmp_path)
  path = tmp_path / lock.FILE
  found = contest(str(tmp_path), lambda: path.write_text(content), rounds=2)
  assert found == [1, 1]


@pytest.mark.slow
@pytest.mark.parametrize("left", ["here", "elsewhere", "absent"])
def test_one_of_many_s3_starts_wins(tmp_path, left, monkeypatch):
  changes = {"host": "elsewhere"} if left == "elsewhere" else {}
  content = stale(tmp_path, **changes)
  with s3_server.running(monkeypatch.setenv) as bucket:
    import fsspec

    store = fsspec.filesystem("s3", skip_instance_cache=True)
    workdir = f"{bucket}/run"

    def write_stale():
      if left == "absent":
        if store.exists(f"{workdir}/{lock.FILE}"):
          store.rm(f"{workdir}/{lock.FILE}")
        store.invalidate_cache()
      else:
        store.pipe_file(f"{workdir}/{lock.FILE}", content.encode())

    rounds = 4 if left == "elsewhere" else 20
    found = threads_at_once(workdir, write_stale, rounds=rounds, starts=6)
    assert found == [1] * rounds
    if left == "here":
      assert contest(workdir, write_stale, rounds=1, starts=4) == [1]


class _Bucket(http.server.BaseHTTPRequestHandler):
  """Objects with generations, as far as a lock needs Google's JSON API."""

  protocol_version = "HTTP/1.1"
  objects: dict[str, tuple[int, bytes]]
  guard: threading.Lock
  answers_lost: list[int]  # writes that are done and answered by 503

  def log_message(self, *_):
    pass

  def _answer(self, code, body=b"{}", **headers):
    self.send_response(code)
    for name, value in headers.items():
      self.send_header(name.replace("_", "-"), value)
    self.send_header("Content-Length", str(len(body)))
    self.end_headers()
    self.wfile.write(body)

  def _query(self):
    url = urllib.parse.urlparse(self.path)
    return url.path, dict(urllib.parse.parse_qsl(url.query))

  def do_GET(self):
    path, _ = self._query()
    found = self.objects.get(urllib.parse.unquote(path.rpartition("/")[2]))
    if found is None:
      self._answer(404)
    else:
      self._answer(200, found[1], x_goog_generation=str(found[0]))

  def do_POST(self):
    _, query = self._query()
    data = self.rfile.read(int(self.headers["Content-Length"]))
    with self.guard:
      now = self.objects.get(query["name"], (0, b""))[0]
      if str(now) != query["ifGenerationMatch"]:
        self._answer(412)
        return
      self.objects[query["name"]] = (now + 1, data)
    if self.answers_lost:
      self._answer(self.answers_lost.pop())
      return
    self._answer(200, json.dumps({"generation": str(now + 1)}).encode())

  def do_DELETE(self):
    path, query = self._query()
    name = urllib.parse.unquote(path.rpartition("/")[2])
    with self.guard:
      if str(self.objects.get(name, (0,))[0]) != query["ifGenerationMatch"]:
        self._answer(412)
        return
      del self.objects[name]
    self._answer(204, b"")


@pytest.fixture
def google(monkeypatch):
  """A server of generations; its handler's class."""
  fsspec = pytest.importorskip("fsspec")
  gcsfs = pytest.importorskip("gcsfs")
  handler = type(
    "Bucket",
    (_Bucket,),
    {"objects": {}, "guard": threading.Lock(), "answers_lost": []},
  )
  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
  threading.Thread(target=server.serve_forever, daemon=True).start()
  url = f"http://127.0.0.1:{server.server_port}"
  made = gcsfs.GCSFileSystem(
    token="anon", endpoint_url=url, skip_instance_cache=True
  )
  real = fsspec.filesystem
  monkeypatch.setattr(
    fsspec,
    "filesystem",
    lambda name, **kw: made if name == "gs" else real(name, **kw),
  )
  monkeypatch.setattr(lock.files, "make_folder", lambda _: None)
  yield handler
  server.shutdown()
  server.server_close()


def test_one_of_many_google_starts_wins(tmp_path, google):
  content = stale(tmp_path).encode()
  key = f"run/{lock.FILE}"

  def write_stale():
    google.objects[key] = (7, content)

  found = threads_at_once("gs://bucket/run", write_stale, rounds=5, starts=6)
  assert found == [1] * 5
  assert key not in google.objects  # released
  assert (
    threads_at_once("gs://bucket/run", google.objects.clear, rounds=3, starts=6)
    == [1] * 3
  )


def test_a_lost_answer_does_not_lose_the_lock(google):
  """The write was done and the answer was not: the repeated one must see."""
  google.answers_lost.append(503)
  held = WorkdirLock("gs://bucket/run")
  held.acquire()
  google.answers_lost.append(503)
  assert held._take(held._version)
  held.release()
  assert google.objects == {}
