"""Heads on the pooled features of a group, for objectives that learn labels.

The feature of a group is that of its embedding: for each modality what
`model.pool` makes of the encoder's tokens (the mean over frames of the class
tokens; of an encoder without a class token the mean of the valid tokens),
several modalities side by side. A head is a LayerNorm and a linear map, in
float32, as in fine-tuning of BEiT (arXiv:2106.08254, section 3.1) and of the
encoder here (arXiv:2211.07636). Its parameters are
params["objective"][NAME][GROUP]: they are part of a checkpoint, of `--init` and
of what `mico-jax evaluate` measures. Exports to other libraries leave them out.

What a head learns is its target, see `TargetConfig`; a row without one has no
part in the loss.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from mico_jax.aliases import Params
from mico_jax.config import (
  ConfigError,
  ModelConfig,
  TargetConfig,
  check_target,
)
from mico_jax.config.fields import Group, Items
from mico_jax.kernels.dtypes import accumulation_dtype
from mico_jax.modalities import by_letter, has_text, letters
from mico_jax.objectives.base import Inputs, Need, Objective

Targets = Annotated[Mapping[Group, TargetConfig], Items(0, 64)]
_STD = 0.02  # of new weights


def normed(x: Float[Array, "*B D"], params: Params) -> Float[Array, "*B D"]:
  """LayerNorm of the last axis, with its `scale` and `bias`.

  Source: arXiv:1607.06450.
  """
  mean = x.mean(axis=-1, keepdims=True)
  variance = jnp.square(x - mean).mean(axis=-1, keepdims=True)
  x = (x - mean) * jax.lax.rsqrt(variance + 1e-6)
  width = (1,) * (x.ndim - 1) + (-1,)
  return x * params["scale"].reshape(width) + params["bias"].reshape(width)


def dense(x: Float[Array, "*B I"], params: Params) -> Float[Array, "*B O"]:
  """A linear map, with its `kernel` and `bias`."""
  bias = params["bias"].reshape((1,) * (x.ndim - 1) + (-1,))
  return x @ params["kernel"].astype(x.dtype) + bias.astype(x.dtype)


def feature_width(model: ModelConfig, group: str) -> int:
  """Channels of the pooled features of a group."""
  words = lambda letter: by_letter(letter).kind == "interface"
  return sum(
    (model.text if words(letter) else model.vision).width
    for letter in letters(group)
  )


def num_classes(target: TargetConfig, where: str) -> int:
  """How many classes a target has.

  Raises:
    ConfigError: if they are not known yet.
  """
  if not target.classes:
    raise ConfigError(
      f"{where}.classes is empty. A run fills it from its training samples; "
      "list the classes to do without these."
    )
  return len(target.classes)


@dataclass(frozen=True)
class Head(Objective):
  """An objective that predicts a target from the pooled features of a group.

  Its options have a field `targets`: group -> `TargetConfig`.

  Attributes:
    kinds: of the targets that it can learn.
  """

  config: Any = field(default_factory=dict)
  needs: ClassVar[frozenset[Need]] = frozenset({"pooled", "target"})
  kinds: ClassVar[tuple[str, ...]] = ()

  @classmethod
  def example_group(cls, group: str) -> str:
    """See `Objective`."""
    return letters(group)

  def target(self, group: str) -> TargetConfig:
    """What a group learns.

    Raises:
      ConfigError: if the options do not say it.
    """
    if group not in self.config.targets:
      raise ConfigError(
        f"nothing says what {group!r} learns; set objectives.options="
        f"{{{self.name!r}: {{'targets': {{{group!r}: {{'fields': (FIELD,)}}}}}}"
        "}}."
      )
    return self.config.targets[group]

  def learns(self, group: str) -> TargetConfig | None:
    """See `Objective`: its outputs; the fields may have other names."""
    target = self.config.targets.get(group)
    if target is None or target.kind == "number":
      return target
    return dataclasses.replace(target, fields=(), labels=())

  def where(self, group: str) -> str:
    """Where a config has the target of a group."""
    return f"objectives.options.{self.name}.targets.{group}"

  def check_group(self, group: str) -> None:
    """See `Objective`: a context without a text, whose target is stated."""
    if has_text(group) or ":" in group:
      raise ConfigError(
        f"{self.name} learns from one context and reads no text; write "
        f"{letters(group)!r} instead of {group!r}."
      )
    self.check_stated(group)

  def check_stated(self, group: str) -> None:
    """Checks the target of a group.

    Raises:
      ConfigError: if there is none, or one that it cannot learn.
    """
    target = self.target(group)
    check_target(target, self.where(group))
    if target.kind not in self.kinds:
      raise ConfigError(
        f"{self.where(group)}.kind={target.kind!r}: {self.name} learns "
        f"{' or '.join(map(repr, self.kinds))}."
      )

  def size(self, group: str) -> int:
    """Outputs of the head of a group."""
    target = self.target(group)
    if target.kind == "number":
      return len(target.fields)
    return num_classes(target, self.where(group))

  def init(self, key: Key[Array, ""], model: ModelConfig) -> Params:
    """A head for each group."""
    heads = {}
    for index, group in enumerate(sorted(self.config.targets)):
      shape = (feature_width(model, group), self.size(group))
      draw = jax.random.normal(jax.random.fold_in(key, index), shape)
      heads[group] = {
        "norm": {"scale": jnp.ones(shape[0]), "bias": jnp.zeros(shape[0])},
        "kernel": _STD * draw,
        "bias": jnp.zeros(shape[1]),
      }
    return heads

  def outputs(
    self, params: Params, group: str, pooled: Float[Array, "B D"]
  ) -> Float[Array, "B K"]:
    """Outputs of the head of a group, in float32 (or float64).

    Args:
      params: with those of the objective.
      group: whose head.
      pooled: features of its modalities, side by side.
    """
    head = params["objective"][self.name][group]
    wide = pooled.astype(accumulation_dtype(pooled.dtype))
    return dense(normed(wide, head["norm"]), head)

  def of_batch(self, inputs: Inputs, group: str) -> Float[Array, "B K"]:
    """Outputs of the head for the rows of a batch."""
    return self.outputs(inputs.params, group, inputs.pooled[letters(group)])
