"""The table of objectives, and what adding one takes."""

from __future__ import annotations

import dataclasses
import json
from typing import Annotated, ClassVar

import jax.numpy as jnp
import pytest

from mico_jax.config import (
  ConfigError,
  EvaluationConfig,
  ObjectivesConfig,
  TaskConfig,
  TrainConfig,
)
from mico_jax.config.fields import Range, Weight
from mico_jax.docs import tables
from mico_jax.modalities import letters
from mico_jax.objectives import OBJECTIVES, make_objective, select
from mico_jax.objectives.base import (
  Inputs,
  Need,
  Objective,
  Output,
  weighted_mean,
)
from mico_jax.plan import parts
from mico_jax.run.monitor import metric_log
from mico_jax.run.monitor import panels as panels_lib
from mico_jax.run.pretrain import pretrain
from mico_jax.testing.tiny_checkpoint import tiny_config


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_describes_itself(name):
  assert OBJECTIVES[name].name == name
  assert {f.name for f in dataclasses.fields(OBJECTIVES[name].options())} >= {
    "weight"
  }


# --------------------------------------------------------- adding an objective
# What follows would be `mico_jax/objectives/agreement.py`.
@dataclasses.dataclass(frozen=True)
class AgreementConfig:
  """Agreement of a pair, whatever the other pairs are."""

  weight: Weight = 1.0
  # cosine from which a pair is near enough
  margin: Annotated[float, Range(0.0, 1.0)] = 0.9


@dataclasses.dataclass(frozen=True)
class Agreement(Objective):
  """How far the cosine of a text and its context stays below a margin."""

  config: AgreementConfig = dataclasses.field(default_factory=AgreementConfig)
  name: ClassVar[str] = "agreement"
  needs: ClassVar[frozenset[Need]] = frozenset({"features", "text"})
  curves: ClassVar[tuple[str, ...]] = ("cosine",)

  def __call__(self, inputs: Inputs, group: str) -> Output:
    """One value per row."""
    slot = inputs.text[group]
    cosine = jnp.sum(slot.feature * inputs.features[letters(group)], axis=-1)
    weights = inputs.row_weight(group) * inputs.text_weight(slot.ids)
    return Output(
      values=jnp.maximum(self.config.margin - cosine, 0.0),
      weights=weights,
      metrics={"cosine": weighted_mean(cosine, weights)},
      aux={},
    )


@pytest.fixture
def config(monkeypatch):
  # The one line in the table.
  monkeypatch.setitem(OBJECTIVES, "agreement", Agreement)
  base = tiny_config()
  (source,) = list(base.data.sources)[:1]
  return dataclasses.replace(
    base,
    tasks={
      "one": TaskConfig(
        sources={source: 1},
        batch_size=16,
        objectives={"agreement": ("tv", "tva")},
      )
    },
    objectives=ObjectivesConfig(options={"agreement": {"margin": 1.0}}),
    train=TrainConfig(steps=3, log_every=1, tensorboard=False),
    evaluation=EvaluationConfig(),
  )


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_an_objective_is_a_class_and_a_line(config, tmp_path, micro_batches):
  train = dataclasses.replace(config.train, micro_batches=micro_batches)
  config = dataclasses.replace(config, train=train)
  assert pretrain(config, tmp_path).step == 3
  lines = metric_log.read_metrics(tmp_path)
  for line in (x for x in lines if "loss/agreement/tv" in x):
    # With margin=1 the loss is what the cosine lacks: the option arrived.
    assert line["loss/agreement/tv"] == pytest.approx(
      1.0 - line["cosine/agreement/tv"], abs=1e-5
    )
  panels = {p.title: p for p in panels_lib.collect(lines)}
  assert set(panels["agreement loss"].curves) == {"tv", "tva"}
  assert set(panels["agreement cosine"].curves) == {"tv", "tva"}
  stored = json.loads((tmp_path / "config.json").read_text())
  assert stored["objectives"]["options"] == {"agreement": {"margin": 1.0}}


def test_plans_and_pages_know_it(config):
  assert parts.part_of("jit(step)/agreement_tv/mul") == "loss"
  assert "| `agreement` | How far the cosine" in tables.objectives_page()
  assert "`weight`, `margin`" in tables.objectives_page()


@pytest.mark.parametrize(
  ("options", "message"),
  [
    ({"agreement": {"margin": 2.0}}, r"options\.agreement: margin=2\.0"),
    ({"agreement": {"margn": 0.5}}, "Did you mean 'margin'"),
    ({"agrement": {"margin": 0.5}}, "'agrement'; known: .*agreement"),
    ({"matching": {"floor": 0.5}}, r"set objectives\.matching\.<option>"),
  ],
)
def test_mistakes_in_its_options(config, options, message):
  objectives = ObjectivesConfig(options=options)
  with pytest.raises(ConfigError, match=message):
    select(objectives, config.tasks["one"])


def test_without_options_defaults_hold(config):
  assert make_objective(ObjectivesConfig(), "agreement").config.margin == 0.9
