"""Stages: which steps are whose, what they may set, and plain errors."""

from __future__ import annotations

import dataclasses
import json

import pytest

from mico_jax import config as c
from mico_jax.data.order import Order
from mico_jax.testing.tiny_data import config_of, manifest_source

BASE = config_of(steps=100, x=manifest_source("x"), y=manifest_source("y"))


def staged(**stages):
  made = {
    n: c.StageConfig(start, values) for n, (start, values) in stages.items()
  }
  return dataclasses.replace(BASE, stages=made)


def test_a_run_without_stages_is_one():
  assert c.stages_of(BASE) == (c.Stage("", 0, 100, BASE),)


def test_steps_fields_and_text_forms():
  config = staged(
    late=(70, ()),
    middle=(30, ("tasks.one.sources.y=0", "data.inputs.video.frames=1")),
  )
  for again in (
    c.from_config_dict(c.to_config_dict(config)),
    c.from_dict(json.loads(c.to_json(config))),
  ):
    assert again == config
  first, middle, late = c.stages_of(config)
  assert [(s.name, s.start, s.end) for s in (first, middle, late)] == [
    ("", 0, 30),
    ("middle", 30, 70),
    ("late", 70, 100),
  ]
  assert first.config == late.config == BASE
  assert middle.config.tasks["one"].sources == {"x": 1, "y": 0}
  assert middle.config.data.inputs["video"].frames == 1
  names = [c.stage_at(config, step).name for step in (29, 30, 69, 70, 500)]
  assert names == ["", "middle", "middle", "late", "late"]


def test_an_unchanged_mixture_goes_on_in_its_order():
  config, sizes = staged(b=(30, ("train.patch_dropout=0.5",))), {"x": 9, "y": 8}
  whole = Order(BASE, sizes)
  for step in (29, 30, 31):
    part = Order(c.stage_at(config, step).config, sizes)
    assert part.rows(step) == whole.rows(step)


@pytest.mark.parametrize(
  ("stages", "message"),
  [
    ({"a": (100, ())}, r"stages\.a\.start=100: must be before train\.steps"),
    ({"a": (5, ()), "b": (5, ())}, r"a\.start=5.*before the next stage \(5\)"),
    ({"a": (5, ("model.vision.image_size=64",))}, r"may set tasks.*--init"),
    ({"a": (5, ("tasks.one.objectives={}",))}, "cannot change"),
    (
      {"a": (5, ("tasks.two.steps=1",))},
      r"stages\.a\.set: unknown.*'tasks.two",
    ),
    ({"a": (5, ("train.patch_dropout=2",))}, r"stages\.a\.set: .*patch_drop"),
    ({"a": (5, ("train.patch_dropout",))}, r"a\.set: .*write FIELD=VALUE"),
  ],
)
def test_wrong_stages(stages, message):
  with pytest.raises(c.ConfigError, match=message):
    c.stages_of(staged(**stages))
