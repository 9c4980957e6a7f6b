"""The largest batch, by a line and a proof."""

from __future__ import annotations

import pytest

from mico_jax.config import ConfigError
from mico_jax.plan import search


def probe_of(fixed: int, per_row: int, limit: int, steps: int = 1):
  seen = []

  def probe(batch: int) -> tuple[int, bool]:
    seen.append(batch)
    needed = fixed + per_row * -(-batch // steps) * steps
    return needed, needed <= limit

  return probe, seen


@pytest.mark.parametrize("start", [8, 64, 512])
@pytest.mark.parametrize("fixed", [0, 300, 900])
def test_a_line_takes_four_compiles(start, fixed):
  probe, seen = probe_of(fixed, 3, 1000)
  found = search.largest(probe, limit=1000, granule=8, start=start)
  assert found == (1000 - fixed) // 3 // 8 * 8
  assert len(seen) <= 4
  assert {found, found + 8} <= set(seen)  # the proof


def test_steps_in_memory_are_found_by_more():
  probe, _ = probe_of(100, 3, 1000, steps=64)
  assert search.largest(probe, limit=1000, granule=8, start=64) == 256


def test_nothing_fits():
  probe, _ = probe_of(2000, 3, 1000)
  assert search.largest(probe, limit=1000, granule=8, start=64) == 0


def test_attempts_are_bounded():
  def probe(batch: int) -> tuple[int, bool]:
    return 10, True  # a memory that never grows

  with pytest.raises(ConfigError, match="within 12 compiles"):
    search.largest(probe, limit=1000, granule=8, start=64)
