"""Memory of matching does not grow with the global batch."""

from __future__ import annotations

import pytest

from mico_jax.benchmarks import matching_memory


@pytest.mark.multidevice
def test_temporaries_depend_on_the_local_batch():
  two = matching_memory.measure(2, 32, 8)
  eight = matching_memory.measure(8, 32, 8)
  assert eight["global_batch"] == 4 * two["global_batch"]
  ratio = eight["temporaries_mib"] / two["temporaries_mib"]
  assert ratio <= 1.05
  wider = matching_memory.measure(2, 64, 8)
  assert wider["temporaries_mib"] > 1.5 * two["temporaries_mib"]
