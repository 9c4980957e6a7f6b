"""A tiny model, a fake batch, and the contract that every objective passes.

`ObjectiveContract` is run over `mico_jax.objectives.OBJECTIVES`; a new entry of
that table is tested without a line of its own.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Sequence
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
  ObjectivesConfig,
  TargetConfig,
  TaskConfig,
  TrainConfig,
)
from mico_jax.data.targets import OPTION, shape_of
from mico_jax.data.tokenizer import TokenizerInfo
from mico_jax.modalities import CustomEmbedding, by_letter, letters
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
  options = {
    name: OBJECTIVES[name].example(group)
    for name, (group, *_) in objectives.items()
  }
  config = Config(
    model=_with_contexts(model, [g for x in objectives.values() for g in x]),
    tasks={"main": task},
    objectives=ObjectivesConfig(
      options={name: given for name, given in options.items() if given}
    ),
    train=TrainConfig(steps=20),
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
  for group in groups:
    for modality in map(by_letter, letters(group)):
      embedding = modality.embedding
      if isinstance(embedding, CustomEmbedding):
        frames[modality.key] = 1
        values = rng.standard_normal((rows, 1, *embedding.frame))
        pixels[modality.key] = values.astype(np.float32)
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
  return batch | fake_targets(groups, rows, rng)


def fake_targets(
  groups: Sequence[str], rows: int, rng: np.random.Generator
) -> dict[str, dict[str, Any]]:
  """Labels of every objective that learns some, as its example says."""
  targets: dict[str, Any] = {}
  for group in groups:
    for name, kind in OBJECTIVES.items():
      given = kind.example(letters(group)).get(OPTION, {})
      for of, stated in given.items():
        target = TargetConfig(**stated)
        shape, dtype = shape_of(target)
        shape = (rows, *shape)
        value = rng.standard_normal(shape)
        if target.kind != "number":
          high = len(target.classes) if target.kind == "class" else 2
          value = rng.integers(0, high, shape)
        targets[f"{name}/{of}"] = value.astype(dtype)
  if not targets:
    return {}
  ones = {n: np.ones(x.shape, np.float32) for n, x in targets.items()}
  return {"target": targets, "target_weight": ones}


def _with_contexts(model: ModelConfig, groups: Iterable[str]) -> ModelConfig:
  """The model with frame tables of all modalities of some groups."""
  used = {by_letter(x).context_type for g in groups for x in letters(g)}
  new = dict.fromkeys(used.difference(model.frame_table, [""]), 1)
  if not new:
    return model
  return dataclasses.replace(model, frame_table={**model.frame_table, **new})


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
    function, params = _setup(name, self.group_of(name))
    (loss, (metrics, _)), grads = function(params, batch)
    return loss, metrics, grads

  def group_of(self, name: str) -> str:
    """The group that an objective is tested with."""
    return OBJECTIVES[name].example_group(self.group)

  def batch(self, name: str, seed: int = 0) -> dict[str, Any]:
    """A batch that an objective can use."""
    return fake_batch((self.group_of(name),), seed=seed)

  def test_finite_with_gradient(self, name: str) -> None:
    """Loss and gradients are finite, and some gradient is not zero."""
    loss, metrics, grads = self.run(name, self.batch(name))
    assert np.isfinite(loss)
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    assert any(np.any(g != 0) for g in jax.tree.leaves(grads))
    group = self.group_of(name)
    assert f"loss/{name}/{group}" in metrics
    for curve in OBJECTIVES[name].curves:
      assert f"{curve}/{name}/{group}" in metrics

  def test_deterministic(self, name: str) -> None:
    """The same batch and step give the same loss to the bit."""
    first, again = self.batch(name), self.batch(name)
    assert self.run(name, first)[0] == self.run(name, again)[0]

  def test_rows_of_weight_zero_do_not_matter(self, name: str) -> None:
    """The content of padding rows changes neither loss nor gradients."""
    first, second = self.batch(name), self.batch(name, seed=1)
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
    batch, group = self.batch(name), self.group_of(name)
    batch["present"][by_letter(group[-1]).key][:] = False
    loss, metrics, grads = self.run(name, batch)
    assert loss == 0
    assert metrics[f"rows/{name}/{group}"].total == 0
    assert all(np.all(g == 0) for g in jax.tree.leaves(grads))

  def test_declares_itself(self, name: str) -> None:
    """Name and needs agree with the table."""
    objective = OBJECTIVES[name]
    assert objective.name == name
    assert objective.needs
