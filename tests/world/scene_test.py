"""Scenes: pure, balanced, and neighbours that differ in one fact."""

import dataclasses
import json
from collections import Counter

import numpy as np
import pytest

from mico_jax import world
from mico_jax.world import scene as facts


def differences(a, b):
  assert a.look == b.look
  fa, fb = a.facts(), b.facts()
  assert fa.keys() == fb.keys()
  return [f for f in fa if fa[f] != fb[f]]


def test_scene_is_a_pure_function_of_version_seed_split_index():
  a, b = world.World(seed=3), world.World(seed=3)
  _ = a.scene(7)
  assert a.scene(11) == b.scene(11)
  others = [
    world.World(seed=4).scene(11),
    world.World(seed=3, split="test").scene(11),
    world.World(seed=3, split="hard").scene(11),
    a.scene(12),
  ]
  assert len({a.scene(11), *others}) == 5


def test_splits_share_no_scene():
  sets = [
    {world.World(split=s).scene(i) for i in range(500)} for s in facts.SPLITS
  ]
  assert not (sets[0] & sets[1] | sets[0] & sets[2] | sets[1] & sets[2])


@pytest.mark.parametrize("kwargs", [{"version": "v0"}, {"split": "dev"}])
def test_unknown_names_list_the_known(kwargs):
  with pytest.raises(ValueError, match=r"v1|train, test, hard"):
    world.World(**kwargs)


def test_negative_index_is_an_error():
  with pytest.raises(ValueError, match="negative"):
    world.World().scene(-1)


def test_scene_is_plain_data():
  scene = world.World().scene(2)
  assert json.loads(json.dumps(scene.to_dict()))["setting"] == scene.setting
  with pytest.raises(dataclasses.FrozenInstanceError):
    scene.setting = "hall"  # pyrefly: ignore


def test_facts_are_uniform_and_counts_as_stated():
  scenes = [world.World(seed=9).scene(i) for i in range(2500)]
  counts = Counter(len(s.solids) for s in scenes)
  for number, share in ((1, 0.4), (2, 0.4), (3, 0.2)):
    assert abs(counts[number] / 2500 - share) < 0.03
  for name, values in facts.SOLID_FACTS.items():
    seen = Counter(getattr(s, name) for x in scenes for s in x.solids)
    assert set(seen) == set(values)
    if name != "place":
      shares = np.array(list(seen.values())) / seen.total()
      np.testing.assert_allclose(shares, 1 / len(values), atol=0.03)
  for name, values in facts.SCENE_FACTS.items():
    assert {getattr(s, name) for s in scenes} == set(values)


def test_solids_are_listed_from_left_to_right():
  for i in range(200):
    places = [
      facts.PLACES.index(s.place) for s in world.World().scene(i).solids
    ]
    assert places == sorted(set(places))


@pytest.mark.parametrize("letters", ["va", "vad"])
def test_hard_gallery_differs_in_exactly_one_fact_each(letters):
  hard = world.World(split="hard")
  names = Counter()
  for i in range(100):
    first, *rest = hard.hard_gallery(i, letters=letters)
    assert first == hard.scene(i)
    assert len(rest) == 7
    changed = []
    for other in rest:
      (fact,) = differences(first, other)
      changed.append(fact)
    assert len(set(changed)) == 7
    names.update(f[0] for f in changed)
    scenes = [first, *rest]
    assert world.ceilings(scenes, letters) == 1.0
  for needed in ("colour", "motion", "material", "strikes"):
    assert names[needed] > 50
  assert ("setting" in names) == ("d" in letters)


def test_hard_gallery_without_a_modality_ties():
  hard = world.World(split="hard")
  assert world.ceilings(hard.hard_gallery(0), "v") < 1.0
  assert world.ceilings(hard.hard_gallery(0), "a") < 1.0


def test_too_many_neighbours_is_an_error():
  scene = world.World().scene(0)
  with pytest.raises(ValueError, match="only 1 facts"):
    facts.neighbours(scene, 2, ["setting"], [0.5] * 30)


def test_every_fact_has_an_observer_and_every_kind_states_known_facts():
  known = {"count", *facts.SOLID_FACTS, *facts.SCENE_FACTS}
  assert set(world.OBSERVABLE) == known
  for stated in world.STATED.values():
    assert set(stated) <= known
  with pytest.raises(ValueError, match="unknown"):
    world.observes("v", "weight")


def test_gallery_captions_are_pairwise_different():
  w = world.World(split="test")
  indices = w.gallery(256)
  texts = {world.caption(w.scene(i), "omni") for i in indices}
  assert len(indices) == len(texts) == 256
  assert len(w.gallery(20, kind="subtitle")) == 20
  with pytest.raises(ValueError, match="only 20 different"):
    w.gallery(21, kind="subtitle")
  with pytest.raises(ValueError, match="known"):
    w.gallery(2, kind="smell")


def test_ceilings_are_probabilities_and_grow_with_modalities():
  scenes = [world.World(split="test").scene(i) for i in range(1000)]
  for kind in world.STATED:
    chain = [
      world.ceilings(scenes, letters, kind)
      for letters in ("", "i", "iv", "iva", "ivad", "ivadn", "ivadns")
    ]
    assert chain == sorted(chain)
    assert chain[0] == 1 / 1000
    assert chain[-1] <= 1
  value = {m: world.ceilings(scenes, m) for m in ("v", "a", "va", "vad")}
  assert value["v"] < value["va"] < value["vad"]
  assert value["a"] < value["va"]
  with pytest.raises(ValueError, match="at least one"):
    world.ceilings([], "v")


def test_ceilings_equal_the_definition():
  scenes = [world.World().scene(i) for i in range(60)]
  shown = world.shown_facts("a", "omni")
  assert shown == ("count", "shape", "size", "material", "strikes")

  def heard(scene):
    return (
      [(s.shape, s.size, s.material) for s in scene.solids],
      scene.strikes,
    )

  expected = np.mean(
    [1 / sum(heard(q) == heard(s) for s in scenes) for q in scenes]
  )
  np.testing.assert_allclose(world.ceilings(scenes, "a"), expected)


def test_depth_settles_what_picture_and_sound_leave_open():
  scene = world.World().scene(0)
  family = [
    scene.with_fact(("setting", None), value) for value in facts.SETTINGS
  ]
  assert world.ceilings(family, "va") == 0.25
  assert world.ceilings(family, "vad") == 1.0
