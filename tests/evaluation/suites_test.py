from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from mico_jax import config as c
from mico_jax import evaluation, models
from mico_jax.data.records import Record
from mico_jax.data.sources import open_source
from mico_jax.data.sources.omniworld import OmniWorldSource
from mico_jax.data.tokenizer import make_tokenizer
from mico_jax.evaluation import captions, queries, suites
from mico_jax.evaluation.evaluator import Evaluator, Needs
from mico_jax.evaluation.evaluators import EVALUATORS
from mico_jax.evaluation.evaluators.text_retrieval import world_ceiling
from mico_jax.evaluation.features import Embedder, Gallery
from mico_jax.kernels import target
from mico_jax.modalities import DecodeError
from mico_jax.models import decoding
from mico_jax.testing.tiny_model import tiny_model
from mico_jax.world import World, ceilings

OBJECTIVES = {
  "contrastive": ("ti", "ta", "tva"),
  "matching": ("tva",),
  "captioning": ("tva",),
  "question_answering": ("tva",),
}


@pytest.fixture(scope="module")
def config() -> c.Config:
  model = tiny_model(
    vision={"image_size": 32, "patch_size": 16, "depth": 1},
    text={"vocab_size": 512, "depth": 1, "max_positions": 80},
    heads=("t", "v", "a", "va"),
    frame_table={"video": 2, "audio": 1},
  )
  return c.Config(
    model=model,
    data=c.DataConfig(
      sources={
        "test": c.SourceConfig(split="test"),
        "train": c.SourceConfig(split="train", size=12),
      },
      inputs={
        "video": c.InputConfig(frames=2),
        "audio": c.InputConfig(frames=1),
      },
      tokenizer=c.TokenizerConfig(
        kind="omniworld",
        max_length={"default": 24, "omni": 48, "question": 16, "answer": 6},
      ),
    ),
    tasks={"all": c.TaskConfig(objectives=OBJECTIVES)},
    evaluation=c.EvaluationConfig(
      source="test",
      suite="omniworld",
      size=11,  # not a multiple of the batch
      batch_size=4,
      rerank=3,
      captions=5,
      questions=5,
      hard=2,
      bootstrap=50,
    ),
  )


@pytest.fixture(scope="module")
def parts(config):
  model = models.build(config.model)
  params = jax.jit(model.init)(jax.random.key(0))
  return model, params, make_tokenizer(config.data.tokenizer)


def _run(config, parts, **options):
  model, params, tokenizer = parts
  return evaluation.evaluate(
    model, params, config, tokenizer, command="test", **options
  )


def test_captions_and_answers_alone(config, parts):
  """A run that trains no contrastive group measures what it writes."""
  names = ("captioning", "question_answering")
  task = c.TaskConfig(objectives={name: OBJECTIVES[name] for name in names})
  config = dataclasses.replace(
    config,
    tasks={"all": task},
    evaluation=dataclasses.replace(
      config.evaluation, suite="retrieval", captions=2, questions=2
    ),
  )
  found = [r.name for r in _run(config, parts)]
  assert found == WRITTEN
  assert _run(config, parts, cheap=True) == []


def recalls(name: str, ranks: tuple[int, ...] = (1, 5, 10)) -> list[str]:
  return [f"retrieval/{name}/R@{k}" for k in ranks]


def retrieval_names(groups: tuple[str, ...], rerank: int = 0) -> list[str]:
  """Names of text retrieval in a gallery of more than ten items."""
  suffixes = ("", f" (re-ranked {rerank})") if rerank else ("",)
  return [
    name
    for g in groups
    for suffix in suffixes
    for way in (f"t->{g}{suffix}", f"{g}->t{suffix}")
    for name in recalls(way)
  ]


MATCHING = ["matching/va/accuracy", "matching/va/mined accuracy"]
FACTS = "colour", "material", "motion", "place", "shape", "size", "strikes"
HARD = [
  f"hard/t->va{suffix}/{part}"
  for suffix in ("", " (re-ranked 8)")
  for part in ("R@1", *(f"{fact}/pairs won" for fact in FACTS))
]
WRITTEN = [
  "caption/va/CIDEr",
  "caption/va/BLEU-4",
  "caption/va/ROUGE-L",
  "caption/va/token accuracy",
  "question/va/accuracy",
]


def test_evaluators_in_the_order_they_are_named_share_one_gallery(
  config, parts, monkeypatch
):
  read = []
  embed = Embedder.embed_gallery

  def count(self, *args, **options):
    read.append(args)
    return embed(self, *args, **options)

  monkeypatch.setattr(Embedder, "embed_gallery", count)
  settings = dataclasses.replace(
    config.evaluation,
    # A suite stands for its list; each evaluator measures once.
    suite="zero_shot, retrieval,matching",
    groups=("va",),
    captions=0,
    rerank=0,
  )
  results = _run(dataclasses.replace(config, evaluation=settings), parts)
  assert [r.name for r in results] == [
    "zero-shot/va/accuracy",
    *retrieval_names(("va",)),
    *MATCHING,
    WRITTEN[-1],
  ]
  assert read == [("test", ("va",))]


def test_hard_galleries_alone(config, parts, monkeypatch):
  """By similarity, and by what the matching head says of all eight scenes."""
  asked = []

  def match(self, gallery, letters, texts, kind, pairs):
    asked.append((letters, len(texts), pairs.tolist()))
    right = pairs[:, 1] == 8 * pairs[:, 0]
    second = (pairs[:, 0] == 1) & (pairs[:, 1] == 15)
    return np.where(second, 2.0, right).astype(np.float32)

  monkeypatch.setattr(Embedder, "match", match)
  settings = dataclasses.replace(
    config.evaluation, suite="hard_galleries", groups=("va",)
  )
  results = _run(dataclasses.replace(config, evaluation=settings), parts)
  assert [r.name for r in results] == HARD
  by_name = {r.name: r for r in results}
  reranked = "hard/t->va (re-ranked 8)"
  assert by_name[f"{reranked}/R@1"].values.tolist() == [1.0, 0.0]
  # One pair is lost: that of the fact in which the last scene differs.
  world = World(split="hard")
  first, *_, last = world.hard_gallery(1)
  (lost,) = {k for k, v in first.facts().items() if last.facts()[k] != v}
  for fact in FACTS:
    values = by_name[f"{reranked}/{fact}/pairs won"].values.tolist()
    assert values.count(0.0) == (fact == lost[0])
    assert values.count(1.0) == len(values) - values.count(0.0)
  pairs = [[i, 8 * i + k] for i in range(2) for k in range(8)]
  assert asked == [("va", 2, pairs)]


def test_suite_is_a_text_or_a_list():
  checked = lambda suite: c.from_dict({"suite": suite}, c.EvaluationConfig)
  assert checked(("matching", "captions")).suite == "matching,captions"
  assert checked(["omniworld"]).suite == "omniworld"
  for wrong in ("", "a,,b", "a b", 3, ["a", 3.5, ""]):
    with pytest.raises(c.ConfigError, match="joined by commas"):
      checked(wrong)
  assert not set(suites.SUITES) & set(EVALUATORS)
  named = {e for suite in suites.SUITES.values() for e in suite.evaluators}
  assert named == set(EVALUATORS)


def test_omniworld_suite(config, parts):
  results = _run(config, parts)
  # What is compared over time keeps its name and its place.
  assert [r.name for r in results] == [
    *retrieval_names(("i", "a", "va"), rerank=3),
    *MATCHING,
    *HARD,
    *WRITTEN,
  ]
  by_name = {r.name: r for r in results}
  assert by_name["retrieval/va->t/R@1"].n == 11
  assert by_name["retrieval/t->va/R@1"].gallery == 11
  assert 0 < (by_name["retrieval/t->va/R@1"].ceiling or 0) <= 1
  assert by_name["matching/va/accuracy"].n == 11
  assert by_name["hard/t->va/R@1"].gallery == 8
  assert by_name["hard/t->va/R@1"].n == 2
  for name in ("CIDEr", "BLEU-4", "ROUGE-L", "token accuracy"):
    assert by_name[f"caption/va/{name}"].n == 5
  assert by_name["question/va/accuracy"].total == 5
  assert all(0 <= r.value <= 10 for r in results)
  assert all(r.preprocessing_sha256 and r.command == "test" for r in results)
  # The same checkpoint gives the same bytes.
  assert evaluation.to_json(_run(config, parts)) == evaluation.to_json(results)
  json.loads(evaluation.to_json(results))


def test_cheap_form(config, parts):
  names = [r.name for r in _run(config, parts, cheap=True)]
  assert names == retrieval_names(("i", "a", "va")) + MATCHING


def test_embeddings_do_not_depend_on_the_batch(config, parts):
  model, params, tokenizer = parts
  found = []
  for size in (4, 11):
    embedder = Embedder(model, params, config, tokenizer, batch_size=size)
    gallery = embedder.embed_gallery(
      "test", ("va",), size=11, keep_batches=True
    )
    texts = embedder.embed_texts(["a red cube", "a", ""], "omni")
    pairs = np.array([[0, 10], [2, 0], [1, 5], [0, 4]])
    match = embedder.match(
      gallery, "va", ["a red cube", "a", ""], "omni", pairs
    )
    found.append((gallery.embeddings["va"], texts, match))
  for a, b in zip(*found, strict=True):
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)
  assert found[0][0].shape == (11, 8)
  np.testing.assert_allclose(np.linalg.norm(found[0][0], axis=-1), 1, atol=1e-5)


def test_repeated_evaluation_compiles_once(config, parts):
  model, params, tokenizer = parts
  first = Embedder(model, params, config, tokenizer)
  second = Embedder(
    model, jax.tree.map(lambda x: 2 * x, params), config, tokenizer
  )
  assert first._steps is second._steps
  a, b = (x.embed_texts(["a red cube"]) for x in (first, second))
  assert not np.allclose(a, b)


def test_ceiling_counts_what_can_be_told_apart(config):
  source = open_source(config, "test")
  assert isinstance(source, OmniWorldSource)
  records: list[Record | None] = [
    source.record(i) for i in source.world.gallery(200, kind="omni")
  ]
  gallery = Gallery(records, {}, {}, {}, [])
  texts = [queries.texts_of(r, "omni", 1) for r in records if r is not None]
  asked = queries.make_queries(texts, np.arange(200), "omni")
  scenes = [r.fields["scene"] for r in records if r is not None]
  found = [world_ceiling(gallery, asked, x) or 0.0 for x in ("a", "v", "va")]
  assert found == pytest.approx([ceilings(scenes, x) for x in ("a", "v", "va")])
  assert found[0] < 1
  assert found[2] >= max(found[:2])
  # All items of a shared text are right answers.
  same = queries.make_queries([["x"]] * 200, np.arange(200), "omni")
  assert world_ceiling(gallery, same, "a") == 1.0


def test_classification_suite(config, parts, tmp_path):
  settings = dataclasses.replace(
    config.evaluation, suite="classification", groups=("i",), size=9
  )
  derived = dataclasses.replace(config, evaluation=settings)
  (result,) = _run(derived, parts)
  assert result.name == "zero-shot/i/accuracy"
  assert result.n == 9


def test_manifest_with_classes_probe_and_pairs(config, parts, tmp_path):
  rows = []
  for i in range(10):
    shade = (i % 2) * 200 + i  # a picture that shows the same is no answer
    image = np.full((32, 32, 3), shade, np.uint8)
    Image.fromarray(image).save(tmp_path / f"{i}.png")
    rows.append(
      {
        "id": str(i),
        "image": f"{i}.png" if i != 3 else "missing.png",
        "caption": ["a dark wall", "a white wall"][i % 2],
        "label": i % 2,
      }
    )
  manifest = tmp_path / "manifest.jsonl"
  manifest.write_text("\n".join(json.dumps(row) for row in rows))
  classes = tmp_path / "classes.txt"
  classes.write_text("dark\nwhite\n")
  source = c.SourceConfig(kind="manifest", path=str(manifest), split="")
  data = dataclasses.replace(config.data, sources={"m": source})
  settings = c.EvaluationConfig(
    source="m",
    suite="classification",
    groups=("i",),
    size=0,
    batch_size=4,
    bootstrap=20,
    label="label",
    classes=str(classes),
    probe_source="m",
  )
  config = dataclasses.replace(config, data=data, tasks={}, evaluation=settings)
  zero, _, probe, _ = _run(config, parts)
  assert (zero.n, zero.total, zero.baseline) == (9, 10, 0.5)
  assert probe.name == "linear probe/i/accuracy"
  assert probe.value == 1.0
  settings = dataclasses.replace(
    settings, suite="retrieval", item_pairs=("i:i", "i:t")
  )
  results = _run(dataclasses.replace(config, evaluation=settings), parts)
  by_name = {r.name: r for r in results}
  assert by_name["retrieval/t->i/R@1"].total == 3  # two texts, one lost item
  assert by_name["retrieval/i->t/R@1"].n == 9
  assert by_name["class/i->i/R@1"].value == 1.0
  text = by_name["class/i->t/R@1"]
  assert (text.n, text.gallery, text.baseline) == (9, 2, 0.5)
  # One text per class: the same as item to text.
  assert text.value == by_name["retrieval/i->t/R@1"].value


def test_five_captions_of_a_lost_item(config, parts, tmp_path):
  rows = []
  for i in range(4):
    Image.fromarray(np.full((32, 32, 3), 60 * i, np.uint8)).save(
      tmp_path / f"{i}.png"
    )
    captions = [f"a cube of kind {i} seen {k} times" for k in range(5)]
    name = f"{i}.png" if i != 1 else "missing.png"
    rows.append({"id": str(i), "image": name, "captions": captions})
  manifest = tmp_path / "manifest.jsonl"
  manifest.write_text("\n".join(json.dumps(row) for row in rows))
  source = c.SourceConfig(kind="manifest", path=str(manifest), split="")
  settings = c.EvaluationConfig(
    source="m",
    suite="text_retrieval",
    groups=("i",),
    size=0,
    batch_size=4,
    texts_per_item=0,
  )
  config = dataclasses.replace(
    config,
    data=dataclasses.replace(config.data, sources={"m": source}),
    tasks={},
    evaluation=settings,
  )
  by_name = {r.name: r for r in _run(config, parts)}
  asked = by_name["retrieval/t->i/R@1"]
  assert (asked.n, asked.total) == (15, 20)
  assert by_name["retrieval/i->t/R@1"].total == 4


def test_numbers_that_are_none_are_errors(config, parts):
  model, params, tokenizer = parts
  broken = jax.tree.map(lambda x: x * np.nan, params)
  embedder = Embedder(model, broken, config, tokenizer)
  with pytest.raises(DecodeError, match=r"text 'a cube' \(2 in all\)"):
    embedder.embed_texts(["a cube", "b"])
  whole = Embedder(model, params, config, tokenizer)
  gallery = whole.embed_gallery("test", ("va",), size=4, keep_batches=True)
  with pytest.raises(DecodeError, match=r"text 'b' .*P\(match\)"):
    embedder.match(gallery, "va", ["a", "b"], "omni", np.array([[1, 0]]))


def test_captions_are_written_as_the_config_says(config, parts, monkeypatch):
  asked = []

  def watch(model, params, context, *, prompt, max_new_tokens, **options):
    """Writes nothing: compiling a search is not what is tested."""
    penalty = options["length_penalty"]
    asked.append((options["num_beams"], penalty, max_new_tokens))
    start = 1 if prompt is None else prompt.shape[1]
    rows = context.keys.shape[1]
    empty = jnp.zeros((rows, 1, start + max_new_tokens), jnp.int32)
    return decoding.Generation(empty, jnp.zeros((rows, 1)), jnp.int32(0))

  monkeypatch.setattr(captions, "generate", watch)
  config = dataclasses.replace(
    config,
    generation=c.GenerationConfig(2, length_penalty=0.5, max_new_tokens=7),
    evaluation=dataclasses.replace(
      config.evaluation, suite="captions,questions"
    ),
  )
  _run(config, parts)
  # Answers: their own length and penalty, the same beams.
  assert asked == [(2, 0.5, 7), (2, 1.0, 5)]


def test_user_mistakes(config, parts):
  def with_settings(**changes):
    settings = dataclasses.replace(config.evaluation, **changes)
    return dataclasses.replace(config, evaluation=settings)

  for unknown in ("nope", "retrieval,nope"):
    with pytest.raises(c.ConfigError, match=r"'nope'; known: omniworld.*probe"):
      _run(with_settings(suite=unknown), parts)
  with pytest.raises(c.ConfigError, match="options names 'nope'; known"):
    _run(with_settings(options={"nope": {}}), parts)
  with pytest.raises(c.ConfigError, match=r"options\.matching: unknown.*'k'"):
    _run(with_settings(options={"matching": {"k": 1}}), parts)
  with pytest.raises(c.ConfigError, match=r"evaluation\.source is empty"):
    _run(with_settings(source=""), parts)
  with pytest.raises(c.ConfigError, match="no data source"):
    _run(with_settings(source="x"), parts)
  nothing = dataclasses.replace(with_settings(), tasks={})
  with pytest.raises(c.ConfigError, match="nothing to evaluate: set eval"):
    _run(nothing, parts)
  untrained = with_settings(suite="captions", groups=("i",))
  untrained = dataclasses.replace(untrained, tasks={})
  with pytest.raises(c.ConfigError, match="'captions' measures only groups"):
    _run(untrained, parts)
  pairs = with_settings(item_pairs=("i:a",), suite="retrieval", size=4)
  with pytest.raises(c.ConfigError, match=r"evaluation\.label"):
    _run(pairs, parts)


def test_an_evaluation_of_one_device_says_so_to_the_kernels(
  config, monkeypatch
):
  """On a host of several, kernels would else ask for a mesh."""
  found = []

  @dataclasses.dataclass(frozen=True)
  class Look(Evaluator):
    title = "look"
    measures = {}  # noqa: RUF012

    def needs(self, config):
      return Needs()

    def measure(self, job):
      found.append(target.current())
      return []

  monkeypatch.setitem(EVALUATORS, "look", Look)
  settings = dataclasses.replace(config.evaluation, suite="look", size=2)
  config = dataclasses.replace(config, evaluation=settings)
  model = models.build(config.model)
  params = model.init(jax.random.key(0))
  tokenizer = make_tokenizer(config.data.tokenizer)
  with target.use(target.Target("cpu", devices=8)):
    evaluation.evaluate(model, params, config, tokenizer)
    places = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    assert suites._on_one_device(jax.device_put(params, places))
  assert [machine.devices for machine in found] == [1]
