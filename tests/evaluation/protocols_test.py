"""Protocols of benchmarks, each on a stand-in in its official layout."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re

import jax
import numpy as np
import pytest

from mico_jax.cli.main import main
from mico_jax.config import Config, ConfigError, DataConfig
from mico_jax.data.samples import keys_of, load_inputs
from mico_jax.data.sources import open_source
from mico_jax.data.tokenizer import make_tokenizer
from mico_jax.evaluation import protocols
from mico_jax.evaluation.evaluators import EVALUATORS, find_measure
from mico_jax.evaluation.protocols import user_copy
from mico_jax.inference.class_names import check_class_names
from mico_jax.inference.omni_model import OmniModel
from mico_jax.models import build
from mico_jax.run.commands.result_page import read_evaluated
from mico_jax.testing import official_copies, tiny_checkpoint, tiny_data
from mico_jax.testing.official_classes import WNIDS
from mico_jax.testing.official_copies import write_copy
from mico_jax.testing.official_files import LOST, asks, says

ALL = protocols.protocols()
TINY = tiny_checkpoint.tiny_config()
LENGTHS = {"default": 24, "question": 12, "answer": 4}
TINY = dataclasses.replace(
  TINY,
  data=dataclasses.replace(
    TINY.data,
    tokenizer=dataclasses.replace(TINY.data.tokenizer, max_length=LENGTHS),
  ),
)


def test_every_protocol_has_a_stand_in():
  assert set(ALL) == set(official_copies.COPIES)


@pytest.mark.parametrize("name", ALL)
def test_the_official_files_are_read(name, tmp_path):
  protocol = protocols.load_protocol(name)
  ids = write_copy(name, tmp_path)
  copy = user_copy.open_copy(protocol, name, str(tmp_path), other_split=True)
  facts = copy.facts
  # Nothing but the size differs from the official files.
  assert all("listed, expected" in x or "MD5" in x for x in facts.other)
  assert facts.count == len(ids)
  assert facts.sha256 == user_copy.ids_sha256(ids)
  records = [copy.source.record(i) for i in range(len(ids))]
  assert [r.id for r in records] == ids
  lost = [] if name in official_copies.BY_FILES else [ids[LOST]]
  assert list(facts.absent) == lost
  for key in protocol.annotations.files:
    assert list(facts.lacking[key]) == lost
    assert [r.id for r in records if key not in r.media] == lost
  _check_texts(protocol, records[0])
  if protocol.task in ("zero_shot", "tagging"):
    _check_classes(protocol, copy, records)
  # What is measured can be decoded.
  keys = [k for k in keys_of((protocol.context,)) if k in records[0].media]
  config = dataclasses.replace(
    TINY,
    data=dataclasses.replace(TINY.data, sources={"b": copy.spec}),
  )
  inputs = load_inputs(config, records[0], "b", keys, None)
  assert set(inputs) == set(protocol.annotations.files)


def _check_texts(protocol, record):
  texts = record.captions.get("omni", ())
  if protocol.texts.rule == "paragraph":
    assert len(texts) == 1
    assert texts[0].startswith(says(0))
    assert len(texts[0]) > len(says(0))
  elif protocol.texts.rule:
    assert len(texts) >= protocol.texts.per_item
    assert texts[0].startswith(says(0))
  if protocol.task == "question_answering":
    assert [q[:2] for q in record.questions] == [
      (asks(0), "cube"),
      (asks(1), "cube"),
    ]
  if protocol.score == "vqa":
    assert [len(x) for x in record.fields["answers"]] == [10, 10]


def _check_classes(protocol, copy, records):
  labels = [
    x for r in records for x in (r.fields.get("labels") or [r.fields["label"]])
  ]
  assert set(labels) <= set(copy.labels)
  assert len(copy.names) == len(copy.labels)
  if protocol.classes.present:
    assert set(labels) == set(copy.labels)
  assert "{}" in protocol.classes.templates[0]


@pytest.mark.parametrize("name", ALL)
def test_metrics_are_results_of_the_evaluator(name):
  protocol = protocols.load_protocol(name)
  evaluator = EVALUATORS[protocols.TASKS[protocol.task][0]]
  named = protocol.named(rerank=protocol.rerank)
  assert len(named) == len(protocol.metrics)
  for result in named:
    assert find_measure(result, [evaluator]) is not None, result
    assert protocol.context in result
  for figure in protocol.figures:
    assert 0 < figure.value < (10 if "cider" in figure.metric else 1)


def test_names_of_classes_and_depth_are_those_of_the_files(tmp_path):
  def opened(name):
    write_copy(name, tmp_path / name)
    protocol = protocols.load_protocol(name)
    folder = str(tmp_path / name)
    return user_copy.open_copy(protocol, name, folder, other_split=True)

  # Class numbers of ImageNet-V2 are places in the sorted list of ids.
  assert opened("imagenet_v2").labels == ("0", "1", "2", "3")
  few = opened("imagenet_a")
  assert few.labels == WNIDS[1:3]
  assert few.names == ("green cube", "blue cube")
  assert opened("audioset").names[1] == "green, small cube"
  assert opened("esc50").names == ("green cube", "red cube")
  nyu = opened("nyu_d_scenes")
  kept = [nyu.source.record(i).fields["label"] for i in range(4)]
  assert kept == ["bedroom", "kitchen", "other", "office"]
  depth = nyu.source.record(0).media["depth"]()
  np.testing.assert_array_equal(depth, np.full((24, 24), 2345))


# ------------------------------------------------------------------ whole runs
@pytest.fixture(scope="module")
def tiny():
  tokenizer = make_tokenizer(TINY.data.tokenizer)
  params = jax.jit(build(TINY.model).init)(jax.random.key(0))
  return OmniModel(TINY, params, tokenizer)


@pytest.fixture
def run(capsys, tiny, monkeypatch):
  """Runs `evaluate` on fresh parameters; gives status, stdout and stderr."""
  monkeypatch.setattr("mico_jax.cli.common.load_model", lambda args: tiny)

  def call(*argv):
    status = main(["evaluate", "--checkpoint", "run", *map(str, argv)])
    found = capsys.readouterr()
    return status, found.out, found.err

  return call


def _json(run, *argv):
  status, out, said = run("--json", *argv)
  assert status == 0, said
  return json.loads(out), said


SMALL = ("--config.evaluation.batch_size=4", "--config.evaluation.bootstrap=10")


@pytest.mark.parametrize(
  ("name", "n", "total"),
  [
    ("msrvtt_1ka", 3, 4),
    ("clotho_v1_captioning", 3, 4),
    ("vqav2", 6, 8),
    ("esc50", 3, 4),
    ("audioset", 3, 4),  # classes: one has no segment
  ],
)
def test_a_checkpoint_is_measured_by_a_protocol(run, tmp_path, name, n, total):
  ids = write_copy(name, tmp_path / "copy")
  more = (*SMALL, "--other-split", "--out", str(tmp_path / "out"))
  where = ("--protocol", name, "--data", tmp_path / "copy")
  found, said = _json(run, *where, *more)
  protocol = protocols.load_protocol(name)
  # The copy is no official one, so no metric has its official name.
  assert found["protocol"]["changes"]
  by_name = {r["metric"]: r for r in found["results"]}
  result = by_name[f"{protocol.metric}_changed"]
  assert (result["n"], result["total"]) == (n, total)
  if name != "clotho_v1_captioning":
    expected = result["value"] * n / total
    assert result["missing_wrong"] == pytest.approx(expected, abs=1e-6)
  assert found["coverage"]["samples"] == "3/4"
  assert found["coverage"]["absent"] == [ids[LOST]]
  assert f"without any file: 1 of 4 ({ids[LOST]}); left out" in said
  table = (tmp_path / "out" / f"{name}.txt").read_text()
  assert f"{n}/{total}" in table
  assert "differs from the protocol: 4 samples are listed" in table
  assert json.loads((tmp_path / "out" / f"{name}.json").read_text()) == found
  # A page shows the examples of the protocol, not those of what lies beside it.
  (tmp_path / "out" / "examples.json").write_text("{}")
  (shown,) = read_evaluated([str(tmp_path / "out" / f"{name}.json")])
  examples = tmp_path / "out" / f"{name}.examples.json"
  kept = json.loads(examples.read_text())
  assert shown.examples == kept
  assert kept["examples"]
  names = {r["name"].rsplit("/", 1)[0] for r in found["results"]}
  assert {e["name"] for e in kept["examples"]} <= names


def _with_counts(name, folder):
  """A protocol of the size of its stand-in, as a file."""
  text = pathlib.Path(protocols.__file__).with_name(f"{name}.toml").read_text()
  text, changes = re.subn(r"count = \[[0-9, ]+\]", "count = [4]", text)
  text = re.sub(r"questions = [0-9]+", "questions = 8", text)
  assert changes == 1
  path = folder / f"{name}.toml"
  path.write_text(text)
  return path


def test_shards_of_the_official_files_give_the_same_numbers(
  run, tmp_path, capsys
):
  """Also what is missing, and videos without sound, of which zeros stand."""
  protocol = _with_counts("msrvtt_1ka", tmp_path)
  ids = write_copy("msrvtt_1ka", tmp_path / "copy")
  build = ["data", "build", "--protocol", protocol, "--from", tmp_path / "copy",
           "--out", tmp_path / "shards", "--json"]  # fmt: skip
  assert main(list(map(str, build))) == 0
  assert json.loads(capsys.readouterr().out)["without_media"] == 1
  # Video and sound are one file, which is stored once.
  copy = user_copy.open_copy(
    protocols.load_protocol(str(protocol)),
    str(protocol),
    str(tmp_path / "shards"),
  )
  assert copy.spec.fields == {"audio": "video"}
  plain = dataclasses.replace(copy.spec, fields={})
  config = Config(data=DataConfig(sources={"b": plain}))
  assert set(open_source(config, "b").record(0).media) == {"video"}
  found = {}
  for where in ("copy", "shards"):
    found[where], _ = _json(
      run, "--protocol", protocol, "--data", tmp_path / where, *SMALL
    )
    found[where].pop("command")
    for result in found[where]["results"]:
      result.pop("command")
  assert found["copy"] == found["shards"]
  copy = found["copy"]
  assert copy["protocol"]["changes"] == []
  assert copy["split"]["sha256"] == user_copy.ids_sha256(ids)
  assert copy["coverage"]["read"] == {"video": 3, "audio": 2}
  official = {r["metric"]: r for r in copy["results"]}
  assert (official["msrvtt_1ka_t2v_r1"]["n"]) == 3
  assert official["msrvtt_1ka_t2v_r1"]["figures"][0]["value"] == 0.643
  assert "retrieval/t->va/R@1" in official  # the order by cosine, beside
  # Shards of a protocol that reads otherwise now would be other samples.
  protocol.write_text(protocol.read_text().replace('["sentence"]', '["key"]'))
  said = _mistake(run, "--protocol", protocol, "--data", tmp_path / "shards")
  assert "in another way than when these shards were built" in said


def test_what_differs_from_a_protocol_is_named(run, tmp_path):
  protocol = _with_counts("msrvtt_1ka", tmp_path)
  write_copy("msrvtt_1ka", tmp_path / "copy")
  found, _ = _json(
    run, "--protocol", protocol, "--data", tmp_path / "copy", *SMALL,
    "--config.evaluation.rerank=0", "--config.evaluation.silent=()",
    "--config.data.inputs.video.frames=2",
  )  # fmt: skip
  assert found["protocol"]["changes"] == [
    "data.inputs.video.frames=2 instead of 16",
    "evaluation.rerank=0 instead of 50",
    "evaluation.silent=() instead of ('audio',)",
  ]
  metrics = {r["metric"]: r["n"] for r in found["results"]}
  assert metrics["msrvtt_1ka_t2v_r1_changed"] == 2  # without the silent one


# -------------------------------------------------------------------- mistakes
def _mistake(run, *argv):
  status, out, said = run(*argv)
  assert status == 2
  assert not out
  return said


def test_a_missing_copy_tells_how_to_get_it(run, tmp_path):
  said = _mistake(run, "--protocol", "msrvtt_1ka")
  assert "1. get the 10,000 videos" in said
  assert "MSRVTT_JSFUSION_test.csv   columns" in said
  said = _mistake(run, "--protocol", "msrvtt_1ka", "--data", tmp_path)
  assert "1. get the 10,000 videos" in said
  assert "there is none of these files: MSRVTT_JSFUSION_test.csv" in said
  said = _mistake(run, "--protocol", "msrvtt", "--data", tmp_path)
  assert "Did you mean msrvtt_" in said
  # Annotations without a single video.
  write_copy("msrvtt_1ka", tmp_path)
  for video in tmp_path.glob("videos/all/*"):
    video.unlink()
  said = _mistake(run, "--protocol", "msrvtt_1ka", "--data", tmp_path)
  assert "of 4 samples, such as 'video7010'" in said
  assert "none has a file; looked for **/{video_id}.*" in said


def test_another_split_is_refused(tmp_path):
  name = "clotho_v1_retrieval"
  write_copy(name, tmp_path)
  protocol = protocols.load_protocol(name)
  with pytest.raises(ConfigError, match="4 samples are listed, expected 1045"):
    user_copy.open_copy(protocol, name, str(tmp_path))
  # The number is right, the file is not the published one.
  same = dataclasses.replace(protocol.split, count=(4,))
  protocol = dataclasses.replace(protocol, split=same)
  with pytest.raises(ConfigError, match="its publisher gives 1b16b9e57cf7bdb7"):
    user_copy.open_copy(protocol, name, str(tmp_path))
  # Nor are the ids those of a published hash.
  wanted = dataclasses.replace(same, md5={}, sha256="0" * 64)
  protocol = dataclasses.replace(protocol, split=wanted)
  with pytest.raises(ConfigError, match="SHA-256 of the sorted ids is"):
    user_copy.open_copy(protocol, name, str(tmp_path))


def test_fewer_captions_than_the_rule_are_another_split(tmp_path):
  name = "clotho_v1_retrieval"
  ids = write_copy(name, tmp_path)
  path = tmp_path / "clotho_captions_evaluation.csv"
  path.write_text(path.read_text().replace(says(1, 4), ""))
  protocol = protocols.load_protocol(name)
  copy = user_copy.open_copy(protocol, name, str(tmp_path), other_split=True)
  few = f"1 samples have fewer than 5 captions: {ids[1]!r}"
  assert few in copy.facts.other


def test_answers_of_other_than_ten_people_are_refused(tmp_path):
  write_copy("vqav2", tmp_path)
  path = tmp_path / "v2_mscoco_val2014_annotations.json"
  content = json.loads(path.read_text())
  content["annotations"][2]["answers"].pop()
  path.write_text(json.dumps(content))
  protocol = protocols.load_protocol("vqav2")
  with pytest.raises(ConfigError, match="9 answers; expected 10 of each"):
    user_copy.open_copy(protocol, "vqav2", str(tmp_path), other_split=True)


def test_two_files_of_one_sample_are_refused(tmp_path):
  ids = write_copy("msrvtt_1ka", tmp_path)
  again = tmp_path / "again" / f"{ids[0]}.mp4"
  again.parent.mkdir()
  again.write_bytes(b"x")
  protocol = protocols.load_protocol("msrvtt_1ka")
  with pytest.raises(ConfigError, match="2 files may be the video"):
    user_copy.open_copy(protocol, "x", str(tmp_path), other_split=True)


@pytest.mark.parametrize(
  ("old", "new", "expected"),
  [
    ('task = "retrieval"', 'task = "x"', "task='x'"),
    ('title = "', 'titel = "', "x.toml: title: missing"),
    ("rerank = 50", "rerank = -1", "rerank=-1"),
    ("rerank = 50", "rerenk = 50", "rerenk'. Did you mean 'rerank'"),
    ('group = "tva"', 'group = "tvq"', "no modality with letter 'q'"),
    ('_t2v_r1"\nnote', '_x"\nnote', "metric='msrvtt_1ka_x' is none of metrics"),
    ("{rerank}/R@1", "{rank}/R@1", "only {context} and {rerank}"),
    ("count = [1000]", "count = []", "split.count"),
    ('rule = "one"', 'rule = "paragraph"', "do not agree"),
    ('id = "{video_id}"', 'id = "{video_id"', "annotations.id"),
    ('setting = "fine-tuned"', "", "figures[0]: setting: missing"),
    ("[metrics]", "[metrics", "not TOML"),
  ],
)  # fmt: skip
def test_errors_of_a_file_name_it_and_the_field(old, new, expected):
  path = pathlib.Path(protocols.__file__).with_name("msrvtt_1ka.toml")
  text = path.read_text()
  assert old in text
  with pytest.raises(ConfigError) as error:
    protocols.read_protocol(text.replace(old, new, 1).encode(), "x.toml")
  assert str(error.value).startswith("x.toml: ")
  assert expected in str(error.value)


def test_class_names_without_a_known_token(tiny):
  check_class_names(tiny.tokenizer, ["cube", "red cone"])
  with pytest.raises(ConfigError, match=r"2 of 3 class names have no token"):
    check_class_names(tiny.tokenizer, ["cube", " ", "\U00010348"])


# ------------------------------------------------------------------ other data
def test_the_list_of_protocols(run):
  status, out, _ = run("--list")
  assert status == 0
  lines = out.splitlines()
  assert len(lines) == len(ALL) + 1
  row = next(x for x in lines if x.startswith("msrvtt_1ka "))
  assert row.split()[1:5] == ["retrieval", "tva", "msrvtt_1ka_t2v_r1", "1000"]
  status, _, said = run("--list", "--protocol", "msrvtt_1ka")
  assert status == 2
  assert "--protocol is not for --list" in said


def test_other_data_by_one_command(run, tmp_path):
  """All its samples, by the groups of the checkpoint or others."""
  manifest = tiny_data.write_manifest(tmp_path / "set", 5)
  found, said = _json(
    run, "--data", manifest, "--config.evaluation.groups=('i','a')", *SMALL
  )
  assert {r["total"] for r in found["results"]} == {5}
  assert {r["source"] for r in found["results"]} == {"data"}
  # Another source of the checkpoint, and another of its splits.
  few = (*SMALL, "--config.evaluation.size=3", "--cheap")
  found, _ = _json(run, "--data", "train", "--split", "test", *few)
  assert {r["source"] for r in found["results"]} == {"train"}
  assert {r["split"] for r in found["results"]} == {"test"}
  said = _mistake(run, "--data", "absent")
  assert "no data source of the checkpoint; its sources: train, test" in said
  said = _mistake(run, "--data", tmp_path / "set")
  assert "add --from KIND" in said
  said = _mistake(run, "--split", "test")
  assert "--split is for --data PATH" in said
  said = _mistake(run, "--protocol", "esc50", "--split", "test")
  assert "--split is said by a protocol" in said
