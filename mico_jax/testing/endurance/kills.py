"""Kills a run at random and compares it with one that was left alone.

  python -m mico_jax.testing.endurance.kills --kills 100 --out kills

A mixture of three tasks on a tiny model is trained over 1 -> 2 -> 4 -> 2
processes, once undisturbed and once with SIGKILL and SIGTERM to random
processes during steps, saves and evaluations. After each kill the same command
is started again. Both runs must have seen the same samples at every step (also
at the steps they ran twice) and end with the same bits.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from mico_jax.checkpoint import manifest
from mico_jax.checkpoint.steps import CHECKPOINTS, list_steps
from mico_jax.config import Config, EvaluationConfig, TaskConfig, TrainConfig
from mico_jax.testing.ports import free_port
from mico_jax.testing.tiny_checkpoint import tiny_config

PROCESSES = (1, 2, 4, 2)
KINDS = ("step", "save", "eval")
SIGNALS = (signal.SIGKILL, signal.SIGTERM)
_EVENTS = "events.txt"
_STEPS_PER_KILL = 5
_PATIENCE = 600.0  # seconds without an event until a run counts as hung


def kill_config(steps: int) -> Config:
  """Three tasks, a save every 3 steps and an evaluation every 4."""
  base = tiny_config(name="kills")
  task = lambda group, count: TaskConfig(
    steps=count,
    sources={"train": 1},
    batch_size=4,
    objectives={"contrastive": (group,)},
  )
  model = dataclasses.replace(
    base.model,
    vision=dataclasses.replace(base.model.vision, depth=1),
    text=dataclasses.replace(base.model.text, depth=1),
    heads=("t", "v", "a", "va"),
    frame_table={"video": 1, "audio": 1},
    scan=False,
  )
  return dataclasses.replace(
    base,
    model=model,
    data=dataclasses.replace(base.data, inputs={}),
    tasks={"see": task("ti", 3), "hear": task("ta", 2), "both": task("tva", 1)},
    train=TrainConfig(
      steps=steps,
      checkpoint_every=3,
      eval_every=4,
      log_every=2,
      keep=2,
      tensorboard=False,
    ),
    evaluation=EvaluationConfig(
      source="test", size=4, batch_size=4, groups=("i",), bootstrap=0
    ),
  )


# --------------------------------------------------------------- one process
def _share_compiled() -> None:
  """Lets every process load what the first one compiled.

  On CPUs the fingerprint of the devices, part of a cached program's name, is
  another one in each process, and only the first writes: the others would
  compile at every start.
  """
  from jax._src import cache_key

  names: Any = cache_key
  names._hash_accelerator_config = names._hash_devices


def _record(number: int, task: str, batch: Any, ids: Sequence[str]) -> str:
  """Step, task, sample ids and their content as a line of JSON.

  Args:
    number: index of the step.
    task: of the step.
    batch: of this process.
    ids: of the samples of the whole batch.
  """
  inputs = batch["inputs"]
  content = {
    int(row): hashlib.sha256(
      b"".join(inputs[modality][i].tobytes() for modality in inputs)
    ).hexdigest()[:16]
    for i, row in enumerate(batch["row"])
  }
  rows = {row: ids[row] for row in content}
  return json.dumps(
    {"step": number, "task": task, "ids": rows, "content": content}
  )


def work(workdir: pathlib.Path, steps: int, stop_at: int) -> int:
  """Trains as `mico-jax pretrain` does, and writes down samples and phases.

  Args:
    workdir: of the run.
    steps: of the whole run.
    stop_at: the step at which this set of processes stops in order.

  Returns:
    The exit status.
  """
  from mico_jax.parallel import distributed
  from mico_jax.run import pretrain as lib
  from mico_jax.run import setup

  distributed.initialize_from_env()
  import jax

  _share_compiled()
  process = jax.process_index()
  workdir.mkdir(parents=True, exist_ok=True)

  def append(name: str, text: str) -> None:
    with (workdir / name).open("a", encoding="utf-8") as file:
      file.write(text)

  def note(kind: str, step: int) -> None:
    if process == 0:
      append(_EVENTS, f"{kind} {step}\n")

  stops: list[Any] = []
  # Not what is tested, and slow.
  unchecked: Any = lambda *_: None
  setup.make_self_check = unchecked

  class Stop(lib.StopSignal):
    def __enter__(self) -> Any:
      stops.append(self)
      return super().__enter__()

  class Noting(lib.Pipeline):
    def __iter__(self) -> Any:
      for number, task, batch in super().__iter__():
        line = _record(number, task, batch, self.sample_ids(number))
        append(f"samples-{process}.jsonl", f"\n{line}")
        note("step", number)
        if number + 1 == stop_at < steps:
          stops[-1].request()
        yield number, task, batch

  class Saving(lib.Manager):
    def save(self, step: int, *args: Any, **options: Any) -> bool:
      note("save", step)
      return super().save(step, *args, **options)

  evaluate = lib.evaluation.evaluate

  def evaluating(*args: Any, **options: Any) -> Any:
    note("eval", -1)
    return evaluate(*args, **options)

  lib.StopSignal, lib.Pipeline, lib.Manager = Stop, Noting, Saving  # ty: ignore
  lib.evaluation.evaluate = evaluating
  return lib.pretrain(kill_config(steps), workdir).exit_code


# ----------------------------------------------------------------- the driver
@dataclass
class Outcome:
  """Results of a whole run.

  Attributes:
    sha256: of the list step -> task, sample ids and their content.
    hashes: path of a parameter, moment or average -> content hash.
    kills: (kind, signal, number of processes) of each.
    seconds: wall time.
  """

  sha256: str
  hashes: dict[str, str]
  kills: list[tuple[str, str, int]] = field(default_factory=list)
  seconds: float = 0.0


def _environment(
  count: int, index: int, port: int, cache: str
) -> dict[str, str]:
  kept = {k: v for k, v in os.environ.items() if not k.startswith("MICO_JAX_")}
  flags = os.environ.get("XLA_FLAGS", "").split()
  overrides = {
    "JAX_PLATFORMS": "cpu",
    # One device each; how to compile stays as it is given.
    "XLA_FLAGS": " ".join(f for f in flags if "device_count" not in f),
    "JAX_COMPILATION_CACHE_DIR": cache,
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }
  if count > 1:
    overrides |= {
      "MICO_JAX_COORDINATOR": f"127.0.0.1:{port}",
      "MICO_JAX_NUM_PROCESSES": str(count),
      "MICO_JAX_PROCESS_ID": str(index),
      "MICO_JAX_HEARTBEAT": "10",
    }
  return {**kept, **overrides}


class Driver:
  """Starts, kills and restarts the processes of one run."""

  def __init__(self, folder: pathlib.Path, steps: int, seed: int):
    """Chooses nothing yet.

    Args:
      folder: of the run and its logs.
      steps: of the whole run.
      seed: of the kills.
    """
    self.workdir = folder / "run"
    self.steps = steps
    self.kills: list[tuple[str, str, int]] = []
    self._folder = folder
    self._random = random.Random(seed)
    self._log = 0
    folder.mkdir(parents=True, exist_ok=True)

  def _start(self, count: int, stop_at: int) -> list[subprocess.Popen[bytes]]:
    port, cache = free_port(), str(self._folder.parent / "cache")
    processes = []
    for index in range(count):
      self._log += 1
      with open(self._folder / f"log-{self._log:04d}.txt", "wb") as log:
        processes.append(
          subprocess.Popen(
            [
              *(
                sys.executable,
                "-m",
                "mico_jax.testing.endurance.kills",
                "--work",
              ),
              *(str(self.workdir), str(self.steps), str(stop_at)),
            ],
            env=_environment(count, index, port, cache),
            stdout=log,
            stderr=log,
          )
        )
    return processes

  def _events(self) -> list[str]:
    path = self.workdir / _EVENTS
    return path.read_text().split("\n") if path.exists() else []

  def _wait_for(
    self, processes: Sequence[subprocess.Popen[bytes]], kind: str, step: int
  ) -> bool:
    """Waits for a phase at or behind a step; false if the processes ended."""
    seen, reached = len(self._events()), False
    last = time.monotonic()
    while all(p.poll() is None for p in processes):
      events = self._events()
      for line in events[max(seen - 1, 0) : -1]:
        name, _, number = line.partition(" ")
        reached = reached or (name != "eval" and int(number) >= step)
        if reached and name == kind:
          return True
      if len(events) != seen:
        seen, last = len(events), time.monotonic()
      if time.monotonic() - last > _PATIENCE:
        raise RuntimeError(f"no event for {_PATIENCE:g} s; see {self._folder}")
      time.sleep(0.005)
    return False

  def _end(self, processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Waits as a launcher does, and ends the peers of a dead process."""
    end = time.monotonic() + _PATIENCE
    while any(p.poll() is None for p in processes):
      codes = [p.poll() for p in processes]
      if any(c not in (None, 0, 143) for c in codes) or time.monotonic() > end:
        for process in processes:
          process.kill()
      time.sleep(0.02)
    for process in processes:
      process.wait()

  def _done(self) -> int:
    return max(list_steps(self.workdir / CHECKPOINTS), default=0)

  def phase(self, count: int, stop_at: int, kills: Sequence[int]) -> None:
    """Trains to a step with some processes, with a kill behind each step."""
    waiting, idle = list(kills), 0
    while self._done() < stop_at:
      before = self._done()
      processes = self._start(count, stop_at)
      try:
        if waiting:
          kind = KINDS[self._random.randrange(len(KINDS))]
          if stop_at - waiting[0] < _STEPS_PER_KILL + 1:
            kind = "step"  # the others may not come any more
          number = SIGNALS[self._random.randrange(len(SIGNALS))]
          victim = processes[self._random.randrange(count)]
          if self._wait_for(processes, kind, waiting[0]):
            time.sleep(self._random.uniform(0, 0.1))
            victim.send_signal(number)
            self.kills.append((kind, number.name, count))
            waiting.pop(0)
        self._end(processes)
      finally:
        for process in processes:
          process.kill()
      idle = (
        0 if self._done() > before or len(kills) > len(waiting) else idle + 1
      )
      if idle > 2:
        raise RuntimeError(
          f"{count} processes make no progress behind step {before}; see "
          f"{self._folder}/log-{self._log:04d}.txt"
        )

  def samples(self) -> str:
    """Hash of step -> samples.

    Raises:
      RuntimeError: if a step that ran twice did not see the same samples.
    """
    samples: dict[tuple[int, int], tuple[str, ...]] = {}
    for path in sorted(self.workdir.glob("samples-*.jsonl")):
      for text in path.read_text().splitlines():
        with contextlib.suppress(json.JSONDecodeError):  # cut by a kill
          line = json.loads(text)
          for row, name in line["ids"].items():
            value = (line["task"], name, line["content"][row])
            place = (line["step"], int(row))
            if (first := samples.setdefault(place, value)) != value:
              raise RuntimeError(f"(step, row) {place}: {first}, then {value}")
    if {step for step, _ in samples} != set(range(self.steps)):
      raise RuntimeError("some steps have no samples")
    text = json.dumps(sorted(samples.items()))
    return hashlib.sha256(text.encode()).hexdigest()

  def hashes(self) -> dict[str, str]:
    """Content hash of every array of the last checkpoint."""
    folder = self.workdir / CHECKPOINTS / str(self.steps)
    items = manifest.read(folder)["items"]
    return {
      f"{item}/{path}": entry["sha256"]
      for item, entries in items.items()
      for path, entry in entries.items()
    }


def run(
  folder: pathlib.Path,
  *,
  kills: int,
  per_phase: int,
  processes: Sequence[int] = PROCESSES,
  seed: int = 0,
) -> Outcome:
  """One whole run over all phases.

  Args:
    folder: of the run; `cache` beside it holds compiled programs.
    kills: in all, spread over the phases; 0: undisturbed.
    per_phase: steps of a phase.
    processes: number of processes of each phase.
    seed: of the kills.
  """
  began = time.monotonic()
  steps = per_phase * len(processes)
  driver = Driver(folder, steps, seed)
  for index, count in enumerate(processes):
    share = kills * (index + 1) // len(processes) - kills * index // len(
      processes
    )
    first = index * per_phase
    targets = [first + 1 + i * per_phase // max(share, 1) for i in range(share)]
    driver.phase(count, first + per_phase, targets)
  return Outcome(
    driver.samples(), driver.hashes(), driver.kills, time.monotonic() - began
  )


def compare(
  out: pathlib.Path,
  *,
  kills: int,
  processes: Sequence[int] = PROCESSES,
  seed: int = 0,
) -> dict[str, Any]:
  """Runs both and compares them.

  Returns:
    What happened, JSON types only; "same_samples" and "same_bits" must be true.
  """
  share = -(-kills // len(processes))
  per_phase = max(8, _STEPS_PER_KILL * share + 4)
  options = {"per_phase": per_phase, "processes": processes, "seed": seed}
  alone = run(out / "alone", kills=0, **options)
  killed = run(out / "killed", kills=kills, **options)
  counts: dict[str, int] = {}
  for kind, name, _ in killed.kills:
    counts[f"{name} during {kind}"] = counts.get(f"{name} during {kind}", 0) + 1
  return {
    "steps": per_phase * len(processes),
    "processes": list(processes),
    "kills": len(killed.kills),
    "counts": counts,
    "sha256": alone.sha256,
    "same_samples": alone.sha256 == killed.sha256,
    "same_bits": alone.hashes == killed.hashes,
    "arrays": len(alone.hashes),
    "seconds": round(killed.seconds, 1),
    "seconds_alone": round(alone.seconds, 1),  # first, so it compiles
    "seconds_per_kill": round(killed.seconds / max(len(killed.kills), 1), 1),
  }


def main() -> int:
  """The command line."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
  parser.add_argument("--kills", type=int, default=100)
  parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("kills"))
  parser.add_argument("--processes", default=",".join(map(str, PROCESSES)))
  parser.add_argument("--seed", type=int, default=0)
  args = parser.parse_args()
  if args.work:
    workdir, steps, stop_at = args.work
    return work(pathlib.Path(workdir), int(steps), int(stop_at))
  outcome = compare(
    args.out,
    kills=args.kills,
    processes=[int(x) for x in args.processes.split(",")],
    seed=args.seed,
  )
  print(json.dumps(outcome, indent=2))
  return 0 if outcome["same_samples"] and outcome["same_bits"] else 1


if __name__ == "__main__":
  sys.exit(main())
