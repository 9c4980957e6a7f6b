"""A command ends with its status, whatever its threads do meanwhile."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

# Threads that go in and out of XLA's compiler, as that of the self-check does
# beside the first steps. Ended in there, they abort the process.
BUSY = """
import itertools, sys, threading, time
import jax, jax.numpy as jnp

def busy():
  for i in itertools.count():
    def f(x):
      for _ in range(30):
        x = jnp.sin(x) * i + x @ x
      return x
    jax.jit(f).lower(jnp.ones((8, 8))).compile()
    compiled.set()

compiled = threading.Event()
for _ in range(3):
  threading.Thread(target=busy, daemon=True).start()
compiled.wait()
"""
MAIN = "from mico_jax.cli.main import main\nmain()\n"
FAILS = """
from mico_jax.cli import doctor
def run(args):
  raise RuntimeError("a defect")
doctor.run = run
"""


def run(code, *arguments, **options):
  environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
  return subprocess.run(
    [sys.executable, "-c", code, *arguments],
    env={**environment, "JAX_PLATFORMS": "cpu"},
    stderr=subprocess.PIPE,
    text=True,
    timeout=240,
    **options,
  )


@pytest.mark.parametrize("attempt", range(2))
def test_a_mistake_keeps_its_status_beside_busy_threads(tmp_path, attempt):
  found = run(BUSY + MAIN, "inspect", "--checkpoint", str(tmp_path / "none"))
  assert found.returncode == 2, found.stderr
  assert found.stderr.count("\n") == 1
  assert "no such workdir" in found.stderr
  assert "exception not rethrown" not in found.stderr


def test_a_defect_keeps_its_traceback_and_status():
  found = run(BUSY + FAILS + MAIN, "doctor")
  assert found.returncode == 1
  assert found.stderr.rstrip().endswith("RuntimeError: a defect")


def test_what_is_registered_runs_and_what_is_buffered_is_written():
  code = (
    "import atexit, threading\n"
    "atexit.register(lambda: print('registered'))\n"
    "def late():\n"
    "  threading.main_thread().join()\n"
    "  print('thread')\n"
    "threading.Thread(target=late).start()\n"
  )
  found = run(code + MAIN, "--version", stdout=subprocess.PIPE)
  assert found.returncode == 0
  first, *rest = found.stdout.split("\n")
  assert first.startswith("mico-jax ")
  assert rest == ["thread", "registered", ""]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="Linux only")
def test_results_that_cannot_be_written_are_no_success():
  with open("/dev/full", "w") as full:
    found = run(MAIN, "--version", stdout=full)
  assert found.returncode == 75
  assert found.stderr == "mico-jax: error: stdout: No space left on device\n"


def test_a_closed_pipe_is_no_error():
  reading, writing = os.pipe()
  os.close(reading)
  found = run(MAIN, "--version", stdout=writing)
  os.close(writing)
  assert (found.returncode, found.stderr) == (0, "")
