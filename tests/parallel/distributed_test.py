from __future__ import annotations

import os
import socket
import subprocess
import sys

import pytest

from mico_jax.config import ConfigError
from mico_jax.parallel import distributed

PROGRAM = """
from mico_jax.parallel import distributed
assert distributed.initialize_from_env()
import jax
assert jax.process_count() == 2
assert distributed.is_main_process() == (jax.process_index() == 0)
assert not distributed.any_process(False)
assert distributed.any_process(jax.process_index() == 1)
print("fine", jax.device_count())
"""


def test_nothing_without_a_coordinator():
  assert not distributed.initialize_from_env({})


@pytest.mark.parametrize(
  "variables",
  [
    {},
    {"MICO_JAX_NUM_PROCESSES": "2"},
    {"MICO_JAX_NUM_PROCESSES": "two", "MICO_JAX_PROCESS_ID": "0"},
    {"MICO_JAX_NUM_PROCESSES": "2", "MICO_JAX_PROCESS_ID": "2"},
    {
      "MICO_JAX_NUM_PROCESSES": "2",
      "MICO_JAX_PROCESS_ID": "0",
      "MICO_JAX_LOCAL_DEVICES": "a",
    },
  ],
)
def test_wrong_variables_are_named(variables):
  with pytest.raises(ConfigError, match="MICO_JAX_"):
    distributed.initialize_from_env(
      {"MICO_JAX_COORDINATOR": "localhost:1", **variables}
    )


def test_one_process_agrees_with_itself():
  assert distributed.any_process(True)
  assert not distributed.any_process(False)
  assert distributed.is_main_process()


@pytest.mark.multidevice
def test_two_processes():
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    port = free.getsockname()[1]
  base = {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
    "MICO_JAX_COORDINATOR": f"127.0.0.1:{port}",
    "MICO_JAX_NUM_PROCESSES": "2",
  }
  processes = [
    subprocess.Popen(
      [sys.executable, "-c", PROGRAM],
      env={**base, "MICO_JAX_PROCESS_ID": str(i)},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for i in range(2)
  ]
  for process in processes:
    try:
      out, err = process.communicate(timeout=90)
    finally:
      process.kill()
    assert process.returncode == 0, err
    assert "fine 4" in out
