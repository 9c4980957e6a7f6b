"""The runs of `sensor_transfer`, as sweeps: arms, sets, learning rates.

Arms differ in what they start from and what they train, and in nothing else:
all have the towers of the checkpoint, and steps, batches and augmentation of
the set. Texts take no part, as the words of a set are others than those of the
checkpoint: heads learn the labels, or contexts are contrasted with each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from mico_jax import config as config_lib
from mico_jax.config import Config, ConfigError
from mico_jax.evaluation.evaluators import find_measure
from mico_jax.modalities import has_text, sides
from mico_jax.run.sweep.plan import PanelConfig, PointConfig, SweepConfig
from mico_jax.run.sweep.results import Found
from mico_jax.train.small_sets import VALIDATION

RATES = (3e-4, 1e-3, 3e-3)


class Arm(NamedTuple):
  """A way to train a set.

  Attributes:
    about: for the table.
    pretrained: whether it starts from the checkpoint.
    set: fields that say what is trained.
  """

  about: str
  pretrained: bool
  set: tuple[str, ...] = ()


# Beside the tower: what the sensor brings, and heads that compare contexts.
_OWN = "^(embedding|contrastive_head|frame_gain|temperature)"
_FROZEN = ("optimizer.freeze=('^vision/',)",)
_DELTAS = (
  "optimizer.lora_rank=8",
  "optimizer.lora_targets=('^vision/.*attn/(qkv|proj)/kernel$',)",
  f"optimizer.lora_also=({_OWN!r},)",
)
BASE = "scratch"  # the arm that the others are compared with
ARMS: dict[str, Arm] = {
  BASE: Arm("from scratch", False),
  "full": Arm("pretrained, all trained", True),
  "lora": Arm("pretrained, low-rank deltas", True, _DELTAS),
  "frozen": Arm("pretrained, tower frozen", True, _FROZEN),
  # What a frozen tower gives that has learned nothing.
  "frozen-random": Arm("random, tower frozen", False, _FROZEN),
}


class Settings(NamedTuple):
  """What is compared.

  Attributes:
    init: checkpoint.
    like: its config.
    sets: names of configs with their manifests.
    arms: keys of `ARMS`; the first is `BASE`.
    rates: learning rates to choose from.
    seeds: of the measured runs; the first one chooses the rate.
    steps: of each run; 0: those of the set.
  """

  init: str
  like: Config
  sets: tuple[str, ...]
  arms: tuple[str, ...] = tuple(ARMS)
  rates: tuple[float, ...] = RATES
  seeds: tuple[int, ...] = (0, 1, 2)
  steps: int = 0


# Objective -> the result that is compared; the first of a set counts.
_RESULTS = {
  "classification": "classifier/{group}/accuracy",
  "regression": "regressor/{group}/{field}/MAE",
  "forecasting": "forecasting/{group}/MSE",
}


def kept_objectives(config: Config) -> dict[str, tuple[str, ...]]:
  """The objectives of a set that read no text, with their groups.

  Raises:
    ConfigError: if the config has several tasks, or nothing is left.
  """
  if len(config.tasks) != 1:
    raise ConfigError(
      f"{config.name}: {len(config.tasks)} tasks; expected a set with one."
    )
  (task,) = config.tasks.values()
  kept = {
    name: tuple(group for group in groups if not has_text(group))
    for name, groups in task.objectives.items()
  }
  kept = {name: groups for name, groups in kept.items() if groups}
  if not kept:
    raise ConfigError(
      f"{config.name}: its task has neither a head nor a pair of contexts "
      "('i:d'); a contrast with texts alone is not compared here."
    )
  return kept


def result_of(config: Config) -> str:
  """The name of the result by which the arms of a set are compared.

  Raises:
    ConfigError: for objectives without one.
  """
  kept = kept_objectives(config)
  for name, result in _RESULTS.items():
    if name in kept:
      group = kept[name][0]
      targets = config.objectives.options.get(name, {}).get("targets", {})
      field = [*targets.get(group, {}).get("fields", ()), ""][0]
      return result.format(group=group, field=field)
  if "contrastive" in kept:
    first, second = sides(kept["contrastive"][0])
    return f"instance/{first}->{second}/R@1"
  raise ConfigError(
    f"{config.name}: nothing measures {', '.join(kept)}; known: "
    f"{', '.join((*_RESULTS, 'contrastive'))}."
  )


def shared_fields(config: Config, settings: Settings) -> tuple[str, ...]:
  """Fields of all arms of a set: the checkpoint's towers, and no texts."""
  like, fields = settings.like.model, []
  for tower in ("vision", "text"):
    own, other = (getattr(m, tower) for m in (config.model, like))
    fields += [
      f"model.{tower}.{name}={value!r}"
      for name, value in vars(other).items()
      if value != getattr(own, name)
    ]
  (task,) = config.tasks
  fields += [
    f"model.embed_dim={like.embed_dim}",
    f"model.scan={like.scan}",
    # A vocabulary is not trained: no text is read.
    "data.tokenizer.kind=omniworld",
    f"tasks.{task}.objectives={kept_objectives(config)!r}",
    f"tasks.{task}.texts={{}}",
    "evaluation.suite=heads,instance_pairs",
    "evaluation.probe_source=",
    "evaluation.examples=0",
    "evaluation.bootstrap=100",  # the sweep draws its own
    "train.tensorboard=False",
  ]
  if settings.steps:
    fields.append(f"train.steps={settings.steps}")
  return tuple(fields)


def _panel(
  name: str, points: Mapping[str, tuple[str, float]], settings: Settings
) -> tuple[str, PanelConfig]:
  """The panel of a set.

  Args:
    name: of its config.
    points: name -> arm and learning rate.
    settings: what is compared.
  """
  config = config_lib.load(name)
  made = {}
  for point, (arm, rate) in points.items():
    fields = (f"optimizer.learning_rate={rate:g}", *ARMS[arm].set)
    init = settings.init if ARMS[arm].pretrained else ""
    made[point] = PointConfig(fields, init=init)
  return config.name, PanelConfig(
    title=config.name,
    config=name,
    set=shared_fields(config, settings),
    points=made,
    metrics=(result_of(config),),
  )


def choosing(settings: Settings) -> SweepConfig:
  """The runs on validation parts: every arm with every rate, one seed."""
  points = {
    f"{arm}-{rate:g}": (arm, rate)
    for arm in settings.arms
    for rate in settings.rates
  }
  panels = {}
  for name in settings.sets:
    label, panel = _panel(f"{name},{VALIDATION}", points, settings)
    panels[f"{label}.{VALIDATION}"] = panel
  return SweepConfig(panels=panels, seeds=settings.seeds[:1])


def measuring(
  settings: Settings, chosen: Mapping[str, Mapping[str, float]]
) -> SweepConfig:
  """The runs on test samples: every arm with its rate, all seeds.

  Args:
    settings: what is compared.
    chosen: name of a set -> arm -> learning rate.
  """
  panels = {}
  for name in settings.sets:
    rates = chosen[config_lib.load(name).name]
    points = {arm: (arm, rates[arm]) for arm in settings.arms}
    label, panel = _panel(name, points, settings)
    panels[label] = panel
  return SweepConfig(panels=panels, seeds=settings.seeds)


def chosen_rates(
  found: Found, settings: Settings
) -> dict[str, dict[str, float]]:
  """The best learning rate of each arm on the validation parts.

  Of equal results, as of few samples there are many, the one with the lower
  loss of training counts.

  Returns:
    Name of a set -> arm -> rate.
  """
  out: dict[str, dict[str, float]] = {}
  for panel in found.panels:
    points = {point.name: point for point in panel.points}
    measure = find_measure(panel.metrics[0])
    sign = -1.0 if measure is not None and measure.lower_is_better else 1.0

    merit = {
      name: (sign * point.mean, -(point.loss or 0.0))
      for name, point in points.items()
    }
    best = out[panel.name.removesuffix(f".{VALIDATION}")] = {}
    for arm in settings.arms:
      ranked = [(merit[f"{arm}-{rate:g}"], rate) for rate in settings.rates]
      best[arm] = max(ranked)[1]
  return out
