"""A long run of small steps with a kill every so often.

  python -m mico_jax.testing.endurance.soak --steps 10000 --out soak

trains three tasks on a tiny model, sends SIGKILL behind every 1,000 steps and
starts the same command again. Prints goodput, growth of memory within a start,
recompiles, time of a step, and the time from a restart to its first new step.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import time
from typing import Any

from mico_jax.config import Config, EvaluationConfig
from mico_jax.run.monitor.goodput import FILE as GOODPUT
from mico_jax.run.monitor.goodput import goodput
from mico_jax.run.monitor.metric_log import METRICS_FILE
from mico_jax.testing.endurance.kills import kill_config

CONFIG = """\
from mico_jax import config
from mico_jax.testing.endurance.soak import soak_config


def get_config(given):
  steps, width = map(int, given.split(","))
  return config.to_config_dict(soak_config(steps, width))
"""
WIDTH = 960  # of the encoder; a step then takes 31 ms on two CPU cores
LOG_EVERY = 20
_WARM = 200  # steps of a start until its memory counts as settled


def soak_config(steps: int, width: int) -> Config:
  """The tasks of `kills` without evaluation, saved every 100 steps."""
  config = kill_config(steps)
  vision = dataclasses.replace(
    config.model.vision, width=width, mlp_dim=4 * width
  )
  train = dataclasses.replace(
    config.train,
    checkpoint_every=100,
    eval_every=0,
    log_every=LOG_EVERY,
    nonfinite_patience=5,
  )
  data = dataclasses.replace(config.data, cache_mib=64)
  return dataclasses.replace(
    config,
    name="soak",
    model=dataclasses.replace(config.model, vision=vision),
    train=train,
    data=data,
    evaluation=EvaluationConfig(),
  )


def _lines(workdir: pathlib.Path) -> list[dict[str, Any]]:
  """The values that were logged, an unfinished last line left out."""
  path = workdir / METRICS_FILE
  if not path.exists():
    return []
  lines = []
  for line in path.read_text().split("\n")[:-1]:
    values = json.loads(line)
    if "time/step" in values:
      lines.append(values)
  return lines


def _start(
  out: pathlib.Path, steps: int, width: int
) -> subprocess.Popen[bytes]:
  file = out / "soak.py"
  file.write_text(CONFIG)
  environment = {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "",  # one device, also where tests ask for several
    "JAX_COMPILATION_CACHE_DIR": str(out / "cache"),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  }
  with (out / "log.txt").open("ab") as log:
    return subprocess.Popen(
      [
        *(sys.executable, "-m", "mico_jax", "pretrain"),
        *("--config", f"{file}:{steps},{width}"),
        *("--workdir", str(out / "run")),
      ],
      env=environment,
      stdout=log,
      stderr=log,
    )


@dataclasses.dataclass
class Watch:
  """Measurements of one start of the run.

  Attributes:
    restart_s: from the start of the process to its first new step, to the
      nearest `LOG_EVERY` steps, whose time is taken off.
    growth_gb: of the high-water mark of its memory, once it had settled.
  """

  restart_s: float = 0.0
  growth_gb: float = 0.0


def _follow(
  process: subprocess.Popen[bytes], out: pathlib.Path, until: int | None
) -> Watch:
  """Waits for a step, then kills; or for the end."""
  began, workdir = time.time(), out / "run"
  while process.poll() is None:
    time.sleep(0.05)
    lines = [x for x in _lines(workdir) if x["time"] > began]
    if until is not None and lines and lines[-1]["step"] >= until:
      process.send_signal(signal.SIGKILL)
      process.wait()
  if process.returncode not in (0, -signal.SIGKILL):
    raise RuntimeError(f"status {process.returncode}; see {out / 'log.txt'}")
  lines = [x for x in _lines(workdir) if x["time"] > began]
  watch = Watch()
  if lines:
    first = lines[0]
    steps = LOG_EVERY * first["time/step"] / 1000
    watch.restart_s = first["time"] - began - steps
  settled = [x for x in lines if x["step"] >= lines[0]["step"] + _WARM]
  if settled:
    marks = [x["memory/host_gb"] for x in (settled[0], settled[-1])]
    watch.growth_gb = marks[1] - marks[0]
  return watch


def soak(
  out: pathlib.Path, *, steps: int, every: int, width: int = WIDTH
) -> dict[str, Any]:
  """Trains to the end with a kill behind each `every` steps.

  Args:
    out: folder; an existing run in it goes on.
    steps: of the run.
    every: steps between two kills.
    width: of the encoder.

  Returns:
    What happened, JSON types only.
  """
  out.mkdir(parents=True, exist_ok=True)
  watches = []
  for until in (*range(every, steps, every), None):
    process = _start(out, steps, width)
    try:
      watches.append(_follow(process, out, until))
    finally:
      process.kill()
      process.wait()
  sessions = json.loads((out / "run" / GOODPUT).read_text())
  text = (out / "run" / METRICS_FILE).read_text().splitlines()
  values = [json.loads(line) for line in text]
  last = [x for x in values if "recompiles" in x][-1]
  times = [x["time/step"] for x in values if "time/step" in x]
  return {
    "steps": sessions[-1]["step"],
    "faults": len(watches) - 1,
    "goodput": goodput(sessions, sessions[-1]["ended"]),
    "recompiles": last["recompiles"],
    "step_ms": statistics.median(times),
    "growth_gb": max(w.growth_gb for w in watches),
    "restart_s": statistics.median([w.restart_s for w in watches[1:]] or [0]),
  }


def main() -> int:
  """The command line."""
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--steps", type=int, default=10_000)
  parser.add_argument("--every", type=int, default=1_000)
  parser.add_argument("--width", type=int, default=WIDTH)
  parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("soak"))
  args = parser.parse_args()
  sizes = {"steps": args.steps, "every": args.every}
  print(json.dumps(soak(args.out, **sizes, width=args.width)))
  return 0


if __name__ == "__main__":
  sys.exit(main())
