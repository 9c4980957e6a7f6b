"""`import mico_jax` is quick, and never brings TensorFlow or torch."""

from __future__ import annotations

import statistics
import subprocess
import sys

_BLOCK = """
import sys
for name in ("tensorflow", "torch"):
  sys.modules[name] = None  # importing it now raises
"""
_TIMED = """
import time
start = time.perf_counter()
import mico_jax
print(time.perf_counter() - start)
assert "jax" not in sys.modules
"""
# Every public name, and what the commands import, without either.
_EVERYTHING = """
import importlib
import mico_jax
for name in mico_jax.__all__:
  getattr(mico_jax, name)
from mico_jax.cli.main import COMMANDS, module_of
for name in COMMANDS:
  importlib.import_module(module_of(name))
import mico_jax.run.pretrain
import mico_jax.run.commands.embed
import mico_jax.run.commands.describe
"""


def run(code: str) -> str:
  done = subprocess.run(
    [sys.executable, "-c", _BLOCK + code],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  return done.stdout


def test_import_is_quick():
  times = [float(run(_TIMED)) for _ in range(5)]
  assert statistics.median(times) < 1.5


def test_public_names_need_neither_tensorflow_nor_torch():
  run(_EVERYTHING)


def test_unknown_name():
  import mico_jax

  assert "load" in dir(mico_jax)
  assert not hasattr(mico_jax, "unload")
