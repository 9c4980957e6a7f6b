"""The tables of encoders and text towers, and what adding one takes."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array, Bool, Float

import mico_jax
from mico_jax import axes
from mico_jax.config import ConfigError, EvaluationConfig, TaskConfig
from mico_jax.layers.embed import PatchEmbed
from mico_jax.layers.mlp import Mlp
from mico_jax.layers.norm import LayerNorm
from mico_jax.models import ENCODERS, TEXT_ENCODERS, build
from mico_jax.models.bert import Bert
from mico_jax.models.encoder import Encoder
from mico_jax.parallel.mesh import make_mesh
from mico_jax.plan import parts
from mico_jax.run import setup
from mico_jax.run.pretrain import pretrain
from mico_jax.testing.tiny_checkpoint import tiny_config


# ---------------------------------------------------------- adding an encoder
# What follows would be `mico_jax/models/patch_mlp.py`.
class PatchMlp(Encoder):
  """Patches, each through MLPs of its own: no patch sees another."""

  has_class_token: ClassVar[bool] = False
  supports_token_indices: ClassVar[bool] = False

  @property
  def num_tokens(self) -> int:
    """Patches of a frame."""
    return (self.config.image_size // self.config.patch_size) ** 2

  @nn.compact
  def __call__(
    self,
    pixels: Float[Array, "B Y X 3"],
    *,
    row_keys: Any = None,
    return_hidden: bool = False,
  ) -> tuple[Float[Array, "B L D"], list[Array] | None]:
    """Tokens of each frame, and those after every block on request."""
    del row_keys  # nothing is dropped
    config, hidden = self.config, []
    patches = PatchEmbed(
      config.width, config.patch_size, self.dtype, name="patch_embed"
    )
    x = patches(pixels)
    for i in range(config.depth):
      norm = LayerNorm(config.norm_eps, name=f"norm{i}")
      x = x + Mlp(config.mlp_dim, self.dtype, name=f"mlp{i}")(norm(x))
      hidden.append(x)
    x = LayerNorm(config.norm_eps, name="norm")(x)
    return x, hidden if return_hidden else None


# ------------------------------------------------------- adding a text tower
# What follows would be `mico_jax/models/mean_bert.py`.
class MeanBert(Bert):
  """A BERT whose texts are the mean of their tokens."""

  @nn.nowrap
  def pool(
    self, hidden: Float[Array, "B L W"], valid: Bool[Array, "B L"]
  ) -> Float[Array, "B W"]:
    """See `TextTower`."""
    weights = valid.astype(hidden.dtype)[:, :, None]
    count = jnp.maximum(jnp.sum(weights, axis=1), jnp.ones((), hidden.dtype))
    return jnp.sum(hidden * weights, axis=1) / count


@pytest.fixture(scope="module", autouse=True)
def table():
  with pytest.MonkeyPatch.context() as patch:
    # The two lines in the tables.
    patch.setitem(ENCODERS, "patch_mlp", PatchMlp)
    patch.setitem(TEXT_ENCODERS, "mean_bert", MeanBert)
    patch.setattr(
      setup, "make_mesh", lambda config: make_mesh(config, jax.devices()[:1])
    )
    yield


def run_config(**vision):
  base = tiny_config()
  (source,) = list(base.data.sources)[:1]
  model = dataclasses.replace(
    base.model,
    vision=dataclasses.replace(
      base.model.vision, encoder="patch_mlp", **vision
    ),
    text=dataclasses.replace(base.model.text, encoder="mean_bert"),
  )
  objectives = dict.fromkeys(("contrastive", "matching", "captioning"), ("tv",))
  task = TaskConfig(sources={source: 1}, batch_size=8, objectives=objectives)
  train = dataclasses.replace(base.train, steps=2, log_every=1)
  return dataclasses.replace(
    base,
    model=model,
    tasks={"one": task},
    train=train,
    evaluation=EvaluationConfig(),
  )


def test_each_is_a_class_and_a_line(tmp_path):
  summary = pretrain(run_config(), tmp_path)
  assert summary.step == 2
  assert np.isfinite(summary.metrics["loss"])
  model = mico_jax.load(tmp_path)  # strict: its self-check agrees
  assert not model.notes
  assert set(model.params["vision"]) >= {"patch_embed", "mlp0", "norm"}
  frame = np.full((20, 20, 3), 90, np.uint8)
  rows = model.embed(image=[frame, frame + 90], text=["a cube", "a ball"])
  for value in rows.values():
    np.testing.assert_allclose(np.linalg.norm(value, axis=1), 1, atol=1e-5)
    assert np.abs(value[0] - value[1]).max() > 1e-4
  assert parts.part_of("jit(step)/PatchMlp/mul") == "vision"
  assert parts.part_of("jit(step)/MeanBert/mul") == "text"


def test_what_it_cannot_do_is_refused():
  config = run_config()
  train = dataclasses.replace(config.train, patch_dropout=0.5)
  with pytest.raises(ConfigError, match="'patch_mlp' encodes whole frames"):
    setup.resolve(dataclasses.replace(config, train=train))
  with pytest.raises(ConfigError, match=r"unknown; known: vit, .*patch_mlp"):
    setup.resolve(
      dataclasses.replace(
        config,
        model=dataclasses.replace(
          config.model,
          vision=dataclasses.replace(config.model.vision, encoder="patch"),
        ),
      )
    )


class Strips(Encoder):
  """Rows of pixels, through layers of plain Flax."""

  has_class_token: ClassVar[bool] = False
  supports_token_indices: ClassVar[bool] = False

  @property
  def num_tokens(self) -> int:
    """Rows."""
    return self.config.image_size

  @nn.compact
  def __call__(
    self,
    pixels: Float[Array, "B Y X 3"],
    *,
    row_keys: Any = None,
    return_hidden: bool = False,
  ) -> tuple[Float[Array, "B L D"], list[Array] | None]:
    """See `Encoder`."""
    del row_keys
    x = pixels.reshape(*pixels.shape[:2], -1)
    x = nn.LayerNorm(name="norm")(nn.Dense(self.config.width, name="rows")(x))
    return x, [x] if return_hidden else None


def test_parameters_without_axes_are_whole_everywhere(monkeypatch):
  monkeypatch.setitem(ENCODERS, "strips", Strips)
  config = tiny_config().model
  vision = dataclasses.replace(config.vision, encoder="strips")
  model = build(dataclasses.replace(config, vision=vision))
  names = model.logical_axes()
  assert names["vision"]["rows"] == {
    "kernel": (axes.UNSHARDED, axes.UNSHARDED),
    "bias": (axes.UNSHARDED,),
  }
