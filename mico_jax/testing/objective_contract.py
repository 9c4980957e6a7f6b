"""A tiny model, a fake batch, and the contract that every objective passes.

`ObjectiveContract` is run over `mico_jax.objectives.OBJECTIVES`; a new entry of
that table is tested without a line of its own.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from mico_jax.aliases import Batch, Params
from mico_jax.config import (
  Config,
  InputConfig,
  ModelConfig,
  TaskConfig,
  TrainConfig,
)
from mico_jax.data.tokenizer import TokenizerInfo
from mico_jax.models import build
from mico_jax.objectives import OBJECTIVES
from mico_jax.testing.tiny_model import tiny_model
from mico_jax.train import state as train_state
from mico_jax.train.step import make_loss

TOKENIZER = TokenizerInfo(
  pad=0, cls=1, sep=2, mask=3, vocab_size=40, random_range=(5, 40)
)
TINY_MODEL = tiny_model()


def tiny_config(
  objectives: dict[str, tuple[str, ...]] | None = None,
  *,
  batch_size: int = 8,
  model: ModelConfig = TINY_MODEL,
  **changes: Any,
) -> Config:
  """A config whose task "main" trains the tiny model."""
  if objectives is None:
    objectives = {
      "contrastive": ("tv", "tva"),
      "matching": ("tva",),
      "captioning": ("tv", "tva"),
    }
  task = TaskConfig(batch_size=batch_size, objectives=objectives)
  config = Config(
    model=model, tasks={"main": task}, train=TrainConfig(steps=20)
  )
  inputs = {"video": InputConfig(frames=2), "audio": InputConfig(frames=2)}
  data = dataclasses.replace(config.data, inputs=inputs)
  return dataclasses.replace(config, data=data, **changes)


def fake_text(
  rng: np.random.Generator, rows: int, length: int
) -> Int[np.ndarray, "{rows} {length}"]:
  """Random texts of the tiny tokenizer: cls, words, sep, padding."""
  ids = np.zeros((rows, length), np.int32)
  for row in range(rows):
    words = int(rng.integers(2, length - 2))
    ids[row, 0] = TOKENIZER.cls
    ids[row, 1 : 1 + words] = rng.integers(5, TOKENIZER.vocab_size, words)
    ids[row, 1 + words] = TOKENIZER.sep
  return ids


def fake_batch(
  groups: Sequence[str] = ("tv", "tva"),
  *,
  rows: int = 8,
  size: int = 8,
  length: int = 8,
  negatives: int = 0,
  seed: int = 0,
) -> dict[str, Any]:
  """A batch of random data with decoded pixels (batch["pixels"])."""
  rng = np.random.default_rng(seed)
  frames = {"image": 1, "video": 2, "audio": 2, "depth": 1, "normal": 1}
  shape = lambda count: (rows, count, size, size, 3)
  pixels = {
    key: rng.standard_normal(shape(count)).astype(np.float32)
    for key, count in frames.items()
  }
  batch: dict[str, Any] = {
    "row": np.arange(rows, dtype=np.int32),
    "weight": np.ones(rows, np.float32),
    "pixels": pixels,
    "inputs": {"subtitle": fake_text(rng, rows, length)},
    "present": {key: np.ones(rows, bool) for key in (*frames, "subtitle")},
    "text": {group: fake_text(rng, rows, length) for group in groups},
    "question": fake_text(rng, rows, length),
    "answer": fake_text(rng, rows, 6),
  }
  if negatives:
    batch["negative_text"] = {
      group: fake_text(rng, rows * negatives, length).reshape(
        rows, negatives, length
      )
      for group in groups
    }
  return batch


@functools.cache
def _setup(name: str, group: str) -> tuple[Any, Params]:
  config = tiny_config({name: (group,)})
  model = build(config.model)
  params = train_state.init_params(model, config, jax.random.key(0))
  loss = make_loss(model, config, config.tasks["main"], TOKENIZER)

  def value(params: Params, batch: Batch) -> Any:
    total, (metrics, aux) = loss(params, batch, step=jnp.zeros((), jnp.int32))
    return total, (metrics, aux)

  return jax.jit(jax.value_and_grad(value, has_aux=True)), params


class ObjectiveContract:
  """Tests of any objective; subclass with a parametrised `name` fixture."""

  group = "tva"

  def run(self, name: str, batch: Batch) -> tuple[Any, dict[str, Any], Params]:
    """Loss, metrics and gradients of one objective on one group."""
    function, params = _setup(name, self.group)
    (loss, (metrics, _)), grads = function(params, batch)
    return loss, metrics, grads

  def batch(self) -> dict[str, Any]:
    """A batch that every objective can use."""
    return fake_batch((self.group,))

  def test_finite_with_gradient(self, name: str) -> None:
    """Loss and gradients are finite, and some gradient is not zero."""
    loss, metrics, grads = self.run(name, self.batch())
    assert np.isfinite(loss)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    assert any(np.any(g != 0) for g in jax.tree.leaves(grads))
    assert f"loss/{name}/{self.group}" in metrics
    for curve in OBJECTIVES[name].curves:
      assert f"{curve}/{name}/{self.group}" in metrics

  def test_deterministic(self, name: str) -> None:
    """The same batch and step give the same loss to the bit."""
    assert self.run(name, self.batch())[0] == self.run(name, self.batch())[0]

  def test_rows_of_weight_zero_do_not_matter(self, name: str) -> None:
    """The content of padding rows changes neither loss nor gradients."""
    first, second = self.batch(), fake_batch((self.group,), seed=1)
    for batch in (first, second):
      batch["weight"][5:] = 0
    take = lambda a, b: np.concatenate([a[:5], b[5:]])
    keep = ("row", "weight")
    mixed = {
      k: v if k in keep else jax.tree.map(take, v, second[k])
      for k, v in first.items()
    }
    loss, _, grads = self.run(name, first)
    other, _, other_grads = self.run(name, mixed)
    np.testing.assert_allclose(loss, other, rtol=1e-6)
    jax.tree.map(
      lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6),
      grads,
      other_grads,
    )

  def test_absent_modality_is_masked(self, name: str) -> None:
    """Rows without a modality of the group take no part."""
    batch = self.batch()
    batch["present"]["audio"][:] = False
    loss, metrics, grads = self.run(name, batch)
    assert loss == 0
    assert metrics[f"rows/{name}/{self.group}"].total == 0
    assert all(np.all(g == 0) for g in jax.tree.leaves(grads))

  def test_declares_itself(self, name: str) -> None:
    """Name and needs agree with the table."""
    objective = OBJECTIVES[name]
    assert objective.name == name
    assert objective.needs
