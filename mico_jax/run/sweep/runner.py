"""Trains the runs of a sweep, each in a process of its own.

A run that has its result is left alone, one that was interrupted goes on from
its newest checkpoint. A run that fails is noted, and the others go on.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import IO

from mico_jax import config as config_lib
from mico_jax import files
from mico_jax.config import ConfigError
from mico_jax.run.cluster.signals import StopSignal
from mico_jax.run.monitor.progress import format_seconds, say
from mico_jax.run.sweep.plan import CONFIG_FILE, RESULT_FILE, Run, is_done
from mico_jax.run.sweep.start import START_FILE, start_of

LOG_FILE = "sweep.log"
POLL = 0.2  # seconds between two looks at the processes
SAY_EVERY = 60.0  # seconds between two lines while no run ends
_PACKAGE = str(pathlib.Path(__file__).resolve().parents[3])


@dataclass(frozen=True)
class Failure:
  """A run that did not end.

  Attributes:
    name: of the run.
    reason: exit status and the last line of its log.
    log: file with all that it said.
  """

  name: str
  reason: str
  log: str


@dataclass
class Outcome:
  """What became of the runs.

  Attributes:
    done: names of those that have their result.
    failed: those that ended without.
    stopped: a signal ended the sweep before all had run.
  """

  done: list[str] = field(default_factory=list)
  failed: list[Failure] = field(default_factory=list)
  stopped: int = 0


Start = Callable[[str, IO[bytes]], "subprocess.Popen[bytes]"]


def starter(
  launcher: str = "", environment: Mapping[str, str] | None = None
) -> Start:
  """What starts the process of a run.

  Args:
    launcher: command put in front, such as "srun --gres=gpu:1".
    environment: variables of the process besides those of this one.
  """
  prefix = shlex.split(launcher)

  def start(folder: str, log: IO[bytes]) -> subprocess.Popen[bytes]:
    paths = [_PACKAGE, os.environ.get("PYTHONPATH", "")]
    command = [*prefix, sys.executable, "-P", "-m", "mico_jax", "sweep"]
    try:
      return subprocess.Popen(
        [*command, "--run", folder],
        stdout=log,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        env={
          **os.environ,
          **(environment or {}),
          "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        },
        # Ctrl-C reaches this process alone, which passes it on once.
        start_new_session=True,
      )
    except OSError as error:
      raise ConfigError(
        f"--launcher {launcher!r}: cannot start {command[0]!r}: "
        f"{error.strerror}."
      ) from None

  return start


@contextlib.contextmanager
def shared_compilations() -> Iterator[dict[str, str]]:
  """Variables of processes that share the programs which they compile.

  The programs lie in a folder that goes away with the sweep, as programs of a
  CPU may not suit another machine; JAX_COMPILATION_CACHE_DIR comes first.
  """
  if "JAX_COMPILATION_CACHE_DIR" in os.environ:
    yield {}
    return
  with tempfile.TemporaryDirectory(prefix="mico_jax_sweep_") as folder:
    yield {
      "JAX_COMPILATION_CACHE_DIR": folder,
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.3",
    }


def train(
  runs: Sequence[Run],
  root: str,
  *,
  jobs: int = 1,
  launcher: str = "",
  start: Start | None = None,
) -> Outcome:
  """Trains the runs that are not done.

  Args:
    runs: of a plan.
    root: folder of the sweep, which gets a workdir for each.
    jobs: processes at a time.
    launcher: command put in front of each, see `starter`.
    start: starts the process of a run; None: as `starter` does.

  Raises:
    ConfigError: before anything starts, if a folder holds a run of another
      config, or `root` lies in a store.
  """
  if not files.is_local(root):
    raise ConfigError(f"--out {root}: expected a local folder.")
  outcome = Outcome()
  done = {run.name for run in runs if is_done(run, root)}
  waiting = [run for run in runs if run.name not in done]
  outcome.done = [run.name for run in runs if run.name in done]
  if outcome.done:
    say(f"{len(outcome.done)} of {len(runs)} runs are done already.")
  if not waiting:
    return outcome
  for run in waiting:
    folder = pathlib.Path(root) / run.name
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / CONFIG_FILE
    path.write_text(config_lib.to_json(run.config), encoding="utf-8")
    if origin := start_of(run.init):
      text = json.dumps(origin)
      (folder / START_FILE).write_text(text, encoding="utf-8")
  with StopSignal() as stop, shared_compilations() as environment:
    start = start or starter(launcher, environment)
    _Pool(waiting, root, jobs, start, outcome).run(stop)
  return outcome


class _Pool:
  """The processes of a sweep."""

  def __init__(
    self,
    waiting: Sequence[Run],
    root: str,
    jobs: int,
    start: Start,
    outcome: Outcome,
  ):
    self._waiting = list(waiting)
    self._root = pathlib.Path(root)
    self._jobs = jobs
    self._start = start
    self._outcome = outcome
    self._running: dict[str, tuple[subprocess.Popen[bytes], float]] = {}
    self._steps = {run.name: run.config.train.steps for run in waiting}
    self._ended = 0  # steps of runs that ended
    self._began = self._told = time.monotonic()

  def run(self, stop: StopSignal) -> None:
    """Until all have ended, or a signal came and they have saved."""
    try:
      while self._running or (self._waiting and not stop.requested):
        while (
          self._waiting
          and len(self._running) < self._jobs
          and not stop.requested
        ):
          self._begin(self._waiting.pop(0))
        if stop.requested and not self._outcome.stopped:
          self._outcome.stopped = stop.exit_code
          self._ask_to_stop()
        time.sleep(POLL)
        for name in [n for n, (p, _) in self._running.items() if not _runs(p)]:
          self._end(name)
        if time.monotonic() - self._told > SAY_EVERY:
          self._tell(f"training {', '.join(self._running)}")
    finally:
      self._ask_to_stop()  # nothing runs on where this process fails

  def _begin(self, run: Run) -> None:
    with open(self._root / run.name / LOG_FILE, "ab") as log:
      process = self._start(str(self._root / run.name), log)
    self._running[run.name] = (process, time.monotonic())

  def _ask_to_stop(self) -> None:
    for process, _ in self._running.values():
      # The whole group, as a launcher may not pass signals on.
      with contextlib.suppress(OSError):
        os.killpg(process.pid, signal.SIGTERM)

  def _end(self, name: str) -> None:
    process, began = self._running.pop(name)
    seconds = format_seconds(time.monotonic() - began)
    self._ended += self._steps[name]
    folder = self._root / name
    if process.returncode == 0 and (folder / RESULT_FILE).is_file():
      self._outcome.done.append(name)
      self._tell(f"{name} done in {seconds}")
      return
    if self._outcome.stopped:
      return
    log = folder / LOG_FILE
    reason = f"exit status {process.returncode}: {_last_line(log)}"
    self._outcome.failed.append(Failure(name, reason, str(log)))
    self._tell(f"{name} FAILED after {seconds}, {reason}")

  def _tell(self, text: str) -> None:
    """A line of progress, with the time that is left by the steps done."""
    self._told = time.monotonic()
    total = sum(self._steps.values())
    left = math.inf
    if self._ended:
      rate = self._ended / (self._told - self._began)
      left = (total - self._ended) / rate
    number = len(self._waiting) + len(self._running)
    say(f"sweep: {text} | {number} runs left, eta {format_seconds(left)}")


def _runs(process: subprocess.Popen[bytes]) -> bool:
  return process.poll() is None


def _last_line(log: pathlib.Path) -> str:
  """The last line that a run said."""
  lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
  return next((x for x in reversed(lines) if x.strip()), "it said nothing")[
    :300
  ]
