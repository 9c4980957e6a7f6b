"""Sets with faults: no number is better or worse by one without a word."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest
from PIL import Image

from mico_jax.cli.main import main
from mico_jax.data.records import Record
from mico_jax.data.tokenizer import make_tokenizer
from mico_jax.evaluation import metrics, protocols
from mico_jax.evaluation.evaluators import tagging
from mico_jax.evaluation.features import Embedder
from mico_jax.evaluation.protocols import user_copy
from mico_jax.evaluation.sameness import merge_repeats
from mico_jax.inference.omni_model import OmniModel
from mico_jax.models import build
from mico_jax.testing import tiny_checkpoint
from mico_jax.testing.official_copies import write_copy

CLASSES = ("red cube", "green cone", "blue sphere")
NUM = 7


@pytest.fixture(scope="module")
def model():
  config = tiny_checkpoint.tiny_config()
  params = jax.jit(build(config.model).init)(jax.random.key(0))
  return OmniModel(config, params, make_tokenizer(config.data.tokenizer))


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
  """A manifest's rows, with files in the folder `rows[0]["folder"]`."""
  folder = tmp_path_factory.mktemp("set")
  rng = np.random.default_rng(3)
  out = []
  for i in range(NUM):
    picture = rng.integers(0, 90, (16, 16, 3)).astype(np.uint8)
    picture[..., i % 3] += 120
    Image.fromarray(picture).save(folder / f"{i}.png")
    name = CLASSES[i % 3]
    out.append(
      {
        "id": f"p{i}",
        "image": str(folder / f"{i}.png"),
        "caption": [f"a {name} {i}", f"the {name} {i}"],
        "label": name,
        "labels": [name, *CLASSES[2:][: i % 2]],
      }
    )
  return out


@pytest.fixture
def run(model, capsys, monkeypatch, tmp_path):
  """Measures rows; gives results by name, the whole rows, and stderr."""
  monkeypatch.setattr("mico_jax.cli.common.load_model", lambda args: model)

  def call(rows, *more, status=0, **settings):
    manifest = tmp_path / "m.jsonl"
    manifest.write_text("\n".join(map(json.dumps, rows)))
    settings = {"groups": ("i",), "label": "label"} | settings
    words = ["evaluate", "--checkpoint", "run", "--data", manifest, "--json"]
    words += ["--root", "/", "--config.evaluation.batch_size=4"]
    words += [f"--config.evaluation.{k}={v!r}" for k, v in settings.items()]
    assert main([*map(str, words), *map(str, more)]) == status
    found = capsys.readouterr()
    if status:
      return {}, [], found.err
    results = json.loads(found.out)["results"]
    return {r["name"]: r["value"] for r in results}, results, found.err

  return call


def _similarities(model, texts, rows):
  """Cosines by the Python door, [texts, rows]."""
  images = model.embed(image=[row["image"] for row in rows])["image"]
  return np.asarray(model.embed(text=list(texts))["text"]) @ images.T


def _recall(scores, right):
  """R@1 as it is defined: the best right answer before all wrong ones."""
  best = np.where(right, scores, -2).max(axis=1)
  return np.mean(np.where(right, -2, scores).max(axis=1) < best)


# ---------------------------------------------------------- repeated samples
def test_a_clip_of_several_rows_is_one_item(run, rows, model):
  options = {"suite": "text_retrieval,item_pairs", "item_pairs": ("i:i",)}
  options["texts_per_item"] = 0
  once, results, said = run(rows, **options)
  assert "repeat" not in said
  # A row for each caption, as such sets are often written.
  many = [{**r, "caption": c} for c in (0, 1) for r in rows]
  many = [{**r, "caption": r["caption"]} for r in many]
  for i, row in enumerate(many):
    row["caption"] = rows[i % NUM]["caption"][i // NUM]
  again, repeated, said = run(many, **options)
  assert again == once
  assert [(r["n"], r["total"]) for r in repeated] == [
    (r["n"], r["total"]) for r in results
  ]
  assert "7 samples repeat another one with its id (p0, p1, p2, ...)" in said
  texts = [c for r in rows for c in r["caption"]]
  own = np.repeat(np.arange(NUM), 2)[:, None] == np.arange(NUM)
  scores = _similarities(model, texts, rows)
  assert again["retrieval/t->i/R@1"] == pytest.approx(_recall(scores, own))
  assert again["retrieval/i->t/R@1"] == pytest.approx(_recall(scores.T, own.T))


def test_a_sample_of_two_labels_stays_two_items(capsys):
  records = [
    Record("a", captions={"omni": ("x",)}, fields={"label": 1}),
    Record("a", captions={"omni": ("y",)}, fields={"label": 2}),
    Record("a", captions={"omni": ("z", "x")}, fields={"label": 1}),
    None,
  ]
  contents = {"image": np.array([5, 5, 5, 5])}
  there = {"image": np.ones(4, bool)}
  found, repeats = merge_repeats(records, contents, there, "s")
  assert repeats == {2}
  assert found[0] is not None
  assert found[0].captions == {"omni": ("x", "z")}
  assert found[1:] == records[1:]
  said = capsys.readouterr().err
  assert "1 samples repeat another one with its id ('a') and have another" in (
    said
  )


def test_a_copy_under_another_id_is_no_answer_to_itself(run, rows):
  options = {"suite": "item_pairs", "item_pairs": ("i:i",)}
  # The first of each class, and its copy alone has its label.
  few = [rows[0], rows[1], rows[2], {**rows[0], "id": "copy"}, rows[3]]
  found, results, said = run(few, **options)
  assert "1 samples show exactly what another one shows, under another" in said
  assert "('copy' = 'p0')" in said
  # p0 and its copy have p3 as their only answer, p3 has both.
  assert {(r["n"], r["total"]) for r in results} == {(3, 5)}
  assert found["class/i->i/R@1"] <= 1
  _, _, said = run(few[:1] + few[3:4] + few[1:3], status=2, **options)
  assert "no item could be scored" in said


# ------------------------------------------------------ what cannot be read
def test_what_cannot_be_read_is_told_with_its_reason(run, rows):
  broken = [{**r, "image": "/gone.png"} for r in rows[:2]]
  _, results, said = run([*broken, *rows[2:]], suite="zero_shot")
  assert {(r["n"], r["total"]) for r in results} == {(5, 7)}
  assert "image cannot be read of 2 of 7 samples; the first, number 0" in said
  assert "No such file" in said
  # Of all: the error alone would not say that a unit is missing.
  depth = [{**r, "depth": r["image"]} for r in rows]
  _, _, said = run(depth, status=2, suite="text_retrieval", groups=("d",))
  assert "depth cannot be read of 7 of 7 samples" in said
  assert "depth without a unit" in said


def test_texts_that_are_cut_are_told(run, rows):
  long = [{**r, "caption": "the cube moves " * 30 + r["id"]} for r in rows[:2]]
  _, _, said = run([*long, *rows[2:]], suite="text_retrieval")
  assert "2 of 7 texts of kind 'vision' are cut to 40 tokens, such as" in said


def test_probes_say_what_their_training_lacks_or_gives_away(
  run, rows, tmp_path
):
  known = [{**r, "id": f"other {r['id']}"} for r in rows]  # the same files
  (tmp_path / "train.jsonl").write_text("\n".join(map(json.dumps, known)))
  source = {"kind": "manifest", "path": str(tmp_path / "train.jsonl")}
  source |= {"split": "", "root": "/"}
  odd = [{**r, "label": 0} for r in rows[:2]]
  _, (result, *_), said = run(
    [*odd, *rows[2:]],
    f"--config.data.sources.train2={source!r}",
    suite="nearest",
    probe_source="train2",
  )
  assert (result["n"], result["total"]) == (7, 7)
  assert "'train2' holds 7 of the 7 samples that are measured on" in said
  assert (
    "nearest/i: 2 of 7 samples have a class that no training sample" in said
  )


# ------------------------------------------------------------------- labels
def test_labels_that_mean_no_class(run, rows, tmp_path):
  names = tmp_path / "names.txt"
  # A mark of the order of bytes, and Windows line ends.
  names.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(CLASSES).encode())
  options = {"suite": "zero_shot", "classes": str(names)}
  found, (whole, *_), _ = run(rows, **options)
  assert (whole["n"], whole["gallery"]) == (7, 3)
  given, _, _ = run(
    rows, suite="zero_shot", options={"zero_shot": {"names": CLASSES}}
  )
  assert given == found
  odd = [{**r, "label": r["label"].upper()} for r in rows[:2]]
  _, (result, *_), said = run([*odd, *rows[2:]], **options)
  assert (result["n"], result["total"]) == (5, 7)
  assert "2 samples have a label that is no class ('GREEN CONE', 'RED" in said
  names.write_text("red cube\ngreen cone\nred cube\nblue sphere\n")
  _, _, said = run(rows, **options)
  assert "'red cube' and 'red cube'); none of these is ever right" in said


def test_a_number_that_is_the_name_of_another_class(run, rows):
  numbers = [{**r, "label": 1 + CLASSES.index(r["label"])} for r in rows]
  options = {"zero_shot": {"names": ("1", "2", "3")}}
  _, _, said = run(numbers, status=2, suite="zero_shot", options=options)
  assert "label 1 is the number of a class, counted from 0, and" in said
  digits = [{**r, "label": r["label"] - 1} for r in numbers]
  options = {"zero_shot": {"names": ("0", "1", "2")}}
  _, (result, *_), _ = run(digits, suite="zero_shot", options=options)
  assert result["n"] == 7


def test_a_label_that_is_not_a_number_is_none(run, rows):
  bad = [{**r, "label": float("nan")} for r in rows[:2]]
  options = {"suite": "item_pairs", "item_pairs": ("i:i",)}
  _, results, _ = run([*bad, *rows[2:]], **options)
  _, _, said = run(
    [{k: v for k, v in r.items() if k != "label"} for r in rows],
    status=2,
    **options,
  )
  assert "no sample has the field that evaluation.label names" in said
  # p2 and p5 are blue, p3 and p6 red, p4 is the only green one left.
  assert {(r["n"], r["total"]) for r in results} == {(4, 7)}


# ------------------------------------------------------------------ tagging
def test_items_without_a_class_are_its_wrong_answers(run, rows, model):
  """An independent average precision over all seven items."""
  names = CLASSES[1:]
  found, (result,), said = run(
    rows, suite="tagging", options={"tagging": {"names": names}}
  )
  scores = _similarities(model, names, rows)
  each = []
  for score, name in zip(scores, names, strict=True):
    hits = [name in rows[i]["labels"] for i in np.argsort(-score)]
    places = 1 + np.flatnonzero(hits)
    each.append(np.mean(np.arange(1, len(places) + 1) / places))
  assert found["tagging/i/mAP"] == pytest.approx(np.mean(each), abs=1e-6)
  assert result["gallery"] == 7
  assert "3 labels are none of the 2 classes ('red cube')" in said


def test_the_interval_of_map_resamples_items():
  """That of sets drawn anew from one population, about."""
  rng = np.random.default_rng(0)

  def drawn(count):
    right = rng.random((4, count)) < 0.3
    return rng.standard_normal((4, count)) + right, right

  many = [metrics.average_precision(*drawn(150)).mean() for _ in range(300)]
  width = np.subtract(*np.percentile(many, [97.5, 2.5]))
  widths = []
  for _ in range(20):
    low, high = tagging.map_interval(*drawn(150), num=200, seed=0)
    widths.append(high - low)
  assert np.mean(widths) == pytest.approx(width, rel=0.2)
  one = np.eye(2)[:, [0, 0, 1, 1]]
  low, high = tagging.map_interval(one, one > 0, num=100, seed=0)
  assert (round(low, 3), high) == (0.398, 1.0)  # four of four, exactly


# -------------------------------------------------------------- fixed texts
def test_a_fixed_list_of_texts(run, rows, model, tmp_path):
  lines = [r["caption"][0] for r in rows[::2]] + ["a cone", "the red cube"]
  (tmp_path / "texts.txt").write_text("\n".join(lines) + "\n")
  options = {"text_retrieval": {"texts": str(tmp_path / "texts.txt")}}
  settings = {"suite": "text_retrieval", "rerank": 2, "options": options}
  found, results, _ = run(rows, **settings)
  scores = _similarities(model, lines, rows)
  own = np.zeros((6, NUM), bool)
  own[np.arange(4), np.arange(0, NUM, 2)] = True
  key = "retrieval/{} (fixed texts)/R@1"
  assert found[key.format("t->i")] == pytest.approx(
    _recall(scores[:4], own[:4])
  )
  assert found[key.format("i->t")] == pytest.approx(
    _recall(scores.T[::2], own.T[::2])
  )
  by_name = {r["name"]: (r["n"], r["total"], r["gallery"]) for r in results}
  assert by_name[key.format("t->i")] == (4, 4, 7)
  assert by_name[key.format("i->t")] == (4, 7, 6)
  assert "retrieval/t->i (fixed texts) (re-ranked 2)/R@1" in found
  (tmp_path / "texts.txt").write_text("nothing of it\n")
  _, _, said = run(rows, status=2, **settings)
  assert "none of the 1 texts, such as 'nothing of it', is a caption" in said


# ------------------------------------------------------------------- hashes
def test_hashes_change_with_what_they_name_alone(run, rows):
  hashes = ("prompt", "preprocessing", "samples", "inputs")

  def hashed(rows, *more, **settings):
    _, results, _ = run(rows, *more, suite="zero_shot", **settings)
    return {name: results[0][f"{name}_sha256"] for name in hashes}

  names = {"zero_shot": {"names": CLASSES}}
  first = hashed(rows, options=names)

  def changed(rows, *more, **settings):
    now = hashed(rows, *more, **{"options": names} | settings)
    return [name for name in hashes if now[name] != first[name]]

  assert changed(rows) == []
  assert changed(rows[::-1]) == []
  assert changed([{**rows[0], "label": CLASSES[1]}, *rows[1:]]) == ["samples"]
  other = {**rows[0], "image": rows[1]["image"]}
  assert changed([other, *rows[1:]]) == ["inputs"]
  templates = names["zero_shot"] | {"templates": ("a {}",)}
  assert changed(rows, options={"zero_shot": templates}) == ["prompt"]


def test_a_stated_unit_is_preprocessing(model):
  config = model.config
  spec = dataclasses.replace(config.data.sources["test"], kind="manifest")

  def hashed(keys, **said):
    sources = {"set": dataclasses.replace(spec, **said)}
    data = dataclasses.replace(config.data, sources=sources)
    given = dataclasses.replace(config, data=data)
    embedder = Embedder(model.model, model.params, given, model.tokenizer)
    return embedder.preprocessing_sha256(keys, "set")

  mm, relative = ({"depth_unit": x} for x in ("millimetre", "relative"))
  assert hashed(["depth"], **mm) != hashed(["depth"], **relative)
  assert hashed(["depth"], **mm) == hashed(
    ["depth"], units={"depth": "millimetre"}
  )
  assert hashed(["image"], **mm) == hashed(["image"], **relative)


# ---------------------------------------------------------------- protocols
def test_a_sample_that_is_listed_again_is_another_split(tmp_path):
  name = "msrvtt_1ka"
  ids = write_copy(name, tmp_path)
  table = tmp_path / "MSRVTT_JSFUSION_test.csv"
  lines = table.read_text().splitlines()
  lines.append(lines[1].replace("red", "blue"))
  table.write_text("\n".join(lines))
  protocol = protocols.load_protocol(name)
  copy = user_copy.open_copy(protocol, name, str(tmp_path), other_split=True)
  assert f"1 samples are listed again: {ids[0]!r}" in copy.facts.other


def test_a_question_that_stands_twice_is_told(tmp_path, capsys):
  write_copy("vqav2", tmp_path)
  path = tmp_path / "v2_OpenEnded_mscoco_val2014_questions.json"
  content = json.loads(path.read_text())
  content["questions"][-1] = content["questions"][0]  # as many as before
  path.write_text(json.dumps(content))
  protocol = protocols.load_protocol("vqav2")
  user_copy.open_copy(protocol, "vqav2", str(tmp_path), other_split=True)
  assert "stands twice in 1 samples ('0'); each counts" in (
    capsys.readouterr().err
  )


def test_a_protocol_states_units_of_any_modality(tmp_path):
  name = "msrvtt_1ka"
  write_copy(name, tmp_path)
  protocol = protocols.load_protocol(name)
  protocol = dataclasses.replace(
    protocol, units={"thermal": "kelvin"}, rates={"imu": 50.0}
  )
  copy = user_copy.open_copy(protocol, name, str(tmp_path), other_split=True)
  assert dict(copy.spec.units) == {"thermal": "kelvin"}
  assert dict(copy.spec.rates) == {"imu": 50.0}
