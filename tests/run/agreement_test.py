"""Processes that would not train the same thing end before the first step."""

from __future__ import annotations

import copy
import os
import subprocess
import sys

import pytest

from mico_jax.config import ConfigError
from mico_jax.run import agreement
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
