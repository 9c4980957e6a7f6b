"""Sentences: true, distinct, short, and false where they should be."""

import numpy as np
import pytest

from mico_jax import world
from mico_jax.world import language
from mico_jax.world import scene as facts
from mico_jax.world.ceiling import facts_key

KINDS = tuple(world.STATED_V2)
V2 = world.World(version="v2")


@pytest.fixture(scope="module")
def scenes():
  return [world.World(seed=1).scene(i) for i in range(800)]


@pytest.mark.parametrize("phrasing", range(language.NUM_PHRASINGS))
@pytest.mark.parametrize("kind", KINDS)
def test_caption_and_stated_facts_determine_each_other(scenes, kind, phrasing):
  by_text, by_facts = {}, {}
  for scene in scenes:
    text = world.caption(scene, kind, phrasing)
    key = facts_key(scene, world.STATED_V2[kind])
    assert by_text.setdefault(text, key) == key
    assert by_facts.setdefault(key, text) == text


def test_phrasings_differ(scenes):
  for scene in scenes[:50]:
    for texts in V2.language(scene, 0).captions.values():
      assert len(set(texts)) == language.NUM_PHRASINGS


def test_captions_are_short(scenes):
  limits = {1: 16, 2: 28, 3: 40}
  words = {1: [], 2: [], 3: []}
  for scene in scenes:
    count = len(scene.solids)
    words[count].append(len(world.caption(scene, "omni").split()))
  for count, limit in limits.items():
    assert max(words[count]) <= limit
  assert np.mean(words[2]) < 25


def test_vocabulary_is_small_and_complete(scenes):
  known = set(world.vocabulary())
  assert 80 <= len(known) <= 150
  for i, scene in enumerate(scenes[:300]):
    words = V2.language(scene, i)
    texts = [t for ts in words.captions.values() for t in ts]
    texts += [t for q in words.questions for t in q[:2]]
    texts += [t for ts in words.negatives.values() for t in ts]
    for text in texts:
      assert text == text.lower().strip()
      assert set(text.replace("?", " ?").split()) <= known


def test_subtitle_name_is_nowhere_in_the_omni_caption(scenes):
  for scene in scenes[:100]:
    captions = V2.language(scene, 0).captions
    for kind, texts in captions.items():
      named = kind in ("subtitle", "story")
      assert all((scene.name in t.split()) == named for t in texts)


@pytest.mark.parametrize("kind", KINDS)
def test_negatives_are_false_and_change_one_fact(scenes, kind):
  for i, scene in enumerate(scenes[:150]):
    truth = world.caption(scene, kind)
    wrong = world.negatives(scene, kind, i)
    assert wrong == world.negatives(scene, kind, i)
    assert 1 <= len(wrong) <= language.MAX_NEGATIVES
    assert len(set(wrong)) == len(wrong)
    one_fact = {
      world.caption(scene.with_fact(fact, value), kind)
      for fact in facts.changes(
        scene, [f for f in world.STATED_V2[kind] if f != "count"]
      )
      for value in scene.alternatives(fact)
    }
    assert truth not in one_fact
    assert set(wrong) <= one_fact
    assert truth not in wrong


@pytest.mark.parametrize("names", [("motion", "material"), ("shape",)])
def test_negatives_change_the_named_facts_only(scenes, names):
  for i, scene in enumerate(scenes[:100]):
    one_fact = {
      world.caption(scene.with_fact(fact, value), "omni")
      for fact in facts.changes(scene, names)
      for value in scene.alternatives(fact)
    }
    wrong = world.negatives(scene, "omni", i, names=names)
    assert set(wrong) <= one_fact
    # A kind that states none of them changes what it states.
    assert world.negatives(scene, "subtitle", i, names=names)


def test_questions_have_one_answer_of_one_word(scenes):
  for scene in scenes:
    asked = language.questions(scene)
    assert len({q for q, _, _ in asked}) == len(asked)
    for question, answer, needs in asked:
      assert question.endswith("?")
      assert answer
      assert " " not in answer
      assert needs
      assert needs <= set("vad")


def test_what_a_question_needs_settles_its_answer(scenes):
  """Scenes that look equal under the needed letters give equal answers."""
  names = [f for f in world.OBSERVABLE if f != "name"]
  answers = {}
  for scene in scenes:
    for question, answer, needs in language.questions(scene):
      seen = tuple(f for f in names if world.observes("".join(needs), f))
      key = (question, seen, facts_key(scene, seen))
      assert answers.setdefault(key, answer) == answer


def test_questions_of_one_scene():
  solids = (
    facts.Solid("cube", "red", "large", "metal", "left", "up"),
    facts.Solid("cone", "blue", "small", "wood", "right", "still"),
  )
  look = (0.5,) * len(world.World().scene(0).look)
  scene = facts.Scene(solids, "twice", "hall", "anna", look)
  asked = {q: (a, "".join(sorted(n))) for q, a, n in language.questions(scene)}
  assert asked["how many solids are there?"] == ("two", "v")
  assert asked["where does it happen?"] == ("hall", "d")
  assert asked["how often is each solid struck?"] == ("twice", "a")
  assert asked["what colour is the cube?"] == ("red", "v")
  assert asked["what is the cone made of?"] == ("wood", "a")
  assert asked["which way does the cone go?"] == ("nowhere", "v")
  assert asked["what is the red solid made of?"] == ("metal", "av")
  assert asked["what colour is the wood solid?"] == ("blue", "av")
  assert world.caption(scene, "omni") == (
    "at left a large red metal cube rises and at right a small blue wood cone "
    "rests struck twice in a hall"
  )
