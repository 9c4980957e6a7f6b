"""The account of a step on a slice, without the compiler of one."""

from __future__ import annotations

import jax
import pytest

from mico_jax import aot
from mico_jax.benchmarks import attention, block, dispatch, loss, step_aot
from mico_jax.cli.main import main
from mico_jax.parallel.mesh import make_mesh


@pytest.fixture
def tiny(monkeypatch):
  monkeypatch.setitem(step_aot.MODELS, "tiny", "mico_tiny")


@pytest.mark.parametrize("program", step_aot.PROGRAMS)
def test_programs_are_steps(tiny, program):
  config = step_aot.make_config("tiny", 1, images=2, remat="attention_qkv")
  mesh = make_mesh(config.parallel, jax.devices()[:1])
  built = getattr(step_aot, program)(config, mesh)
  state, metrics = jax.eval_shape(built.function, *built.args)
  given = jax.tree.map(lambda x: (x.shape, x.dtype), built.args[0])
  assert jax.tree.map(lambda x: (x.shape, x.dtype), state) == given
  assert {"loss", "grad_norm"} <= set(metrics)


def test_the_account_names_lines_and_shares_kernels():
  program = aot.Program(
    operations=[
      (50, "a", "jvp(x)/ViT/blocks/mlp/fc1/dot"),
      (20, "b", "transpose(jvp(x))/ViT/blocks/attn/qkv/dot"),
    ],
    # The compiler schedules equal kernels once; grids differ with rows.
    calls=[
      aot.Call("attend.1", "f32[8]", "", 2),
      aot.Call("attend.7", "f32[8]", "", 1),
      aot.Call("attend.9", "f32[2]", "", 1),
    ],
  )
  report = aot.KernelReport(
    program,
    bundles={"attend.1": {0: 5, 1: 10}, "attend.9": {0: 5, 1: 7}},
    steps={("attend", "f32[8]"): 8, ("attend", "f32[2]"): 2},
  )
  lines = {
    "vision: MLP in, forward": 50,
    "vision: qkv projection, backward": 20,
  }
  one, two = step_aot.account(report), step_aot.account(report, cores=2)
  kernel = 3 * 8 * 10 + 2 * 7
  assert one == {"kernel attend": kernel, **lines}
  assert two == {"kernel attend": kernel / 2, **lines}
  assert next(iter(one)) == "kernel attend"


def test_cores_that_share_a_grid_halve_its_cycles(monkeypatch):
  program = aot.Program(operations=[(64, "copy", "")])
  report = aot.KernelReport(program, bundles={"k": {1: 100}})
  monkeypatch.setattr(aot, "compile_report", lambda *_, **__: report)
  here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
  monkeypatch.setattr(aot, "one_device", lambda _: here)
  shape = attention.SHAPES["vit_g"]
  found = {
    topology: attention.measure(
      lambda x: x, [], shape, topology, backward=False, steps={"k": 512}
    )
    for topology in ("v5e:2x2", "v5p:2x2x1")
  }
  assert found["v5e:2x2"].kernel == 100
  assert found["v5p:2x2x1"].kernel == 50
  assert {x.around for x in found.values()} == {64 / 512}


def _refuses(*_, **__):
  raise NotImplementedError("VMEM: too much")


def test_a_block_that_does_not_fit_is_a_line(monkeypatch, capsys):
  monkeypatch.setattr(block, "measure", _refuses)
  monkeypatch.setattr(aot, "missing", lambda: None)
  monkeypatch.setattr(aot, "devices", aot.chip)
  given = ["bench", "block", "--aot", "v4:2x2x1", "--shapes", "vit_g"]
  assert main(given) == 0
  assert capsys.readouterr().out.count("VMEM: too much") == 4


def test_a_loss_that_does_not_fit_is_a_record(monkeypatch):
  """The forms after it are compiled all the same; other errors are raised."""
  reports = []

  def compile_report(*_, **__):
    reports.append(len(reports))
    if len(reports) == 1:
      raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: 37.02G of 15.75G")
    if len(reports) == 3:
      raise jax.errors.JaxRuntimeError("INTERNAL: a defect")
    return aot.KernelReport(aot.Program())

  monkeypatch.setattr(aot, "compile_report", compile_report)
  monkeypatch.setattr(aot, "devices", lambda _: jax.devices()[:1])
  found = loss.run_aot("v5e:2x2", ("xla", "chunked", "ring"), batch=64)
  assert next(found) == {
    "shape": "64x512",
    "implementation": "xla",
    "refused": "RESOURCE_EXHAUSTED: 37.02G of 15.75G",
  }
  assert next(found)["implementation"] == "chunked"
  with pytest.raises(jax.errors.JaxRuntimeError, match="a defect"):
    next(found)


def test_no_backend_wins_a_class_alone(monkeypatch):
  monkeypatch.setattr(attention, "ours", _refuses)
  cycles = attention.Cycles(1.0, 2.0)
  monkeypatch.setattr(attention, "xla", lambda *_, **__: cycles)
  assert dispatch.measure(["v4"]) == {"v4": {x: {} for x in dispatch.SHAPES_OF}}


@pytest.mark.parametrize("option", [("--turns", "3"), ("--dtype", "float32")])
def test_options_of_runs_are_refused(monkeypatch, capsys, option):
  monkeypatch.setattr(aot, "missing", lambda: None)
  assert main(["bench", "attention", "--aot", "v5e:2x2", *option]) == 2
  assert f"{option[0]} would change nothing" in capsys.readouterr().err
