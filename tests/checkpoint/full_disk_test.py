"""A disk that is really full: a few lines, and status to start again."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

# Fills a disk of 10 MB with steps of 8 MB.
_SAVING = """
import sys
import jax.numpy as jnp
import numpy as np
from mico_jax.checkpoint.manager import Manager
from mico_jax.config import Config
from mico_jax.failures import TransientError
from mico_jax.train.state import TrainState

noise = np.random.default_rng(0).normal(size=(60, 64, 256)).astype("f4")
params = {f"a{i}": {"w": jnp.asarray(x)} for i, x in enumerate(noise)}
zero = jnp.zeros((), jnp.int32)
state = TrainState(zero, params, {"mu": params}, None, zero, zero)
manager = Manager(sys.argv[1], config=Config())
manager.save(1, state)
manager.wait()
manager.save(2, state)
try:
  manager.wait()
except TransientError as error:
  print(error)
manager.close()
print(manager.steps())
"""


def test_full_disk_is_told_in_a_few_lines(tmp_path):
  mount = f"mount -t tmpfs -o size=10m none {tmp_path}"
  unshare = ["unshare", *([] if os.geteuid() == 0 else ["-Ur"]), "-m"]
  if (
    not shutil.which("unshare")
    or subprocess.run([*unshare, "sh", "-c", mount], check=False).returncode
  ):
    pytest.skip("cannot mount a small disk")
  done = subprocess.run(
    [*unshare, "sh", "-c", f'{mount} && exec "$0" "$@"', sys.executable, "-c",
     _SAVING, str(tmp_path / "run")],
    env={**os.environ, "MICO_JAX_PATIENCE": "1"},
    capture_output=True, text=True, timeout=300, check=True,
  )  # fmt: skip
  message, steps = done.stdout.splitlines()
  assert "cannot save step 2" in message
  assert "No space left on device" in message
  assert "step 1 is intact" in message
  assert steps == "[1]"
  assert "Traceback" not in done.stderr
  lines = done.stderr.splitlines()
  told = ("saving step 2", "writing ")  # the arrays; a file beside them
  assert all(x.startswith(told) for x in lines), lines
  assert len(lines) < 12
