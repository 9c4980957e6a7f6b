"""Shares of sources by temperature, and samples chosen by what they have."""

from __future__ import annotations

import dataclasses

import pytest

from mico_jax.cli.main import main
from mico_jax.config import Config, ConfigError, TaskConfig
from mico_jax.data.mixture import PARTS, source_weights
from mico_jax.data.order import Order
from mico_jax.data.sources import open_source
from mico_jax.data.usable import group_counts, tell_groups
from mico_jax.testing.tiny_data import (
  config_of,
  manifest_source,
  write_manifest,
)

SIZES = {"a": 1_000_000, "b": 10_000, "c": 100}


@pytest.mark.parametrize(
  ("temperature", "weights", "want"),
  [
    (0.0, {"a": 3, "b": 1}, {"a": 3, "b": 1}),
    (1.0, {"a": 1, "b": 1, "c": 1}, {"a": 9900, "b": 99, "c": 1}),
    (2.0, {"a": 1, "b": 1, "c": 1}, {"a": 9009, "b": 901, "c": 90}),
    (1e6, {"a": 1, "b": 1, "c": 1}, {"a": 3334, "b": 3333, "c": 3333}),
    (2.0, {"a": 1, "b": 10, "c": 0}, {"a": 5000, "b": 5000, "c": 0}),
  ],
)
def test_weights_of_a_temperature(temperature, weights, want):
  task = TaskConfig(sources=weights, temperature=temperature)
  assert source_weights(task, SIZES) == want


def test_a_power_that_cannot_be_computed():
  task = TaskConfig(sources={"a": 1, "b": 1}, temperature=1e-300)
  with pytest.raises(ConfigError, match=r"temperature=1e-300: .*too large a"):
    source_weights(task, SIZES)


def test_small_sources_keep_a_share_and_the_sum_is_kept():
  sizes = {f"s{i}": 1 for i in range(700)} | {"big": 10**12}
  task = TaskConfig(sources=dict.fromkeys(sizes, 1), temperature=1.0)
  weights = source_weights(task, sizes)
  assert sum(weights.values()) == PARTS
  assert min(weights.values()) == 1


def test_the_order_has_these_shares_and_pins_them():
  task = TaskConfig(
    sources={"a": 1, "b": 1}, temperature=2.0, batch_size=PARTS // 4
  )
  config, sizes = Config(tasks={"t": task}), {"a": 900, "b": 100}
  order = Order(config, sizes)
  rows = [row.source for step in range(4) for row in order.rows(step)[1]]
  assert {n: rows.count(n) for n in "ab"} == {"a": 7500, "b": 2500}
  pinned = dataclasses.replace(task, mixture=order.mixture("t"))
  Order(dataclasses.replace(config, tasks={"t": pinned}), sizes)
  with pytest.raises(ConfigError, match=r"'a': 7500.*now give.*'b': 1667"):
    Order(
      dataclasses.replace(config, tasks={"t": pinned}), {"a": 2500, "b": 100}
    )


# ------------------------------------------------------------------- presence
@pytest.fixture(scope="module")
def patchy(tmp_path_factory):
  """Eight samples: two without sound, one of them and another captionless."""
  folder = tmp_path_factory.mktemp("patchy")
  sound = [f"sound.tar:s{i}.wav" for i in range(8)]
  sound[2] = sound[5] = None
  captions = [f"a small cube {i}" for i in range(8)]
  captions[5] = captions[7] = None
  return write_manifest(folder, audio=sound, caption=captions)


@pytest.mark.parametrize(
  ("names", "want"),
  [
    (("audio",), [0, 1, 3, 4, 6, 7]),
    (("caption",), [0, 1, 2, 3, 4, 6]),
    (("audio", "caption:omni"), [0, 1, 3, 4, 6]),
  ],
)
def test_samples_that_have_what_is_required(patchy, capsys, names, want):
  source = open_source(config_of(a=manifest_source(patchy, require=names)), "a")
  ids = [source.record(i).id for i in range(len(source))]
  assert ids == [f"s{i}" for i in want]
  said = capsys.readouterr().err
  assert f"{len(want)} of 8 samples have {' and '.join(names)}" in said
  assert f"{8 - len(want)} are left out" in said


@pytest.mark.parametrize(
  ("names", "message"),
  [
    (("sound",), "require names 'sound'; known: .*audio.*caption:KIND"),
    (("depth",), "no sample has depth"),
  ],
)
def test_a_wrong_requirement_is_an_error(patchy, names, message):
  with pytest.raises(ConfigError, match=message):
    open_source(config_of(a=manifest_source(patchy, require=names)), "a")


def test_groups_that_samples_cannot_serve_are_told(patchy, capsys):
  config = config_of(a=manifest_source(patchy))
  source = open_source(config, "a")
  records = [source.record(i) for i in range(8)]
  counts = {r["group"]: r["usable"] for r in group_counts(config, "a", records)}
  assert counts == {"ti": 6, "tia": 5}
  tell_groups(config, {"a": source})
  assert "ti 6 (task one), tia 5 (task one)" in capsys.readouterr().err
  main(["data", "inspect", "--from", "manifest", "--path", str(patchy)])
  assert "coverage\naudio + image + omni caption" in capsys.readouterr().out


def test_captions_that_no_sample_has_are_told(patchy, capsys):
  config = config_of(a=manifest_source(patchy, captions={"audio": "sound"}))
  texts = {"ti": {"visoin": 0.5, "omni": 0.5, "joined": 1.0}}
  task = dataclasses.replace(config.tasks["one"], texts=texts)
  config = dataclasses.replace(config, tasks={"one": task})
  tell_groups(config, {"a": open_source(config, "a")})
  said = capsys.readouterr().err
  assert "tasks.one.texts.ti: no caption of kind 'visoin'" in said
  assert "data.sources.a.captions.audio: no field 'sound'" in said
  assert "omni" not in said.partition("these groups")[0]
