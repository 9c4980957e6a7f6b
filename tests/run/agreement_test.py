"""Processes that would not train the same thing end before the first step."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
import time

import jax.numpy as jnp
import pytest

from mico_jax.checkpoint.steps import CHECKPOINTS, list_steps
from mico_jax.config import ConfigError
from mico_jax.run.cluster import agreement
from mico_jax.run.pretrain import IN_FLIGHT
from mico_jax.testing import tiny_checkpoint
from mico_jax.testing.ports import free_port


def notes(**changes):
  """Notes of three equal processes, the last with changes."""
  first = agreement.note(tiny_checkpoint.tiny_config())
  last = {**copy.deepcopy(first), **changes}
  return [first, dict(first), last]


def test_equal_processes_agree():
  agreement.compare(notes())


def test_difference_is_named():
  first = notes()[0]
  for changes, message in (
    ({"clock": first["clock"] - 100}, "clock of process 2 differs by -1"),
    ({"seed": 7}, "process 2 has another seed than process 0: seed: 0 != 7"),
    ({"versions": {**first["versions"], "jax": "0.1"}}, "jax: "),
    ({"config": {**first["config"], "name": "x"}}, "name: 'tiny', now 'x'"),
  ):
    with pytest.raises(ConfigError) as caught:
      agreement.compare(notes(**changes))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.multidevice
def test_seed_of_two_processes_differs(tmp_path):
  file = tmp_path / "tiny.py"
  file.write_text(tiny_checkpoint.CONFIG_FILE)
  command = [
    *(sys.executable, "-m", "mico_jax", "pretrain", "--config", str(file)),
    *("--workdir", str(tmp_path / "w")),
  ]
  base = {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "",
    "MICO_JAX_COORDINATOR": f"127.0.0.1:{free_port()}",
    "MICO_JAX_NUM_PROCESSES": "2",
  }
  processes = [
    subprocess.Popen(
      [*command, f"--config.seed={index}"],
      env={**base, "MICO_JAX_PROCESS_ID": str(index)},
      stderr=subprocess.PIPE,
      text=True,
    )
    for index in range(2)
  ]
  try:
    for process in processes:
      _, err = process.communicate(timeout=300)
      assert process.returncode == 2, err
      line = err.strip().splitlines()[-1]
      assert "process 1 has another seed than process 0: seed: 0 != 1" in line
      assert "Traceback" not in err
  finally:
    for process in processes:
      process.kill()
  assert not (tmp_path / "w").exists()


# The real loop over steps that take a while on the device. Notes, before each
# step is queued, how many of the former ones are still under way.
WORKER = """
import dataclasses, json, pathlib, sys, time
from mico_jax.parallel import distributed
distributed.initialize_from_env()
import jax, jax.numpy as jnp
from mico_jax.run import pretrain as lib, setup
from mico_jax.testing.tiny_checkpoint import tiny_config

out, steps, length = pathlib.Path(sys.argv[1]), *map(int, sys.argv[2:])
setup.make_self_check = lambda *_: None
compile_steps = lib.compile_steps
running, depths = [], []

def slow(session, state):
  work = jax.jit(
    lambda n: n + 0 * jax.lax.fori_loop(
      0, length, lambda _, x: jnp.sin(x), n.astype("f4")).astype(n.dtype),
    out_shardings=state.step.sharding,
  ).lower(state.step).compile()

  def wrap(step):
    def call(state, batch):
      depths.append(sum(not x.is_ready() for x in running))
      state, metrics = step(state, batch)
      counter = work(state.step)
      running.append(counter.copy())
      with (out / "steps").open("a") as file:
        file.write("x")
      return dataclasses.replace(state, step=counter), metrics
    return call

  return {
    k: dataclasses.replace(v, run=wrap(v.run))
    for k, v in compile_steps(session, state).items()
  }

lib.compile_steps = slow
config = tiny_config()
config = dataclasses.replace(
  config,
  train=dataclasses.replace(
    config.train, steps=steps, checkpoint_every=0, log_every=steps),
  evaluation=dataclasses.replace(config.evaluation, source=""),
)
trainer = lib.Trainer(config, out / "run")
summary = trainer.run()
parts = ("input_wait", "transfer", "step", "log", "save", "check")
clock = trainer.clock
host = clock.train - sum(getattr(clock, part) for part in parts)
(out / f"{jax.process_index()}.json").write_text(json.dumps({
  "depths": depths, "host": host, "train": clock.train, "step": summary.step,
  "exit_code": summary.exit_code}))
sys.exit(summary.exit_code)
"""


def start_workers(folder, *arguments: int) -> list[subprocess.Popen[str]]:
  base = {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "",
    "MICO_JAX_COORDINATOR": f"127.0.0.1:{free_port()}",
    "MICO_JAX_NUM_PROCESSES": "2",
  }
  return [
    subprocess.Popen(
      [sys.executable, "-c", WORKER, str(folder), *map(str, arguments)],
      env={**base, "MICO_JAX_PROCESS_ID": str(index)},
      stderr=subprocess.PIPE,
      text=True,
    )
    for index in range(2)
  ]


def ended(processes, codes: list[int], folder) -> list[dict[str, object]]:
  """What the workers noted; they must end with these statuses."""
  try:
    errors = [process.communicate(timeout=300)[1] for process in processes]
  finally:
    for process in processes:
      process.kill()
  assert [p.returncode for p in processes] == codes, "\n".join(errors)
  return [json.loads((folder / f"{i}.json").read_text()) for i in range(2)]


@pytest.mark.multidevice
def test_two_processes_keep_steps_in_flight(tmp_path):
  steps = 10
  processes = start_workers(tmp_path, steps, 10_000_000)
  for found in ended(processes, [0, 0], tmp_path):
    # The host waits for one of the queued steps at most: it may not have ended
    # yet when the next is counted, and no fewer than the others are running.
    later = found["depths"][IN_FLIGHT + 1 :]
    assert len(later) == steps - IN_FLIGHT - 1
    assert set(later) <= {IN_FLIGHT, IN_FLIGHT + 1}
    # Hosts that took turns with the devices would need all of it.
    assert found["host"] < 0.25 * found["train"]
    assert found["step"] == steps


@pytest.mark.multidevice
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_one_stops_both_at_the_same_step(tmp_path, number):
  processes = start_workers(tmp_path, 1000, 100_000)
  noted = tmp_path / "steps"
  while not noted.exists() or noted.stat().st_size < 10:
    assert all(p.poll() is None for p in processes)
    time.sleep(0.01)
  processes[1].send_signal(number)
  sent = noted.stat().st_size / 2  # both write there
  found = ended(processes, [143, 128 + number], tmp_path)
  assert found[0]["step"] == found[1]["step"] < sent + 30
  steps = list_steps(tmp_path / "run" / CHECKPOINTS)
  assert steps == [found[0]["step"]]


def test_one_process_is_answered_at_once():
  vote = agreement.StopVote(jnp.asarray(3), delay=3)
  counter = jnp.asarray(4)
  assert vote.ask(False, counter) == (False, counter)
  assert vote.ask(True, counter) == (True, counter)
