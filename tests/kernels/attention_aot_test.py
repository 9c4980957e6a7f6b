"""Mosaic really compiles the kernels, for every generation; needs libtpu."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from mico_jax.benchmarks import aot

pytestmark = pytest.mark.aot

# Static cycles per row and head are deterministic for one version of libtpu.
LIMITS = {"vit_g": {False: 400, True: 1500}, "cross_257": {True: 643}}
_PROGRAM = """
import json, sys
import jax
jax.config.update("jax_platforms", "cpu")
from mico_jax.benchmarks import attention
for topology in sys.argv[2].split(","):
  for record in attention.run(topology, sys.argv[1].split(","), peers=()):
    print(json.dumps(record), flush=True)
"""


def _records(shapes, topologies):
  if reason := aot.missing():
    pytest.skip(reason)
  done = subprocess.run(
    [sys.executable, "-c", _PROGRAM, ",".join(shapes), ",".join(topologies)],
    capture_output=True,
    text=True,
    check=False,
  )
  lines = [x for x in done.stdout.splitlines() if x.startswith("{")]
  assert done.returncode == 0, done.stderr[-2000:]
  return [json.loads(line) for line in lines]


def test_cycles_of_v5e():
  for record in _records(["vit_g"], ["v5e:2x2"]):
    assert 0 < record["kernel"] <= LIMITS["vit_g"][record["backward"]]


@pytest.mark.slow
def test_every_generation():
  shapes = ("vit_g", "vit_b", "text_40", "apart_257", "long_1028", "cross_257")
  topologies = [chip.topology for chip in aot.CHIPS.values()]
  records = _records(shapes, topologies)
  assert len(records) == 2 * len(shapes) * len(topologies)
  for record in records:
    assert record.get("kernel", 0) > 0 or "VMEM" in record["refused"]


def test_reads_a_program():
  text = """HloModule m
%body (p: f32[8]) -> f32[8] {
  %p = f32[8]{0} parameter(0)
  ROOT %a = f32[8]{0} add(%p, %p), ADD
}

%cond (p: f32[8]) -> pred[] {
  %c = s32[] constant(5)
}

ENTRY %main (x: f32[8]) -> f32[8] {
  %x = f32[8]{0} parameter(0)
  %g = f32[16]{0} all-gather(%x), dimensions={0}
  %k = f32[8]{0} custom-call(%x), custom_call_target="tpu_custom_call"
  ROOT %w = f32[8]{0} while(%x), condition=%cond, body=%body
}
"""
  details = 'metadata={op_name="jit(f)/add"}, {"estimated_cycles":"7"}'
  text = text.replace("ADD", details)
  cycles, collectives, operations, calls = aot.read_program(text)
  assert cycles == {"add": 35}
  assert collectives == {"all-gather": (1, 64)}
  assert operations == [(35, "a", "jit(f)/add")]
  assert calls == {"k": 1}


def test_counts_bundles(tmp_path):
  path = tmp_path / "12-mykernel.1-70-final_bundles.txt"
  path.write_text(
    "   0x0   :  { %a }\n   0x1 LB : > { %b }\n   0x2   : > { %c }\n"
  )
  assert aot.read_bundles([path]) == {"mykernel.1": {0: 1, 1: 2}}


def test_unknown_slices_are_named():
  with pytest.raises(ValueError, match="known: v4, v5e"):
    aot.chip("v9:2x2")
