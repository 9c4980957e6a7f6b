"""Parts of a source that are nested and have the shares of its categories."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections import Counter

import pytest

from mico_jax.config import ConfigError, SourceConfig
from mico_jax.data.sources import open_source, pin_sources
from mico_jax.data.subset import nested_order
from mico_jax.testing.tiny_data import config_of


@pytest.fixture
def opened(tmp_path):
  """Opens 60 samples sorted by class: 30 dogs, 20 cats, 10 owls."""
  classes = ["dog"] * 30 + ["cat"] * 20 + ["owl"] * 10
  rows = [
    {"id": f"s{i}", "caption": "a", "class": name, "image": "x.png"}
    for i, name in enumerate(classes)
  ]
  path = tmp_path / "m.jsonl"
  path.write_text("\n".join(map(json.dumps, rows)))

  def open_it(**fields):
    spec = SourceConfig(kind="manifest", path=str(path), split="", **fields)
    return open_source(config_of(a=spec), "a")

  return open_it


def _ids(source) -> list[str]:
  return [source.record(i).id for i in range(len(source))]


def test_parts_are_nested_and_keep_the_shares(opened):
  found = []
  for take in (6, 0.25, 31, 0.9):
    source = opened(take=take, take_by="class")
    ids = _ids(source)
    assert len(ids) == len(set(ids)) == (round(take * 60) if take < 1 else take)
    assert ids == sorted(ids, key=lambda x: int(x[1:]))
    counts = Counter(source.record(i).fields["class"] for i in range(len(ids)))
    for name, share in (("dog", 1 / 2), ("cat", 1 / 3), ("owl", 1 / 6)):
      assert abs(counts[name] - share * len(ids)) <= 1
    found.append((source.sha256, set(ids)))
  for (_, smaller), (_, larger) in itertools.pairwise(found):
    assert smaller < larger
  assert len({sha256 for sha256, _ in found}) == 4


def test_seeds_and_missing_categories(opened, capsys):
  plain = opened(take=0.5)
  assert _ids(opened(take=0.5)) == _ids(plain) != _ids(opened())[:30]
  assert _ids(opened(take=0.5, take_seed=1)) != _ids(plain)
  assert "30 of 60 samples are taken" in capsys.readouterr().err
  for seed in range(9):  # the first two are never of one category
    assert sum(i % 2 for i in nested_order(["b", "a"] * 3, seed)[:2]) == 1
  for fields, message in (
    ({"take": 61}, "a number up to 60"),
    ({"take": 0.001}, "0 of 60 samples"),
    ({"take": 3, "take_by": "klass"}, "no sample has this field"),
  ):
    with pytest.raises(ConfigError, match=message):
      opened(**fields)


def test_a_run_is_pinned_to_its_part(opened, tmp_path):
  path = str(tmp_path / "m.jsonl")
  spec = SourceConfig(kind="manifest", path=path, split="", take=6)
  config = pin_sources(config_of(a=spec))
  assert config.data.sources["a"].count == 6
  assert len(open_source(config, "a")) == 6
  other = dataclasses.replace(config.data.sources["a"], take_seed=5)
  data = dataclasses.replace(config.data, sources={"a": other})
  with pytest.raises(ConfigError, match="changed: index SHA-256"):
    open_source(dataclasses.replace(config, data=data), "a")


def test_what_is_skipped_and_what_is_taken_make_the_whole(opened):
  for share in (0.8, 45):
    first = opened(take=share, take_by="class")
    rest = opened(skip=share, take_by="class")
    assert not set(_ids(first)) & set(_ids(rest))
    assert set(_ids(first)) | set(_ids(rest)) == set(_ids(opened()))
  counts = Counter(rest.record(i).fields["class"] for i in range(len(rest)))
  for name, kept in (("dog", 7), ("cat", 5), ("owl", 2)):
    assert kept <= counts[name] <= kept + 1
  part = opened(skip=45, take=5, take_by="class")
  assert len(_ids(part)) == 5
  assert set(_ids(part)) < set(_ids(rest))
  for fields, message in (
    ({"skip": 60}, "leaves out 60 of 60 samples"),
    ({"skip": 0.5, "take": 31}, "a number up to 30"),
  ):
    with pytest.raises(ConfigError, match=message):
      opened(**fields)
