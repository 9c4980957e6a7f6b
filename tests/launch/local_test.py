from __future__ import annotations

import os
import shutil
import subprocess
import time

import pytest

pytestmark = pytest.mark.skipif(
  shutil.which("bash") is None, reason="needs bash"
)

STUB = """#!/usr/bin/env bash
id=${MICO_JAX_PROCESS_ID:-none}
echo "process $id of ${MICO_JAX_NUM_PROCESSES:-1}: $*" >> "$RECORD"
[[ $id == "${FAIL:-}" ]] && exit 7
if [[ -n ${WAIT:-} ]]; then
  trap 'echo "stopped $id" >> "$RECORD"; exit 143' TERM
  for _ in $(seq 200); do sleep 0.1; done
fi
exit 0
"""


@pytest.fixture
def launch(repository, tmp_path):
  """Starts the script with a stand-in for `mico-jax`."""
  command = tmp_path / "bin" / "mico-jax"
  command.parent.mkdir()
  command.write_text(STUB)
  command.chmod(0o755)
  record = tmp_path / "record"
  record.write_text("")

  def start(*arguments: str, **environment: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
      ["bash", str(repository / "launch/local.sh"), *arguments],
      env={
        "PATH": f"{command.parent}:{os.environ['PATH']}",
        "TMPDIR": str(tmp_path),
        "RECORD": str(record),
        **environment,
      },
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    process.record = record  # type: ignore[attr-defined]
    return process

  return start


def test_dry_run(launch):
  process = launch(
    *("-n", "2", "--cpu-devices", "4", "--devices-per-process", "2"),
    *("--port", "1234", "--dry-run", "--config", "demo", "--config.name=a b"),
  )
  out, _ = process.communicate(timeout=30)
  first, second = out.splitlines()
  assert process.returncode == 0
  assert "MICO_JAX_COORDINATOR=127.0.0.1:1234" in first
  assert "MICO_JAX_PROCESS_ID=0" in first
  assert "MICO_JAX_LOCAL_DEVICES=0\\,1" in first.replace("=0,1", "=0\\,1")
  assert "MICO_JAX_PROCESS_ID=1" in second
  assert "device_count=4" in second
  assert second.rstrip().endswith(
    r"mico-jax pretrain --config demo --config.name=a\ b"
  )
  assert process.record.read_text() == ""


def test_one_process_needs_no_coordinator(launch):
  process = launch("--dry-run", "--", "--config", "demo")
  out, _ = process.communicate(timeout=30)
  assert out.split() == ["mico-jax", "pretrain", "--config", "demo"]


def test_help_and_mistakes(launch):
  process = launch("--help")
  assert "--devices-per-process" in process.communicate(timeout=30)[0]
  assert process.returncode == 0
  process = launch("-n", "many")
  assert "needs a number" in process.communicate(timeout=30)[1]
  assert process.returncode == 2


def test_all_processes_run(launch):
  process = launch("-n", "3", "--config", "demo")
  process.communicate(timeout=30)
  assert process.returncode == 0
  assert sorted(process.record.read_text().splitlines()) == [
    f"process {i} of 3: pretrain --config demo" for i in range(3)
  ]


def test_one_failure_stops_all(launch):
  process = launch("-n", "2", FAIL="1", WAIT="1")
  _, err = process.communicate(timeout=30)
  assert process.returncode == 7
  assert "stopping the others" in err


def test_sigterm_is_passed_on(launch):
  process = launch("-n", "2", WAIT="1")
  for _ in range(100):
    if process.record.read_text().count("pretrain") == 2:
      break
    time.sleep(0.05)
  time.sleep(0.2)
  process.terminate()
  process.communicate(timeout=30)
  assert process.returncode == 143
  assert process.record.read_text().count("stopped") == 2
