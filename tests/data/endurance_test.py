"""The commands that measure reading at scale, with small numbers."""

from __future__ import annotations

import json

import numpy as np

from mico_jax.testing.endurance import (
  host_memory,
  loader_memory,
  small_cache,
)


def test_memory_of_the_loader_is_watched(capsys):
  small = "--samples 960 --warm 320 --every 64 --records 128 --shards 2"
  options = [*small.split(), "--workers", "0"]
  assert loader_memory.main([*options, "--limit", "0.2"]) == 0
  *looks, last = map(json.loads, capsys.readouterr().out.splitlines())
  assert [row["samples"] for row in looks] == list(range(64, 1345, 64))
  assert set(last) == {"rss_mb_growth", "anonymous_mb_growth", "limit"}
  assert loader_memory.growth([{"a": 2.0}] * 4 + [{"a": 3.0}] * 4, "a") == 0.5


def test_a_set_streams_through_a_small_cache(capsys, monkeypatch, tmp_path):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  small = "--samples 512 --shards 1 --names 8 --times 10 --latency-ms 1"
  assert small_cache.main(small.split()) == 0
  row = json.loads(capsys.readouterr().out)
  assert row["samples"] == 512
  assert 0 < row["disk_mb"] <= row["limit_mb"] < row["set_mb"] / 9
  assert row["received_over_records"] >= 1


def test_memory_is_counted():
  before = host_memory.total("Pss_Anon")
  held = np.ones(8 << 20)
  assert host_memory.total("Pss_Anon") - before > 60e6
  assert held[-1] == 1
