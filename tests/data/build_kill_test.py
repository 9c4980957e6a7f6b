"""A build that is killed again and again gives the bytes of one left alone."""

from __future__ import annotations

import os

import pytest

from mico_jax.testing.endurance import build_kills


def _workers() -> list[str]:
  """Processes of this user that are workers of a pool, by their commands."""
  lines = []
  for name in os.listdir("/proc"):
    if name.isdigit():
      try:
        with open(f"/proc/{name}/cmdline", "rb") as file:
          lines.append(file.read().replace(b"\0", b" ").decode())
      except OSError:
        continue
  return [line for line in lines if "spawn_main" in line]


@pytest.mark.parametrize(
  ("clips", "kills", "shards"),
  [(36, 2, 2), pytest.param(200, 10, 8, marks=pytest.mark.slow)],
)
def test_kills_leave_no_trace(tmp_path, clips, kills, shards):
  before = len(_workers())
  result = build_kills.compare(tmp_path, clips, kills, shards, seed=7)
  assert result["same"], result
  assert 1 <= len(result["kills"]) <= kills
  assert result["files"] == 2 * shards + 1
  assert not list((tmp_path / "killed").glob("*.part"))
  assert len(_workers()) <= before
