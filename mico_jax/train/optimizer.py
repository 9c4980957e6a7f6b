"""Optimizers by name, schedules, and parameter groups by path.

A gradient transformation of optax turns gradients into a direction of unit
learning rate; the last step is ours, the same for all of them:

  p <- p - lr * (direction + decay * p)

with a learning rate and a decay per leaf (or per layer of a stacked leaf), so
multipliers, freezing, layer-wise decay and weight-decay masks need no nesting
of transformations. Frozen leaves have no optimizer state.

`adamw_mico` is the arithmetic of the official code: eps is added to the
uncorrected sqrt(v); decay comes after the step, on the updated parameter; a
leaf whose gradient is exactly zero counts as having none and is skipped
entirely, moments, its own step count and decay included.
"""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from mico_jax.aliases import Params, PyTree
from mico_jax.config import ConfigError, OptimizerConfig
from mico_jax.train import lora, selection
from mico_jax.train.stochastic_rounding import narrow

Schedule = Callable[[Int[Array, ""]], Float[Array, ""]]


# -------------------------------------------------------------------- schedules
def warmup_steps(config: OptimizerConfig, num_steps: int) -> int:
  """Warm-up in steps: a fraction of the run if below 1, else as given."""
  warmup = config.warmup
  return round(warmup * num_steps) if warmup < 1 else int(warmup)


def _linear(x: Float[Array, "*B"], end: float) -> Float[Array, "*B"]:
  return 1 + (end - 1) * x


def _cosine(x: Float[Array, "*B"], end: float) -> Float[Array, "*B"]:
  return end + (1 - end) * 0.5 * (1 + jnp.cos(jnp.float32(math.pi) * x))


def _linear_mico(config: OptimizerConfig, num_steps: int) -> Schedule:
  """The official rule: x / w, then (x - 1) / (w - 1), x = (step + 1) / steps.

  Unlike "linear" it counts from 1, peaks between two steps unless w * steps is
  whole, and reaches 0 in the last step.
  """
  warm = config.warmup if config.warmup < 1 else config.warmup / num_steps

  def schedule(step: Int[Array, "*B"]) -> Float[Array, "*B"]:
    x = (step + 1).astype(jnp.float32) / num_steps
    rising = x / max(warm, 1e-9)
    falling = (x - 1) / min(warm - 1, -1e-9)
    return jnp.where(x < warm, rising, jnp.maximum(falling, 0))

  return schedule


def _ramped(
  decay: Callable[[Array, float], Array],
  config: OptimizerConfig,
  num_steps: int,
) -> Schedule:
  """Linear to 1 in the last step of warm-up, then `decay` of 0..1."""
  warm = warmup_steps(config, num_steps)

  def schedule(step: Int[Array, "*B"]) -> Float[Array, "*B"]:
    position = step.astype(jnp.float32)
    x = (position - warm) / max(num_steps - warm, 1)
    rising = (position + 1) / max(warm, 1)
    falling = decay(jnp.clip(x, 0, 1), config.end_fraction)
    return jnp.where(position < warm, rising, falling)

  return schedule


SCHEDULES: dict[str, Callable[[OptimizerConfig, int], Schedule]] = {
  "linear": functools.partial(_ramped, _linear),
  "cosine": functools.partial(_ramped, _cosine),
  "constant": functools.partial(_ramped, lambda x, end: jnp.ones_like(x)),
  "linear_mico": _linear_mico,
}


def make_schedule(config: OptimizerConfig, num_steps: int) -> Schedule:
  """Step (counted from 0) -> learning rate.

  Raises:
    ConfigError: for an unknown schedule.
  """
  if config.schedule not in SCHEDULES:
    raise ConfigError(
      f"optimizer.schedule={config.schedule!r} is unknown; known: "
      f"{', '.join(SCHEDULES)}."
    )
  factor = SCHEDULES[config.schedule](config, num_steps)
  return lambda step: config.learning_rate * factor(step)


# ------------------------------------------------------------------- directions
class MicoAdamState(NamedTuple):
  """Moments and the number of updates of each leaf."""

  count: PyTree
  mu: PyTree
  nu: PyTree


def _seen(gradient: Float[Array, "..."]) -> Bool[Array, ""]:
  return jnp.any(gradient != 0)


def scale_by_adam_mico(
  b1: float, b2: float, eps: float
) -> optax.GradientTransformation:
  """Adam with eps on the uncorrected sqrt(v); zero gradients are skipped."""

  def init(params: Any) -> Any:
    return MicoAdamState(
      jax.tree.map(lambda p: jnp.zeros((), jnp.int32), params),
      jax.tree.map(jnp.zeros_like, params),
      jax.tree.map(jnp.zeros_like, params),
    )

  def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
    del params
    grads = updates
    keep = lambda g, new, old: jnp.where(_seen(g), new, old)
    count = jax.tree.map(lambda g, n: keep(g, n + 1, n), grads, state.count)
    mu = jax.tree.map(
      lambda g, m: keep(g, b1 * m + (1 - b1) * g, m), grads, state.mu
    )
    nu = jax.tree.map(
      lambda g, v: keep(g, b2 * v + (1 - b2) * g * g, v), grads, state.nu
    )

    def direction(g: Array, m: Array, v: Array, n: Array) -> Array:
      t = jnp.maximum(n, 1).astype(g.dtype)
      correction = jnp.sqrt(1 - b2**t) / (1 - b1**t)
      return keep(g, correction * m / (jnp.sqrt(v) + eps), jnp.zeros_like(m))

    out = jax.tree.map(direction, grads, mu, nu, count)
    return out, MicoAdamState(count, mu, nu)

  return optax.GradientTransformation(init, update)


def _muon(config: OptimizerConfig) -> optax.GradientTransformation:
  """Muon for the kernels of blocks, Nesterov Adam for everything else.

  Updates are scaled to the size that AdamW's have, so one learning rate serves
  both (arXiv:2502.16982).
  """
  numbers = optax.contrib.MuonDimensionNumbers

  def kernels(params: Any) -> Any:
    def choose(path: str, leaf: Any) -> Any:
      if not selection.is_stacked(path) or not path.endswith("kernel"):
        return None
      if getattr(leaf, "ndim", 0) != 3:
        return None
      return numbers(reduction_axis=1, output_axis=2)

    return selection.map_paths(choose, params)

  rule = optax.contrib.muon(
    learning_rate=1.0,
    adam_b1=config.b1,
    adam_b2=config.b2,
    eps=config.eps,
    muon_weight_dimension_numbers=kernels,
    consistent_rms=0.2,
  )
  return optax.chain(rule, optax.scale(-1.0))  # the last step subtracts


def _adafactor(config: OptimizerConfig) -> optax.GradientTransformation:
  del config
  return optax.chain(
    optax.scale_by_factored_rms(min_dim_size_to_factor=32),
    optax.clip_by_block_rms(1.0),
  )


def _adamw(config: OptimizerConfig) -> optax.GradientTransformation:
  return optax.scale_by_adam(b1=config.b1, b2=config.b2, eps=config.eps)


OPTIMIZERS: dict[
  str, Callable[[OptimizerConfig], optax.GradientTransformation]
] = {
  "adamw": _adamw,
  "adamw_mico": lambda c: scale_by_adam_mico(c.b1, c.b2, c.eps),
  "adafactor": _adafactor,
  "lion": lambda c: optax.scale_by_lion(b1=c.b1, b2=c.b2),
  "muon": _muon,
}


STATE_DTYPES = ("float32", "bfloat16")


# ------------------------------------------------------------ parameter groups
# A block of the shared encoder: its stage, and its place among the unequal
# blocks that a stage repeats (none of both for encoders without stages).
_BLOCK = re.compile(r"^vision/(?:stage(\d+)/)?blocks/(?:block(\d+)/)?")
_STAGE = re.compile(r"^vision/stage(\d+)/")
_HEADS = r"^objective/"  # parameters of objectives
_BEFORE = (
  "vision/patch_embed",
  "vision/stem",
  "vision/cls_token",
  "vision/pos_embed",
  "vision/pre_norm",
)


def _layer_factors(config: OptimizerConfig, params: Params) -> PyTree:
  """Layer-wise decay of the shared encoder: one factor, or one per layer.

  Block i of n, counted over all stages, gets decay ** (n - i), layers before
  the blocks decay ** (n + 1), the downsampling before a stage the factor of the
  stage's first block, everything else 1 (BEiT, arXiv:2106.08254).
  """
  if config.layer_decay == 1.0:
    return jax.tree.map(lambda p: 1.0, params)
  repeats: dict[int, int] = {}  # stage -> length of its stacked leaves
  period: dict[int, int] = {}  # stage -> unequal blocks that it repeats
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    if block := _BLOCK.match(selection.path_name(path)):
      stage, place = (int(group or 0) for group in block.groups())
      repeats[stage] = leaf.shape[0]
      period[stage] = max(period.get(stage, 1), place + 1)
  if not repeats:
    raise ConfigError(
      "optimizer.layer_decay needs the shared encoder's blocks in the "
      "parameters (paths such as 'vision/blocks/' or 'vision/stage0/blocks/')."
    )
  first, total = {}, 0
  for stage in sorted(repeats):
    first[stage] = total
    total += repeats[stage] * period[stage]

  def factor(path: str, leaf: Any) -> Any:
    if block := _BLOCK.match(path):
      stage, place = (int(group or 0) for group in block.groups())
      number = first[stage] + place
      layers = number + period[stage] * jnp.arange(leaf.shape[0])
      exponent = (total - layers).astype(jnp.float32)
      shape = (-1,) + (1,) * (leaf.ndim - 1)
      return (jnp.float32(config.layer_decay) ** exponent).reshape(shape)
    if stage := _STAGE.match(path):
      return config.layer_decay ** (total - first[int(stage[1])])
    if path.startswith(_BEFORE):
      return config.layer_decay ** (total + 1)
    return 1.0

  return selection.map_paths(factor, params)


def trainable(config: OptimizerConfig, params: Params) -> PyTree:
  """True where a leaf is updated: not frozen, and a delta if there are any.

  Beside deltas, what objectives bring themselves is trained, as it has no
  given weights, and what `lora_also` names.

  Raises:
    ConfigError: if a pattern matches nothing, or nothing is left to train.
  """
  selection.check_patterns(config.freeze, params, field="optimizer.freeze")
  selection.check_patterns(
    config.lr_multipliers, params, field="optimizer.lr_multipliers"
  )
  selection.check_patterns(
    config.lora_also, params, field="optimizer.lora_also"
  )
  beside = (rf"^{lora.KEY}/", _HEADS, *config.lora_also)

  def free(path: str, leaf: Any) -> bool:
    del leaf
    if config.lora_rank > 0 and not selection.matches(beside, path):
      return False
    if selection.matches(config.freeze, path):
      return False
    return selection.first_match(config.lr_multipliers, path, 1.0) != 0

  mask = selection.map_paths(free, params)
  if not any(jax.tree.leaves(mask)):
    raise ConfigError(
      "optimizer.freeze and optimizer.lr_multipliers leave nothing to train."
    )
  return mask


@dataclass(frozen=True)
class Optimizer:
  """Gradients to updated parameters; build it with `make_optimizer`.

  Attributes:
    transform: gradients -> directions of unit learning rate.
    schedule: step -> learning rate.
    mask: per leaf, whether it is updated.
    factors: per leaf, factor on the learning rate, or one per layer.
    decay: per leaf, weight decay per unit learning rate.
    clip_norm: largest global gradient norm; 0: any.
    decay_after: decay on the updated parameter, and none without gradient.
  """

  transform: optax.GradientTransformation
  schedule: Schedule
  mask: PyTree
  factors: PyTree
  decay: PyTree
  clip_norm: float = 0.0
  decay_after: bool = False

  def init(self, params: Params) -> PyTree:
    """The optimizer state; frozen leaves have none."""
    return optax.masked(self.transform, self.mask).init(params)

  def freeze(self, params: Params) -> Params:
    """Parameters whose frozen leaves stop the gradient."""
    return jax.tree.map(
      lambda p, free: p if free else jax.lax.stop_gradient(p), params, self.mask
    )

  def norm(self, grads: PyTree) -> Float[Array, ""]:
    """Global norm of the gradient of the trained leaves."""
    squares = [
      jnp.square(g.astype(jnp.float32)).sum()
      for g, free in zip(
        jax.tree.leaves(grads), jax.tree.leaves(self.mask), strict=True
      )
      if free
    ]
    return jnp.sqrt(jnp.stack(squares).sum())

  def update(
    self,
    grads: PyTree,
    state: PyTree,
    params: Params,
    *,
    step: Int[Array, ""],
    norm: Float[Array, ""] | None = None,
  ) -> tuple[Params, PyTree]:
    """One update.

    Args:
      grads: gradients, of the structure of `params`.
      state: from `init` or the last update.
      params: to be updated.
      step: counted from 0; sets the learning rate.
      norm: `self.norm(grads)` if already known.

    Returns:
      (new parameters, new state).
    """
    if self.clip_norm:
      norm = self.norm(grads) if norm is None else norm
      scale = jnp.minimum(1.0, self.clip_norm / jnp.maximum(norm, 1e-12))
      grads = jax.tree.map(lambda g: g * scale.astype(g.dtype), grads)
    # optax promotes dtypes and ranks implicitly; only its own lines may.
    with (
      jax.numpy_dtype_promotion("standard"),
      jax.numpy_rank_promotion("allow"),
    ):
      directions, state = optax.masked(self.transform, self.mask).update(
        grads, state, params
      )
    rate = self.schedule(step)

    def move(p: Array, d: Array, g: Array, free: bool, f: Any, w: float) -> Any:
      if not free:
        return p
      lr = (rate * f).astype(p.dtype)
      lr = lr.reshape(lr.shape if lr.ndim else (1,) * p.ndim)
      d = d.astype(p.dtype)
      if self.decay_after:
        moved = p - lr * d
        return jnp.where(_seen(g), moved - lr * w * moved, p)
      return p - lr * (d + w * p)

    moved = jax.tree.map(
      move, params, directions, grads, self.mask, self.factors, self.decay
    )
    return moved, state


def make_optimizer(
  config: OptimizerConfig, params: Params, num_steps: int
) -> Optimizer:
  """The optimizer of a run.

  Args:
    config: name, schedule and parameter groups.
    params: the whole parameter tree, deltas included, or its shapes.
    num_steps: of the run, for the schedule.

  Raises:
    ConfigError: for an unknown name, or a pattern that matches nothing.
  """
  if config.name not in OPTIMIZERS:
    raise ConfigError(
      f"optimizer.name={config.name!r} is unknown; known: "
      f"{', '.join(OPTIMIZERS)}."
    )
  if config.state_dtype not in STATE_DTYPES:
    raise ConfigError(
      f"optimizer.state_dtype={config.state_dtype!r} is unknown; known: "
      f"{', '.join(STATE_DTYPES)}."
    )
  transform = OPTIMIZERS[config.name](config)
  if config.state_dtype == "bfloat16":
    transform = narrow(transform)
  mask = trainable(config, params)
  layer_factors = _layer_factors(config, params)
  multipliers = selection.map_paths(
    lambda path, _: selection.first_match(config.lr_multipliers, path, 1.0),
    params,
  )

  def decay(path: str, leaf: Any) -> float:
    del leaf
    skip = selection.matches(config.no_decay, path)
    return 0.0 if skip else config.weight_decay

  return Optimizer(
    transform=transform,
    schedule=make_schedule(config, num_steps),
    mask=mask,
    factors=jax.tree.map(lambda m, f: m * f, multipliers, layer_factors),
    decay=selection.map_paths(decay, params),
    clip_norm=config.clip_norm,
    decay_after=config.name == "adamw_mico",
  )
