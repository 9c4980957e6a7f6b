"""What is read of compiled programs and dumped kernels."""

from __future__ import annotations

import pytest

from mico_jax import aot
from mico_jax.aot.collectives import Collective


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
  found = aot.read_program(text, {"data": 2})
  assert found.operations == [(35, "a", "jit(f)/add")]
  assert found.xla_cycles == 35
  assert found.collectives == [
    Collective("all-gather", "data", (0, 1), 1, 64 / 2)
  ]
  assert found.calls == [aot.Call("k", "f32[8]", "", 1)]


def test_counts_bundles(tmp_path):
  path = tmp_path / "12-mykernel.1-70-final_bundles.txt"
  path.write_text(
    "   0x0   :  { %a }\n   0x1 LB : > { %b }\n   0x2   : > { %c }\n"
  )
  assert aot.read_bundles([path]) == {"mykernel.1": {0: 1, 1: 2}}


def test_unknown_slices_are_named():
  with pytest.raises(ValueError, match="known: v4, v5e"):
    aot.chip("v9:2x2")


def test_the_flags_of_the_user_are_kept(monkeypatch):
  monkeypatch.setenv(
    "LIBTPU_INIT_ARGS",
    "--fibers_default_thread_stack_size=1048576 "
    "--xla_a=1 --xla_jf_dump_to=/x --xla_b=2",
  )
  assert aot.user_flags() == "--xla_a=1 --xla_b=2"
