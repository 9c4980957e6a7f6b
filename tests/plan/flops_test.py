"""Model FLOPs, counted and by hand."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import pytest

from mico_jax import config as config_lib
from mico_jax.kernels.attention import xla
from mico_jax.kernels.cross_entropy import api as cross_entropy
from mico_jax.parallel.mesh import make_mesh
from mico_jax.plan import flops
from mico_jax.plan.program import Programs, views_of
from mico_jax.run.compile import counts_as_model
from mico_jax.train.flops import count_flops


def count(function, *shapes):
  args = [jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes]
  return sum(flops.count(jax.make_jaxpr(function)(*args).jaxpr).values())


def test_products_loops_and_rematerialisation():
  product = lambda a, b: a @ b
  assert count(product, (2, 3), (3, 5)) == 2 * 2 * 3 * 5
  loop = lambda a, b: jax.lax.scan(lambda x, _: (x @ b, None), a, length=7)[0]
  assert count(loop, (2, 3), (3, 3)) == 7 * 2 * 2 * 3 * 3
  twice = lambda a, b: jax.jit(product)(a, b) + jax.checkpoint(product)(a, b)
  assert count(twice, (2, 3), (3, 5)) == 2 * 2 * 2 * 3 * 5


def test_a_convolution():
  image, kernel = (1, 8, 8, 3), (4, 4, 3, 16)

  def convolve(x, k):
    return jax.lax.conv_general_dilated(
      x, k, (4, 4), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )

  assert count(convolve, image, kernel) == 2 * (2 * 2 * 16) * (4 * 4 * 3)


@pytest.fixture(scope="module")
def programs():
  config = config_lib.load("demo")
  config = dataclasses.replace(config, tasks={"align": config.tasks["align"]})
  return Programs.of(config, jax.devices()[:1])


def test_the_encoder_of_the_demo_by_hand(programs):
  vision, task = programs.config.model.vision, programs.config.tasks["align"]
  tokens = (vision.image_size // vision.patch_size) ** 2 + 1
  width, mlp = vision.width, vision.mlp_dim
  layer = tokens * (4 * width * width + 2 * width * mlp)
  layer += 2 * tokens * tokens * width  # scores and values
  images = task.batch_size * views_of(programs.config, task).images
  blocks = 3 * 2 * images * vision.depth * layer  # forward, twice back
  patches = 2 * 2 * images * (tokens - 1) * 3 * vision.patch_size**2 * width
  found = programs.flops("align")
  # The first layer's input has no gradient, and a head adds a little.
  assert found["vision"] == pytest.approx(blocks + patches, rel=0.01)
  assert found["text"] > 0


def test_text_towers_count_as_text(programs):
  """The same texts through another tower: a gate more in each MLP."""
  base = programs.config
  text = dataclasses.replace(base.model.text, encoder="causal", dropout=0.0)
  model = dataclasses.replace(base.model, text=text)
  other = Programs.of(
    dataclasses.replace(base, model=model), jax.devices()[:1]
  ).flops("align")
  first = programs.flops("align")
  assert other["vision"] == first["vision"]
  gate = text.width * text.mlp_dim
  layer = 4 * text.width**2 + 2 * gate  # without scores, a few tokens' worth
  assert other["text"] / first["text"] == pytest.approx(
    1 + gate / layer, rel=0.05
  )


def test_remat_chunks_and_micro_batches_change_nothing(programs, monkeypatch):
  model = dataclasses.replace(programs.config.model, remat="full", scan=True)
  config = dataclasses.replace(
    programs.config,
    model=model,
    train=dataclasses.replace(programs.config.train, micro_batches=2),
  )
  tasks = config_lib.load("demo").tasks
  once = Programs(
    dataclasses.replace(programs.config, tasks=tasks), programs.mesh
  )
  want = once.flops("fuse")
  step, args = once.train("fuse")
  jaxpr = step.trace(*args).jaxpr
  # A step that computes everything once needs no trace beside its own.
  assert counts_as_model(once.config, jaxpr)
  assert not counts_as_model(config, jaxpr)
  assert count_flops(jaxpr) == sum(want.values())
  other = Programs(dataclasses.replace(config, tasks=tasks), programs.mesh)
  assert other.optimizer  # made before a backend is named that is not here
  # As at large batches: scores in chunks that are computed anew, and logits in
  # a loop of unknown length.
  monkeypatch.setattr(xla, "SCORE_BYTES", 0)
  monkeypatch.setattr(cross_entropy, "BLOCK_BYTES", 2**10)
  monkeypatch.setenv("MICO_JAX_ATTENTION", "pallas_tpu")
  assert other.flops("fuse") == want


def test_memory_on_a_mesh_is_shared(programs):
  config = programs.config
  mesh = make_mesh(config.parallel, jax.devices()[:4])
  alone, shared = (Programs(config, m) for m in (programs.mesh, mesh))
  one, four = alone.memory("align"), shared.memory("align")
  assert one["optimizer"] == pytest.approx(2 * one["parameters"], rel=0.01)
  assert four["parameters"] == one["parameters"]  # the demo copies them
  assert four["batch"] == one["batch"] // 4
