"""Seconds of a program out of the compiler's figures."""

from __future__ import annotations

import dataclasses
import math

import pytest

from mico_jax import aot
from mico_jax.aot.collectives import Asynchronous, Collective
from mico_jax.plan import compiled, estimate, gpu, parts, topology
from mico_jax.plan.compiled import Facts
from mico_jax.plan.parts import Summary

CALL = aot.Call("attend_16_8.3", "bf16[8,16]", "jit(step)/ViT", 12)
KERNELS = [
  estimate.Kernel("attend_16_88", "bf16[8,16]", 1000, 0.0, 0.0),
  estimate.Kernel("attend_16_8", "bf16[8,16]", 10, 1e9, 1e3),
]


def facts(call: aot.Call = CALL, **fields) -> Facts:
  known = Summary(cycles={"text": 100}, costliest=[], collectives=[], calls=[])
  return Facts(
    fits=True,
    needed=0,
    arguments=0,
    temporaries=0,
    limit=0,
    seconds=0.0,
    program=dataclasses.replace(known, calls=[call]),
    **fields,
  )


def seconds(where: str, found: Facts) -> float:
  return estimate.kernel_seconds(found, KERNELS, topology.parse(where))[
    "vision"
  ]


def test_a_kernel_takes_its_bundles_and_steps():
  found = seconds("v5e:2x2", facts(bundles={CALL.label: 3000}))
  step = 3000 / 1.5e9 + estimate.GRID_STEP
  assert found == pytest.approx(12 * 10 * step)


def test_two_cores_of_a_device_share_the_grid():
  found = seconds("v5p:2x2x1", facts(bundles={CALL.label: 3000}))
  step = 3000 / 1.75e9 + estimate.GRID_STEP
  assert found == pytest.approx(12 * 10 * step / 2)


def test_a_kernel_without_bundles_is_a_share_of_the_peak():
  where = topology.parse("v5e:2x2")
  found = seconds(where.name, facts())
  product = 1e9 / (where.peak * estimate.KERNEL_SHARE)
  assert found == pytest.approx(12 * (product + 10 * estimate.GRID_STEP))
  assert "30% of the peak" in estimate.METHODS["tpu"]


def test_an_unknown_kernel_is_no_free_one():
  call = dataclasses.replace(CALL, label="someone_elses.1")
  with pytest.raises(KeyError, match=r"someone_elses\.1 .*known: attend_16_88"):
    seconds("v5e:2x2", facts(call))


def test_facts_without_bundles_are_not_kept():
  where = topology.parse("v5e:2x2")
  known = facts(bundles={CALL.label: 1})
  assert compiled._unknown_kernels(facts(), where) == {CALL.label}
  assert not compiled._unknown_kernels(known, where)
  assert not compiled._unknown_kernels(facts(), topology.parse("h100:8"))


def test_equal_calls_are_dumped_once(monkeypatch, tmp_path):
  labels = ("attend.1", "attend.2", "attend.3", "other.4")
  program = Summary(
    cycles={},
    costliest=[],
    collectives=[],
    calls=[dataclasses.replace(CALL, label=label) for label in labels],
  )
  dumped = [tmp_path / f"7-{x}-50-final_bundles.txt" for x in labels[:2]]
  bundles = {dumped[0]: {1: 10, 2: 5}, dumped[1]: {1: 20}}
  monkeypatch.setattr(
    aot, "read_bundles", lambda files: {str(p): bundles[p] for p in files}
  )
  found = dataclasses.replace(facts(), program=program)
  found = dataclasses.replace(found, bundles=compiled._bundles(found, dumped))
  assert found.bundles == {"attend.1": 15, "attend.2": 20, "attend.3": 20}
  where = topology.parse("v5e:2x2")
  assert compiled._unknown_kernels(found, where) == {"other.4"}


def test_facts_are_of_the_flags_and_the_devices(monkeypatch):
  slice_, gpus = topology.parse("v5e:2x2"), topology.parse("h100:8")
  mesh, given = {"data": 4}, {"some_option": "1"}
  hashes = lambda: [
    compiled.program_hash("text", where, mesh, options)
    for where, options in ((slice_, given), (gpus, gpu.COMPILER_OPTIONS))
  ]
  before = hashes()
  assert before == hashes()
  # Where the compiler dumps is no part of what it says.
  monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_jf_dump_to=/tmp/somewhere")
  assert before == hashes()
  monkeypatch.setenv("LIBTPU_INIT_ARGS", "--xla_tpu_scoped_vmem_limit_kib=1")
  assert [a == b for a, b in zip(before, hashes(), strict=True)] == [
    False,
    True,
  ]
  monkeypatch.delenv("LIBTPU_INIT_ARGS")
  monkeypatch.setitem(given, "some_option", "2")
  assert [a == b for a, b in zip(before, hashes(), strict=True)] == [
    False,
    True,
  ]
  monkeypatch.setitem(given, "some_option", "1")
  monkeypatch.setitem(gpu.COMPILER_OPTIONS, "xla_gpu_autotune_level", "4")
  assert [a == b for a, b in zip(before, hashes(), strict=True)] == [
    True,
    False,
  ]
  monkeypatch.setattr(parts, "table", lambda: iter(()))
  assert not set(before) & set(hashes())


def test_parts_add_up():
  found = estimate.estimate(
    facts(bundles={CALL.label: 3000}),
    topology.parse("v5e:2x2"),
    communication=0.5,
    known=KERNELS,
  )
  assert found is not None
  assert found.parts is not None
  assert found.parts["text"] == pytest.approx(100 / 1.5e9)
  assert found.step == pytest.approx(math.fsum(found.parts.values()) + 0.5)


def test_hidden_communication_takes_no_time():
  found = estimate.estimate(
    facts(bundles={CALL.label: 3000}),
    topology.parse("v5e:2x2"),
    communication=0.5,
    hidden=0.2,
    known=KERNELS,
  )
  assert found is not None
  assert found.compute is not None
  assert found.step == pytest.approx(found.compute + 0.3)
  assert found.apart == pytest.approx(found.compute + 0.5)
  assert found.shares()["communication"] == pytest.approx(0.3 / found.step)
  assert math.fsum(found.shares().values()) == pytest.approx(1.0)


@pytest.mark.skipif(
  aot.missing() is not None, reason="the topology is described by libtpu"
)
def test_communication_hides_at_most_as_long_as_it_takes():
  where = topology.parse("v5e:2x2")
  places = where.places(list(where.devices()))
  sent = Collective("all-gather", "data", (0, 1, 2, 3), 1, 1e9)
  seconds = estimate.collective_seconds(sent, where, places)
  hidden = lambda cycles: estimate.hidden_seconds(
    Summary({}, [], [sent], [], [Asynchronous(sent, cycles)]),
    where,
    places,
  )
  assert hidden(1.5e6) == pytest.approx(1e-3)  # of 1.5 GHz
  assert hidden(1e12) == pytest.approx(seconds)
