"""Static cycles of a training step on a TPU slice by line, and its MFU.

`mico-jax bench step --aot v5e:16x16 --batch 32` compiles two programs, with
forward and backward pass and AdamW and parameters sharded over the mesh axis
"fsdp", without needing the slice:

  tower  vision tower, and contrastive loss of images against constant text
         embeddings over the global batch
  task   a task of the model: text tower, contrastive, matching and captions

    seconds = (XLA's cycles + bundles of the Pallas kernels) / clock
    MFU = model FLOPs / (seconds x peak)

XLA's cycles are its estimates with memory time; those of kernels are their VLIW
bundles times grid steps, divided by the cores of a device. Collectives have no
estimate and are listed with the bytes that a device receives. Model FLOPs
(`model_flops.py`) exclude recomputation. These are expectations of the
compiler; nothing is run.
"""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, SingleDeviceSharding

from mico_jax import aot, models
from mico_jax.benchmarks import model_flops
from mico_jax.config import (
  Config,
  MatchingConfig,
  ModelConfig,
  ObjectivesConfig,
  OptimizerConfig,
  ParallelConfig,
  TaskConfig,
)
from mico_jax.data.batches import batch_spec
from mico_jax.data.samples import ArrayShape
from mico_jax.data.tokenizer import TokenizerInfo
from mico_jax.kernels import target
from mico_jax.kernels.compiler import step_options
from mico_jax.kernels.contrastive import contrastive_pair
from mico_jax.models.presets import PRESETS
from mico_jax.objectives.base import scalar
from mico_jax.parallel import sharding
from mico_jax.parallel.mesh import PIECES, make_mesh
from mico_jax.train.flops import count_flops, trace_model
from mico_jax.train.layout import kernels_on, row_partition
from mico_jax.train.optimizer import make_optimizer
from mico_jax.train.state import (
  create_state,
  state_shardings,
)
from mico_jax.train.step import (
  direct_gradient,
  make_train_step,
  update_state,
)

# Name -> model of `mico_jax.models.presets.PRESETS`.
MODELS = {
  "vit_g14": "mico_g14",
  "vit_l14": "mico_l14",
  "vit_b16": "mico_b16",
}
PROGRAMS = ("tower", "task")
GROUP_ROWS = 8  # rows of a mining group, as in configs/mico_b16.py
# Substring of an operation's scope -> line of the account; first match.
_LINES = (
  ("attn/qkv", "qkv projection"),
  ("attn/proj", "output projection"),
  ("attn", "attention, around the kernel"),
  ("mlp/fc1", "MLP in"),
  ("mlp/fc2", "MLP out"),
  ("mlp", "MLP activation"),
  ("norm", "LayerNorm"),
  ("patch_embed", "patch embedding"),
  ("blocks", "rest of the blocks"),
)
_TOWERS = (
  *((encoder.__name__, "vision") for encoder in models.ENCODERS.values()),
  *((tower.__name__, "text") for tower in models.TEXT_ENCODERS.values()),
)


@dataclasses.dataclass(frozen=True)
class Program:
  """A program to compile.

  Attributes:
    function: jitted.
    args: shapes with shardings.
    flops: model FLOPs of one device by part.
  """

  function: Any
  args: tuple[Any, ...]
  flops: Mapping[str, float]


def make_config(
  name: str, mesh_size: int, *, images: int, remat: str
) -> Config:
  """Config of one task on a slice.

  Args:
    name: key of `MODELS`.
    mesh_size: number of devices.
    images: per device.
    remat: policy of `mico_jax.layers.stack.REMAT`.
  """
  model: ModelConfig = dataclasses.replace(
    PRESETS[MODELS[name]], dtype="bfloat16", remat=remat
  )
  shared = math.gcd(mesh_size, PIECES)
  task = TaskConfig(
    batch_size=images * mesh_size,
    objectives={x: ("ti",) for x in ("contrastive", "matching", "captioning")},
  )
  return Config(
    model=model,
    tasks={"task": task},
    optimizer=OptimizerConfig(),
    objectives=ObjectivesConfig(
      matching=MatchingConfig(group_rows=math.gcd(images, GROUP_ROWS))
    ),
    parallel=ParallelConfig(
      mesh={"data": mesh_size // shared, "fsdp": shared}, rules="fsdp"
    ),
  )


def _placed(shapes: Any, shardings: Any) -> Any:
  return jax.tree.map(
    lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
    shapes,
    shardings,
  )


def tower(config: Config, mesh: Mesh) -> Program:
  """A training step of the vision tower with the contrastive loss.

  Args:
    config: from `make_config`.
    mesh: of the slice.
  """
  model = models.build(config.model)
  rules = sharding.rules_by_name(config.parallel.rules)
  partition = row_partition(mesh, rules)
  whole = model.abstract_params()
  params = {name: whole[name] for name in ("vision", "temperature")}
  head = model.head("i")
  params["contrastive_head"] = {head: whole["contrastive_head"][head]}
  optimizer = make_optimizer(config.optimizer, params, 1000)
  state = jax.eval_shape(lambda p: create_state(p, optimizer), params)
  shardings = state_shardings(mesh, _Part(model, params), state, rules)
  rows = sharding.batch_sharding(mesh, rules)

  def loss(params: Any, batch: Any, *, step: Any, train: bool = True) -> Any:
    del step, train
    pixels = batch["image"].astype(jnp.float32) / 127.5 - 1.0
    tokens = model.encode(params, "image", pixels[:, None])
    pooled = model.pool(params, "image", tokens)
    pair = contrastive_pair(
      model.embed(params, "i", {"i": pooled}),
      batch["text"],
      temperature=model.temperature(params),
      label_smoothing=0.1,
      partition=partition,
      dtype="bfloat16",
    )
    value = jnp.mean(pair.to_key + pair.to_query) / 2
    return value, ({"loss": scalar(value)}, {})

  gradient = direct_gradient(loss, optimizer.freeze)

  def step(state: Any, batch: Any) -> Any:
    with kernels_on(mesh, rules):
      return update_state(
        state, gradient, batch, optimizer=optimizer, config=config
      )[:2]

  vision, size = config.model.vision, config.tasks["task"].batch_size
  image = (size, vision.image_size, vision.image_size, 3)
  batch = {
    "image": jax.ShapeDtypeStruct(image, jnp.uint8, sharding=rows),
    "text": jax.ShapeDtypeStruct(
      (size, config.model.embed_dim), jnp.float32, sharding=rows
    ),
  }
  flops = {
    part: n * size / mesh.size for part, n in model_flops.train(vision).items()
  }
  # The loss has three products, each with the whole other side.
  flops["contrastive loss"] = (
    3 * 2.0 * size * size * config.model.embed_dim / mesh.size
  )
  function = jax.jit(step, out_shardings=(shardings, None), donate_argnums=(0,))
  return Program(function, (_placed(state, shardings), batch), flops)


@dataclasses.dataclass(frozen=True)
class _Part:
  """A model with a part of the parameters, for `state_shardings`."""

  model: models.MiCo
  params: Any

  def logical_axes(self) -> Any:
    """Logical axes of these parameters."""
    whole = self.model.logical_axes()
    return jax.tree.map_with_path(lambda path, _: _at(whole, path), self.params)


def _at(tree: Any, path: Any) -> Any:
  for entry in path:
    tree = tree[entry.key]
  return tree


def task(config: Config, mesh: Mesh) -> Program:
  """The whole training step of the task.

  Args:
    config: from `make_config`.
    mesh: of the slice.
  """
  model = models.build(config.model)
  rules = sharding.rules_by_name(config.parallel.rules)
  text = config.model.text
  special = TokenizerInfo(
    text.pad_id, 1, 2, 3, text.vocab_size, (4, text.vocab_size)
  )
  params = model.abstract_params()
  optimizer = make_optimizer(config.optimizer, params, 1000)
  state = jax.eval_shape(lambda p: create_state(p, optimizer), params)
  shardings = state_shardings(mesh, model, state, rules)
  rows = sharding.batch_sharding(mesh, rules)
  batch = jax.tree.map(
    lambda s: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=rows),
    batch_spec(config, "task"),
    is_leaf=lambda s: isinstance(s, ArrayShape),
  )
  chosen = config.tasks["task"]
  function = make_train_step(
    model, config, chosen, special, mesh, optimizer=optimizer
  )
  traced = trace_model(
    config, chosen, special, optimizer=optimizer, params=params, batch=batch
  )
  flops = {"all": count_flops(traced) / mesh.size}
  return Program(function, (_placed(state, shardings), batch), flops)


def line_of(scope: str) -> str:
  """The line of the account that an operation belongs to.

  Args:
    scope: of the operation, from its metadata.
  """
  if "rematted" in scope:
    direction = "again"
  elif "transpose(" in scope:
    direction = "backward"
  elif "jvp(" in scope:
    direction = "forward"
  else:
    return "update and the rest"
  where = next((name for part, name in _TOWERS if part in scope), "loss")
  inner = scope.split("blocks")[-1] if "blocks" in scope else scope
  part = next((name for part, name in _LINES if part in inner), "")
  if not part and "blocks" in scope:
    part = "rest of the blocks"
  return f"{where}: {part or 'rest'}, {direction}"


def account(report: aot.KernelReport, cores: int = 1) -> dict[str, float]:
  """Cycles of one device by line, largest first; kernels by name.

  Args:
    report: of the step.
    cores: TensorCores of the device, `aot.Chip.cores`.
  """
  lines: collections.defaultdict[str, float] = collections.defaultdict(float)
  for cycles, _, scope in report.program.operations:
    lines[line_of(scope)] += cycles
  for call in report.program.calls:
    line = f"kernel {aot.kernel_name(call.label)}"
    lines[line] += call.count * report.kernel_cycles(call) / cores
  return dict(sorted(lines.items(), key=lambda line: -line[1]))


def measure(
  name: str,
  topology: str,
  *,
  program: str = "tower",
  images: int = 32,
  remat: str = "attention",
) -> dict[str, Any]:
  """Compiles a step and sums up its cycles.

  Args:
    name: key of `MODELS`.
    topology: such as "v5e:16x16".
    program: one of `PROGRAMS`.
    images: per device.
    remat: policy of `mico_jax.layers.stack.REMAT`.

  Returns:
    Cycles by line, seconds, model FLOPs by part and MFU (None for a chip
    without a published clock), bytes of memory and of collectives.
  """
  chip = aot.chip(topology)
  devices = aot.devices(topology)
  config = make_config(name, len(devices), images=images, remat=remat)
  mesh = make_mesh(config.parallel, devices)
  machine = target.Target("tpu", topology.split(":")[0])
  with target.use(machine):
    built = (tower if program == "tower" else task)(config, mesh)
    report = aot.compile_report(
      built.function,
      *built.args,
      mesh=dict(mesh.shape),
      options=step_options(SingleDeviceSharding(devices[0])),
    )
  lines = account(report, chip.cores)
  total = sum(lines.values())
  peak = chip.flops / chip.devices
  flops = sum(built.flops.values())
  seconds = total / chip.clock if chip.clock else None
  return {
    "shape": name,
    "topology": topology,
    "program": program,
    "images_per_device": images,
    "remat": remat,
    "cycles": lines,
    "total_cycles": total,
    "seconds": seconds,
    "model_flops": dict(built.flops),
    "mfu": flops / (seconds * peak) if seconds and flops else None,
    "images_per_second": images / seconds if seconds else None,
    "temporary_gib": report.temporary_bytes / 2**30,
    "argument_gib": report.argument_bytes / 2**30,
    "received_gb": {
      f"{c.kind} over {c.axes}": c.bytes / 1e9
      for c in report.program.collectives
    },
    "devices": int(np.prod(mesh.devices.shape)),
  }


def run(
  topology: str,
  shapes: Sequence[str] = ("vit_g14",),
  *,
  programs: Sequence[str] = PROGRAMS,
  batch: int = 32,
  remat: str = "attention",
) -> Iterator[dict[str, Any]]:
  """Measures each model.

  Args:
    topology: such as "v5e:16x16".
    shapes: names of `MODELS`.
    programs: names of `PROGRAMS`.
    batch: images per device.
    remat: policy of `mico_jax.layers.stack.REMAT`.

  Yields:
    The result of `measure` for each model and program.
  """
  for name in shapes:
    for program in programs:
      yield measure(name, topology, program=program, images=batch, remat=remat)
