"""A sweep as data, and the runs that it asks for.

A config file describes a sweep beside its base config:

    def get_config() -> ConfigDict: ...   # what all runs start from
    def get_sweep() -> SweepConfig: ...   # panels, points, seeds, metrics

An argument, "scaling:ARG", is that of `get_sweep` alone. A point is the base
config with some fields set, as on the command line, and perhaps a checkpoint to
start from. Points of several panels that agree in both are one run.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, NamedTuple

from mico_jax import config as config_lib
from mico_jax import files
from mico_jax.checkpoint.manifest import differences
from mico_jax.config import Config, ConfigError
from mico_jax.config.fields import (
  Choice,
  Items,
  Label,
  Name,
  Names,
  Path,
  Range,
  Seed,
  Text,
)
from mico_jax.config.loading import call
from mico_jax.printing import known_names
from mico_jax.run.sweep.start import start_of, stored_start

CONFIG_FILE = "sweep_config.json"  # of a run: the config that was asked for
RESULT_FILE = "sweep_result.json"  # of a run: what it gave
_NAME = r"[\w.+-]{1,64}"  # of panels and points: they name folders

Overrides = Annotated[tuple[Annotated[str, Text(1, 4096)], ...], Items(0, 64)]


@dataclass(frozen=True)
class PointConfig:
  """A point of a panel."""

  set: Overrides = ()  # fields and values: "data.sources.train.size=256"
  init: Path = ""  # checkpoint that its runs start from; "": from scratch
  # size of what the panel scales; 0: it scales nothing, or counted by the run
  x: Annotated[float, Range(0.0, 1e30)] = 0.0
  # the published figure of this point, in percent; 0: there is none
  published: Annotated[float, Range(0.0, 100.0)] = 0.0


@dataclass(frozen=True)
class PanelConfig:
  """A panel: points in the order in which they should get better."""

  title: Label = ""
  # Base config of its own, such as "perception/grid_av:PATH"; "": none
  config: Label = ""
  set: Overrides = ()  # for all its points
  points: Annotated[Mapping[Name, PointConfig], Items(1, 64)] = field(
    default_factory=dict
  )
  metrics: Names = ()  # results that are averaged; (): those of the sweep
  # What `x` is: "": nothing, the points are names; "given": `x` of each point;
  # "parameters": as many as the model has. Both are drawn on a log scale and
  # get a power law.
  axis: Annotated[str, Choice("", "given", "parameters")] = ""
  axis_label: Label = ""


@dataclass(frozen=True)
class SweepConfig:
  """What a sweep trains and what it averages."""

  panels: Annotated[Mapping[Name, PanelConfig], Items(1, 64)] = field(
    default_factory=dict
  )
  # results that are averaged: "retrieval/t->va/R@1"
  metrics: Names = ()
  seeds: Annotated[tuple[Seed, ...], Items(1, 100)] = (0, 1, 2)


class Run(NamedTuple):
  """One training run.

  Attributes:
    name: of its folder: panel.point.seedN of the first point that asks for it.
    config: of the run.
    init: checkpoint that it starts from; "": none.
  """

  name: str
  config: Config
  init: str = ""


class Plan(NamedTuple):
  """The runs of a sweep.

  Attributes:
    sweep: its description, with the chosen panels only.
    runs: by name, each once.
    points: (panel, point) -> the run of each seed.
  """

  sweep: SweepConfig
  runs: Mapping[str, Run]
  points: Mapping[tuple[str, str], tuple[str, ...]]


def load_sweep(name: str) -> SweepConfig:
  """The description of a sweep in a config file.

  Args:
    name: packaged name or path of a .py file; "name:arg" passes an argument to
      its `get_sweep`.

  Raises:
    ConfigError: for a file without one.
  """
  path, values = call(name, "get_sweep")
  if not isinstance(values, SweepConfig):
    raise ConfigError(
      f"{path}: get_sweep() must return a mico_jax.run.sweep.plan.SweepConfig; "
      f"got {type(values).__name__}."
    )
  return values


def _check_names(sweep: SweepConfig) -> None:
  """Names make folders, seeds differ, and each panel has metrics and sizes."""
  if len(set(sweep.seeds)) < len(sweep.seeds):
    raise ConfigError(f"seeds={sweep.seeds}: each must be there once.")
  for panel, spec in sweep.panels.items():
    for name in (panel, *spec.points):
      if not re.fullmatch(_NAME, name):
        raise ConfigError(
          f"panels.{panel}: the name {name!r:.80} must be letters, digits, "
          "'_', '.', '+' or '-', as it names a folder."
        )
    if not (spec.metrics or sweep.metrics):
      raise ConfigError(
        f"panels.{panel}: no metrics; set `metrics` of the panel or the sweep, "
        "such as ('retrieval/t->v/R@1',)."
      )
    for name, point in spec.points.items():
      if (spec.axis == "given") != (point.x > 0):
        raise ConfigError(
          f"panels.{panel}.points.{name}.x={point.x:g}: expected a size above "
          "0 where axis='given', and none elsewhere."
        )


def chosen(known: Iterable[str], names: Sequence[str], what: str) -> list[str]:
  """The names that were asked for, all of them if none were.

  Raises:
    ConfigError: for an unknown name, with the one that was probably meant.
  """
  known = list(known)
  for name in names:
    if name not in known:
      raise ConfigError(f"unknown {what} {name!r}; {known_names(name, known)}")
  return [name for name in known if not names or name in names]


def make_plan(
  name: str,
  panels: Sequence[str] = (),
  *,
  overrides: Sequence[str] = (),
) -> Plan:
  """The runs of a sweep.

  Args:
    name: of the config file, see `load_sweep`.
    panels: to train, or single points of them: "data", "data.256"; (): all.
    overrides: fields of every run: "train.steps=200".

  Raises:
    ConfigError: for an unknown panel, point, key or value.
  """
  base = name.partition(":")[0]
  return plan_of(load_sweep(name), panels, base=base, overrides=overrides)


def plan_of(
  sweep: SweepConfig,
  panels: Sequence[str] = (),
  *,
  base: str = "",
  overrides: Sequence[str] = (),
) -> Plan:
  """The runs of a sweep that is described by code.

  Args:
    sweep: its description.
    panels: see `make_plan`.
    base: config of the panels that name none.
    overrides: fields of every run.

  Raises:
    ConfigError: for an unknown panel, point, key or value.
  """
  config_lib.check(sweep)
  _check_names(sweep)
  pairs = {
    f"{p}.{q}": (p, q) for p, s in sweep.panels.items() for q in s.points
  }
  wanted = chosen((*sweep.panels, *pairs), panels, "panel or point")
  runs: dict[str, Run] = {}
  points: dict[tuple[str, str], tuple[str, ...]] = {}
  names: dict[tuple[str, str], str] = {}  # what makes a run -> its name
  # All panels, also those left out: a run is always called the same.
  for label, (panel, point) in pairs.items():
    made = _runs_of(base, sweep, panel, point, overrides)
    called = [
      names.setdefault((config_lib.to_json(run.config), run.init), run.name)
      for run in made
    ]
    if panel in wanted or label in wanted:
      points[panel, point] = tuple(called)
      for own, run in zip(called, made, strict=True):
        runs.setdefault(own, run._replace(name=own))
  # All points of a seed before the next one: the picture is whole early, and
  # later seeds find their programs compiled.
  order = {seed: i for i, seed in enumerate(sweep.seeds)}
  named = sorted(runs.values(), key=lambda run: order[run.config.seed])
  return Plan(_kept(sweep, points), {run.name: run for run in named}, points)


def _kept(
  sweep: SweepConfig, points: Mapping[tuple[str, str], object]
) -> SweepConfig:
  """A sweep with some of its points only."""
  panels = {}
  for name, spec in sweep.panels.items():
    left = {q: p for q, p in spec.points.items() if (name, q) in points}
    if left:
      panels[name] = replace(spec, points=left)
  return replace(sweep, panels=panels)


def _runs_of(
  base: str,
  sweep: SweepConfig,
  panel: str,
  point: str,
  overrides: Sequence[str],
) -> list[Run]:
  """The runs of a point, one for each seed."""
  spec, setting = sweep.panels[panel], sweep.panels[panel].points[point]
  fields = (*spec.set, *setting.set)
  try:
    config = config_lib.load(spec.config or base, overrides)
    config = config_lib.override(config, fields)
  except ConfigError as error:
    raise ConfigError(f"panels.{panel}.points.{point}: {error}") from None
  runs = []
  for seed in sweep.seeds:
    seeded = replace(config, seed=seed)
    runs.append(Run(f"{panel}.{point}.seed{seed}", seeded, setting.init))
  return runs


def hash_text(text: str) -> str:
  """SHA-256 of the text of a config."""
  return hashlib.sha256(text.encode()).hexdigest()


def _with_defaults(stored: dict[str, Any]) -> dict[str, Any]:
  """A stored config with newer fields at their defaults."""
  try:
    return json.loads(config_lib.to_json(config_lib.from_dict(stored)))
  except ConfigError:  # has a removed field, which the comparison names
    return stored


def is_done(run: Run, root: str) -> bool:
  """Whether a run has its result.

  Args:
    run: of the plan.
    root: folder of the sweep.

  Raises:
    ConfigError: if its folder holds a run of another config, or one that
      started from another checkpoint.
  """
  folder = files.place(root) / run.name
  try:
    text = files.read_text(folder / CONFIG_FILE)
    stored = _with_defaults(json.loads(text))
  except FileNotFoundError:
    return False
  except ValueError:
    raise ConfigError(
      f"{folder / CONFIG_FILE} is no config; remove that folder."
    ) from None
  lines = differences(stored, json.loads(config_lib.to_json(run.config)))
  then, now = stored_start(folder), start_of(run.init)
  if then.get("sha256") != now.get("sha256"):  # wherever it lies
    from_ = [x.get("checkpoint", "scratch") for x in (then, now)]
    lines.append(f"started from {from_[0]}, now from {from_[1]}")
  if lines:
    more = f" ({len(lines) - 3} more)" if len(lines) > 3 else ""
    raise ConfigError(
      f"{folder} holds a run of another config: {'; '.join(lines[:3])}{more}. "
      "Use another --out, or remove that folder to train it anew."
    )
  try:
    result = json.loads(files.read_text(folder / RESULT_FILE))
  except FileNotFoundError:
    return False
  except ValueError:
    result = {}
  found = result.get("config_sha256") if isinstance(result, dict) else None
  if found != hash_text(text):
    raise ConfigError(
      f"{folder / RESULT_FILE} is not the result of this run; remove it."
    )
  return True


def check_runs(plan: Plan) -> None:
  """Checks every config of a plan as its run would, without a device.

  Raises:
    ConfigError: naming the point whose config does not fit together.
  """
  from mico_jax.run.setup import resolve  # slow to import

  for (panel, point), names in plan.points.items():
    try:
      resolve(plan.runs[names[0]].config).check_training()
    except ConfigError as error:
      raise ConfigError(f"panels.{panel}.points.{point}: {error}") from None
