"""Processes that do not start are named, and nobody waits long for them."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from mico_jax.config import ConfigError
from mico_jax.parallel import distributed, rendezvous
from mico_jax.run.cluster import status
from mico_jax.testing.ports import free_port

LIMIT = 15  # seconds; a process needs a few to come so far


def start(tmp_path, port, process, count):
  """A process of a run, started as launch/* start it."""
  command = "from mico_jax.cli.main import main; main()"
  arguments = ["pretrain", "--config", "demo", "--workdir", str(tmp_path / "w")]
  return subprocess.Popen(
    [sys.executable, "-c", command, *arguments],
    env={
      **os.environ,
      "JAX_PLATFORMS": "cpu",
      "MICO_JAX_COORDINATOR": f"127.0.0.1:{port}",
      "MICO_JAX_NUM_PROCESSES": str(count),
      "MICO_JAX_PROCESS_ID": str(process),
      "MICO_JAX_START_LIMIT": str(LIMIT),
    },
    stderr=subprocess.PIPE,
    text=True,
  )


def last_lines(processes):
  """Exit status and last line of each."""
  found = []
  try:
    for process in processes:
      text = process.communicate(timeout=240)[1]
      found.append((process.returncode, text.strip().splitlines()[-1]))
  finally:
    for process in processes:
      process.kill()
  return found


def test_a_status_that_is_started_again():
  assert rendezvous.LOST == status.LOST


def test_one_that_does_not_start_is_named_by_all(tmp_path):
  port = free_port()
  began = time.monotonic()
  processes = [start(tmp_path, port, i, 3) for i in (0, 2)]
  for code, line in last_lines(processes):
    assert code == status.LOST, line
    assert f"not complete after {LIMIT} s" in line
    assert "out of reach: process 1." in line
    assert "Start all processes with the same command" in line
  assert time.monotonic() - began < 200  # also on a busy machine


def test_one_without_the_first_names_it(tmp_path):
  port = free_port()
  ((code, line),) = last_lines([start(tmp_path, port, 1, 2)])
  assert code == status.LOST, line
  assert f"process 0 (127.0.0.1, port {port + 1})" in line


def test_limit_must_be_seconds():
  environment = {
    "MICO_JAX_COORDINATOR": "127.0.0.1:1",
    "MICO_JAX_START_LIMIT": "0",
  }
  with pytest.raises(ConfigError, match="MICO_JAX_START_LIMIT=0"):
    distributed.initialize_from_env(environment)


def test_many_missing_are_not_all_named():
  hosts = tuple(f"host-{i}" for i in range(20))
  place = rendezvous.Place(0, hosts, "host-0", 8477)
  text = rendezvous.missing(place, [{"process": 0}, {"process": 3}])
  assert text.startswith("process 1 (host-1), process 2 (host-2), process 4")
  assert text.endswith("and 10 more")
