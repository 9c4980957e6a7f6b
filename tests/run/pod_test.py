"""The check of a pod: who is missing, who differs, does the network work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading

import pytest

from mico_jax.config import ConfigError
from mico_jax.parallel import place as place_lib
from mico_jax.run.cluster import pod
from mico_jax.testing.ports import free_port


def variables(count, process, port):
  return {
    "MICO_JAX_COORDINATOR": f"127.0.0.1:{port}",
    "MICO_JAX_NUM_PROCESSES": str(count),
    "MICO_JAX_PROCESS_ID": str(process),
  }


def test_place_from_the_environment(monkeypatch):
  place = place_lib.find_place(variables(3, 1, 4000))
  assert (place.process, place.port, len(place.hosts)) == (1, 4001, 3)
  place = place_lib.find_place(
    {"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}, hosts=3
  )
  assert place.hosts == ("a", "b", "process 2")
  assert place.address == "a"

  def nowhere(name):
    raise OSError(name)

  monkeypatch.setattr(place_lib, "_metadata", nowhere)
  with pytest.raises(ConfigError, match="no host of a pod"):
    place_lib.find_place({})
  told = {"worker-network-endpoints": "0:x:10.0.0.1,1:y:10.0.0.2",
          "agent-worker-number": "1"}  # fmt: skip
  monkeypatch.setattr(place_lib, "_metadata", told.__getitem__)
  assert place_lib.find_place({}).hosts == ("10.0.0.1", "10.0.0.2")


def gather(count, present, limit, monkeypatch, change=None):
  """What each present process finds; JAX itself is left out."""
  port = free_port()
  monkeypatch.setattr(pod, "_collective", lambda count: [])
  if change:
    card = pod.card
    monkeypatch.setattr(pod, "card", lambda place: change(card(place)))
  found = {}

  def run(process):
    place = place_lib.find_place(variables(count, process, port))
    found[process] = pod.check(place, limit=limit)

  threads = [threading.Thread(target=run, args=(i,)) for i in present]
  for thread in threads:
    thread.start()
  for thread in threads:
    thread.join(60)
  return found


def test_all_are_there(monkeypatch):
  found = gather(3, (0, 1, 2), 30, monkeypatch)
  for result in found.values():
    assert result["problems"] == []
    assert (result["expected"], result["seen"]) == (3, 3)


def test_missing_host_is_named_everywhere(monkeypatch):
  found = gather(4, (0, 1, 3), 3, monkeypatch)
  assert set(found) == {0, 1, 3}
  for result in found.values():
    assert result["problems"] == ["missing: process 2 (process 2)"]
    assert result["seconds"] < 10


def test_first_host_is_missing(monkeypatch):
  found = gather(2, (1,), 1.5, monkeypatch)
  assert found[1]["problems"] == ["no answer from process 0 (127.0.0.1)"]


def test_versions_and_clocks_are_compared(monkeypatch):
  def older(card):
    if card["process"] == 1:
      card["versions"] = {**card["versions"], "jax": "0.1"}
      card["clock"] -= 3600
    return card

  found = gather(2, (0, 1), 30, monkeypatch, older)
  first, second = found[0]["problems"]
  assert "(process 1) has other versions: jax:" in first
  assert "-3600 s off" in second


@pytest.mark.multidevice
def test_two_processes_and_a_collective():
  port = free_port()
  processes = [
    subprocess.Popen(
      [sys.executable, "-m", "mico_jax", "doctor", "--pod", "--json",
       "--limit", "240"],
      env={**os.environ, "JAX_PLATFORMS": "cpu", **variables(2, i, port)},
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    for i in range(2)
  ]  # fmt: skip
  try:
    for process in processes:
      out, err = process.communicate(timeout=240)
      assert process.returncode == 0, err
      assert json.loads(out)["problems"] == []
  finally:
    for process in processes:
      process.kill()
