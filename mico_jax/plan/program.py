"""The programs of a config on a mesh, with shapes instead of arrays.

No data is opened: the vocabulary size is that of the text tower, and special
token ids are placeholders, which affect no shape.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import jax
from jax.sharding import Mesh

from mico_jax import models
from mico_jax.aliases import Params, PyTree
from mico_jax.config import Config, ConfigError, TaskConfig
from mico_jax.data.batches import batch_spec
from mico_jax.data.input_checks import check_inputs
from mico_jax.data.samples import ArrayShape, groups_of, input_shape, keys_of
from mico_jax.data.tokenizer import TokenizerInfo
from mico_jax.inference.self_check import model_params
from mico_jax.modalities import (
  MODALITIES,
  CustomEmbedding,
  by_letter,
  has_text,
  letters,
  preprocessing,
)
from mico_jax.models import forward
from mico_jax.objectives import select
from mico_jax.parallel import sharding
from mico_jax.parallel.mesh import make_mesh
from mico_jax.plan import flops
from mico_jax.run.checks import check_mesh, check_values
from mico_jax.run.setup import check_tasks
from mico_jax.train.encode import make_plan
from mico_jax.train.flops import trace_model
from mico_jax.train.layout import kernels_on
from mico_jax.train.optimizer import Optimizer, make_optimizer
from mico_jax.train.state import (
  TrainState,
  abstract_params,
  create_state,
  init_params,
  state_shardings,
)
from mico_jax.train.step import make_train_step

# Names of programs beside the tasks.
EVALUATION = "evaluation"  # forward pass of the evaluation
CREATE = "create"  # creation of the training state


def special_ids(config: Config) -> TokenizerInfo:
  """Placeholders for the token ids of the tokenizer."""
  size = config.model.text.vocab_size or config.data.tokenizer.vocab_size
  return TokenizerInfo(config.model.text.pad_id, 1, 2, 3, size, (4, size))


def with_vocabulary(config: Config) -> Config:
  """The config with the vocabulary size of the tokenizer, if it sets none."""
  text = config.model.text
  if text.vocab_size:
    return config
  size = special_ids(config).vocab_size
  text = dataclasses.replace(text, vocab_size=size)
  model = dataclasses.replace(config.model, text=text)
  return dataclasses.replace(config, model=model)


def with_batch(config: Config, batch: int, task: str = "") -> Config:
  """The config with another global batch in one task, or in all tasks."""
  tasks = {
    name: dataclasses.replace(t, batch_size=batch) if task in ("", name) else t
    for name, t in config.tasks.items()
  }
  return dataclasses.replace(config, tasks=tasks)


def local_bytes(tree: PyTree, shardings: PyTree) -> int:
  """Bytes of a tree on one device under its shardings."""
  total = 0
  for leaf, where in zip(
    jax.tree.leaves(tree), jax.tree.leaves(shardings), strict=True
  ):
    size = leaf.dtype.itemsize
    for dim in where.shard_shape(leaf.shape):
      size *= dim
    total += size
  return total


@dataclass(frozen=True)
class Views:
  """Inputs of the encoders per batch row.

  Attributes:
    images: number of frames and slices, each one pass of the shared encoder.
    tokens: number of tokens of all frames, and of all texts, each counted once.
  """

  images: int
  tokens: int


def views_of(config: Config, task: TaskConfig) -> Views:
  """Counts the encoder inputs of one row of a task."""
  vision = config.model.vision
  spec = batch_spec(dataclasses.replace(config, tasks={"x": task}), "x")
  images = tokens = 0
  for name in keys_of(groups_of(task)):
    modality, shape = MODALITIES[name], input_shape(config, name).shape
    embedding = modality.embedding
    if embedding == "text":
      tokens += shape[0]
      continue
    frames = preprocessing.input_config(config, name).frames
    length = (vision.image_size // vision.patch_size) ** 2
    if isinstance(embedding, CustomEmbedding):
      frames = shape[0] if "T" in modality.spec.dims else 1
      length = embedding.tokens
    images += frames
    tokens += frames * (length + 1)
  tokens += sum(leaf.shape[1] for leaf in spec["text"].values())
  return Views(images, tokens)


@dataclass(frozen=True)
class Programs:
  """The programs of a config that can be compiled.

  Attributes:
    config: with vocabulary size; checked by `Programs.of`.
    mesh: device mesh.
  """

  config: Config
  mesh: Mesh

  @classmethod
  def of(cls, config: Config, devices: Sequence[Any]) -> Programs:
    """Checks a config against devices.

    Raises:
      ConfigError: for values, groups, meshes or batches that do not fit.
    """
    check_values(config)
    check_inputs(config)
    config = with_vocabulary(config)
    check_tasks(config)
    mesh = make_mesh(config.parallel, devices)
    check_mesh(config, mesh)
    return cls(config, mesh)

  @property
  def rules(self) -> sharding.Rules:
    """Rules from logical to mesh axes."""
    return sharding.rules_by_name(self.config.parallel.rules)

  @cached_property
  def model(self) -> models.MiCo:
    """The model."""
    return models.build(self.config.model)

  @cached_property
  def params(self) -> PyTree:
    """Shapes of the parameters."""
    return abstract_params(self.model, self.config)

  @cached_property
  def optimizer(self) -> Optimizer:
    """The optimizer."""
    return make_optimizer(
      self.config.optimizer, self.params, self.config.train.steps
    )

  @cached_property
  def state(self) -> tuple[TrainState, TrainState]:
    """Shapes and shardings of the training state."""
    ema = self.config.optimizer.ema > 0
    shapes = jax.eval_shape(
      lambda p: create_state(p, self.optimizer, ema=ema), self.params
    )
    places = state_shardings(
      self.mesh,
      self.model,
      shapes,
      self.rules,
      offload=self.config.parallel.offload,
    )
    return shapes, places

  def batch(self, task: str) -> PyTree:
    """Shapes of a task's global batch."""
    return jax.tree.map(
      lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype),
      batch_spec(self.config, task),
      is_leaf=lambda s: isinstance(s, ArrayShape),
    )

  def memory(self, task: str) -> dict[str, int]:
    """Bytes on one device of the inputs of a task's step, by kind."""
    shapes, where = self.state
    batch = self.batch(task)
    rows = sharding.batch_sharding(self.mesh, self.rules)
    sizes = {
      "parameters": local_bytes(shapes.params, where.params),
      "optimizer": local_bytes(shapes.opt_state, where.opt_state),
      "batch": local_bytes(batch, jax.tree.map(lambda _: rows, batch)),
    }
    if shapes.ema is not None:
      sizes["average"] = local_bytes(shapes.ema, where.ema)
    return sizes

  def train(self, task: str) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The jitted training step of a task and shapes of its arguments."""
    step = make_train_step(
      self.model,
      self.config,
      self.config.tasks[task],
      special_ids(self.config),
      self.mesh,
      optimizer=self.optimizer,
    )
    return step, (self.state[0], self.batch(task))

  def contexts(self) -> tuple[str, ...]:
    """Letters of the contexts that the evaluation embeds."""
    if self.config.evaluation.groups:
      return tuple(self.config.evaluation.groups)
    tasks = self.config.tasks.values()
    groups = [group for task in tasks for group in groups_of(task)]
    described = dict.fromkeys(letters(g) for g in groups if has_text(g))
    for task in tasks:
      plan = make_plan(select(self.config.objectives, task))
      described.update(dict.fromkeys(plan.features))
    return tuple(described)

  def evaluate(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The jitted forward pass of the evaluation and shapes of its arguments.

    Raises:
      ConfigError: if its batch does not divide over the devices.
    """
    contexts = self.contexts()
    rows = self.config.evaluation.batch_size
    data = sharding.batch_sharding(self.mesh, self.rules)
    pad = special_ids(self.config).pad

    def embed(params: Params, inputs: Mapping[str, Any]) -> dict[str, Any]:
      with kernels_on(self.mesh, self.rules):
        params = model_params(params, self.config)
        encoded = forward.encode_inputs(
          self.model, self.config, params, inputs, pad=pad
        )
        return forward.embed(self.model, params, encoded, contexts)

    try:
      data.shard_shape((rows,))
    except ValueError as error:
      raise ConfigError(
        f"evaluation.batch_size={rows} does not divide over the "
        f"{self.mesh.size} devices of the mesh {dict(self.mesh.shape)}; choose "
        "a multiple."
      ) from error
    inputs = {}
    used = {by_letter(letter).key for c in contexts for letter in c}
    for modality in (name for name in MODALITIES if name in used):
      spec = input_shape(self.config, modality, train=False)
      shape = (rows, *spec.shape)
      inputs[modality] = jax.ShapeDtypeStruct(shape, spec.dtype, sharding=data)
    params = jax.tree.map(
      lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
      self.state[0].params,
      self.state[1].params,
    )
    return jax.jit(embed), (params, inputs)

  def create(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """The jitted creation of the training state, and its (no) arguments."""
    ema = self.config.optimizer.ema > 0

    def create() -> TrainState:
      rng_key = jax.random.key(self.config.seed)
      params = init_params(self.model, self.config, rng_key)
      return create_state(params, self.optimizer, ema=ema)

    return jax.jit(create, out_shardings=self.state[1]), ()

  def state_bytes(self) -> dict[str, int]:
    """Bytes of the training state.

    Returns:
      "all": of the whole state; "device": on one device; "alike": of the arrays
      that every device holds whole, since no rule splits them or the mesh does
      not divide them.
    """
    shapes, where = self.state
    size = lambda x: x.size * x.dtype.itemsize
    alike = jax.tree.map(
      lambda x, s: size(x) if s.shard_shape(x.shape) == x.shape else 0,
      shapes,
      where,
    )
    return {
      "all": sum(size(x) for x in jax.tree.leaves(shapes)),
      "device": local_bytes(shapes, where),
      "alike": sum(jax.tree.leaves(alike)),
    }

  def flops(self, task: str) -> dict[str, float]:
    """Model FLOPs of a task's step over the global batch."""
    jaxpr = trace_model(
      self.config,
      self.config.tasks[task],
      special_ids(self.config),
      optimizer=self.optimizer,
      params=self.params,
      batch=self.batch(task),
    )
    return flops.count(jaxpr)

  def share(self, task: str) -> float:
    """Share of a task in all steps."""
    weights: Mapping[str, int] = {
      name: t.steps for name, t in self.config.tasks.items()
    }
    return weights[task] / max(sum(weights.values()), 1)
