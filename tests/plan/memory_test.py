"""The memory of a shipped recipe on a slice does not grow unseen."""

from __future__ import annotations

import importlib.metadata
import json
import pathlib

import pytest

from mico_jax import aot
from mico_jax import config as config_lib
from mico_jax.plan.compiled import CACHE
from mico_jax.plan.planner import make_plan

# {"libtpu": version, "NAME TOPOLOGY TASK": bytes of a device}. After a change
# that is worth its memory, write the number that the failing test names.
KNOWN = json.loads(pathlib.Path(__file__).with_name("memory.json").read_text())
GROWTH = 1.02


@pytest.mark.aot
@pytest.mark.parametrize("key", sorted(KNOWN.keys() - {"libtpu"}))
def test_peak_memory_has_not_grown(key, tmp_path, monkeypatch):
  if reason := aot.missing():
    pytest.skip(reason)
  if importlib.metadata.version("libtpu") != KNOWN["libtpu"]:
    pytest.skip("another libtpu plans other memory")
  monkeypatch.setenv(CACHE, str(tmp_path))
  name, topology, task = key.split()
  plan = make_plan(
    config_lib.load(name, arg=f"@{topology}"),
    topology,
    tasks=(task,),
    others=False,
  )
  (found,) = plan.tasks
  assert found.fits
  assert found.needed <= GROWTH * KNOWN[key], (
    f"{key}: {found.needed} bytes, {found.needed / KNOWN[key] - 1:+.1%}"
  )
