"""Batches of one text length: exact counts, no text cut, free of topology."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

from mico_jax.cli.main import main
from mico_jax.config import ConfigError
from mico_jax.data.index import classes as sorting
from mico_jax.data.order import Order
from mico_jax.data.pipeline import Pipeline, batch_spec, trace
from mico_jax.data.sources import ManifestSource, open_sources
from mico_jax.data.text_classes import text_classes
from mico_jax.data.text_lengths import Classes
from mico_jax.data.tokenizer import make_tokenizer
from mico_jax.testing.tiny_data import (
  config_of,
  manifest_source,
  write_manifest,
)

TEXT = "a small red cube of wood is left of a large blue metal ball"
WORDS = tuple(TEXT.split())


def classes(**ends):
  """A class up to 8 tokens, one up to 16 and the rest, as long as `ends`."""
  return Classes(
    (8, 16),
    {
      n: np.random.default_rng(len(n)).permutation(e[-1]).astype(np.int32)
      for n, e in ends.items()
    },
    ends,
  )


def two_sources(batch=4, **weights):
  config = config_of(
    batch=batch, x=manifest_source("x"), y=manifest_source("y")
  )
  task = dataclasses.replace(config.tasks["one"], sources=weights)
  return dataclasses.replace(config, tasks={"one": task})


def test_each_sample_is_read_as_often_as_the_weights_say():
  lengths = classes(x=(16, 40, 60), y=(4, 12, 20))
  config = two_sources(x=3, y=1)
  order = Order(config, {"x": 60, "y": 20}, {"one": lengths})
  seen, steps = Counter(), Counter()
  for step in range(160):  # 640 rows: 480 of x, 160 of y
    length = order.text_length(step)
    steps[length] += 1
    end = (8, 16, 0).index(length)
    for row in order.rows(step)[1]:
      seen[row.source, row.index] += 1
      place = np.flatnonzero(lengths.rows[row.source] == row.index)[0]
      assert place < lengths.ends[row.source][end]
  assert set(seen.values()) == {8}
  assert len(seen) == 80
  assert set(steps) == {8, 16, 0}


def test_steps_resume_and_rows_are_dealt_alike():
  config, sizes = two_sources(x=3, y=1), {"x": 60, "y": 20}
  lengths = {"one": classes(x=(16, 40, 60), y=(4, 12, 20))}
  order = Order(config, sizes, lengths)
  want = [order.rows(step) for step in range(50)]
  for step in (49, 7, 23):
    again = Order(config, sizes, lengths)
    rows = [r for p in range(2) for r in again.rows(step, range(p, 4, 2))[1]]
    assert sorted(rows, key=lambda r: r.row) == want[step][1]


@pytest.mark.parametrize(
  ("ends", "batch", "want"),
  [
    ({"x": (16, 40, 60)}, 4, [8, 16, 0]),
    ({"x": (3, 40, 60)}, 4, [16, 0]),  # three samples fill no batch of four
    ({"x": (16, 58, 60)}, 4, [8, 0]),
    ({"x": (1, 2, 60)}, 4, [0]),
    ({"x": (0, 60, 60)}, 4, [0]),
    ({"x": (16, 40, 60)}, 20, [16, 0]),
    ({"x": (16, 40, 60), "y": (0, 1, 8)}, 12, [8, 0]),
  ],
)
def test_small_classes_are_joined(ends, batch, want):
  lengths = classes(**ends)
  merged = lengths.merged(dict.fromkeys(ends, 1), batch)
  assert [length for length, _ in merged] == want
  for name, rows in lengths.rows.items():
    together = np.concatenate([part[name] for _, part in merged])
    np.testing.assert_array_equal(together, rows)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
  """24 samples with captions of 2 to 13 words, of which one is empty."""
  folder = tmp_path_factory.mktemp("words")
  captions = [" ".join(WORDS[: 2 + i // 2]) for i in range(24)]
  captions[3] = ""
  path = write_manifest(folder, 24, caption=captions)
  config = config_of(
    batch=4,
    groups=("ti",),
    a=manifest_source(path),
    data={"text_buckets": (10, 6), "max_bad_fraction": 0.5},
  )
  return config, make_tokenizer(config.data.tokenizer)


def test_no_text_is_cut_and_batches_have_their_length(corpus, tmp_path):
  config, tokenizer = corpus
  pipeline = Pipeline(config, tokenizer, end_step=12, workdir=tmp_path)
  assert pipeline.order.lengths("one") == (6, 10, 0)
  seen = Counter()
  for step, task, batch in pipeline:
    length = pipeline.order.text_length(step)
    ids = batch["text"]["ti"]
    shape = batch_spec(config, task, text_length=length)["text"]["ti"].shape
    assert ids.shape == shape == (4, length or 40)
    _, traced = trace(config, step, tmp_path, tokenizer=tokenizer)
    for row, at in zip(ids, traced, strict=True):
      words = 2 + at.index // 2
      whole = tokenizer.encode(" ".join(WORDS[:words]), 40)
      np.testing.assert_array_equal(row, whole[: len(row)])
      assert (whole[len(row) :] == tokenizer.info.pad).all()
    seen[length] += 1
  assert set(seen) == {6, 10, 0}


def test_the_pinned_counts_are_those_of_the_classes(corpus):
  config, tokenizer = corpus
  sources = open_sources(config)
  lengths = text_classes(config, tokenizer, sources)
  order = Order(config, {"a": 24}, lengths)
  counts = order.mixture("one")
  assert sum(counts.values()) == 24
  assert list(counts) == ["a/6", "a/10", "a/longest"]
  task = dataclasses.replace(config.tasks["one"], mixture={"a/6": 1})
  with pytest.raises(ConfigError, match="was started with the mixture"):
    Order(dataclasses.replace(config, tasks={"one": task}), {"a": 24}, lengths)


def test_worker_processes_map_the_rows(corpus, tmp_path, monkeypatch):
  """What travels to them does not grow with the samples."""
  config, tokenizer = corpus
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  monkeypatch.setattr(sorting, "_KEPT", 0)
  lengths = text_classes(config, tokenizer, open_sources(config))["one"]
  data = pickle.dumps(lengths)
  assert lengths.rows["a"].tobytes() not in data
  again = pickle.loads(data)
  assert again.ends == lengths.ends
  np.testing.assert_array_equal(again.rows["a"], lengths.rows["a"])
  monkeypatch.undo()  # a small set, of which no file is kept
  lengths = text_classes(config, tokenizer, open_sources(config))["one"]
  again = pickle.loads(pickle.dumps(lengths))
  np.testing.assert_array_equal(again.rows["a"], lengths.rows["a"])


def test_the_index_command_sorts_ahead_by_processes(
  corpus, tmp_path, monkeypatch, capsys
):
  """What it keeps is what a run would find, which then reads no record."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  monkeypatch.setattr(sorting, "_KEPT", 0)
  config, tokenizer = corpus
  want = text_classes(config, tokenizer, open_sources(config))["one"]
  (tmp_path / "mico_jax").rename(tmp_path / "other")
  monkeypatch.setattr(sorting, "_MANY", 0)
  path = tmp_path / "config.py"
  path.write_text(
    "from mico_jax.config import to_config_dict\n"
    "from mico_jax.testing import tiny_data\n\n\n"
    "def get_config():\n"
    "  return to_config_dict(tiny_data.config_of(\n"
    f"    batch=4, groups=('ti',), a=tiny_data.manifest_source("
    f"{config.data.sources['a'].path!r}),\n"
    "    data={'text_buckets': (10, 6), 'max_bad_fraction': 0.5,"
    " 'num_workers': 1},\n  ))\n"
  )
  assert main(["data", "index", "--config", str(path), "--json"]) == 0
  told = json.loads(capsys.readouterr().out)["text_buckets"]["one"]["a"]
  assert list(told) == ["6", "10", "longer"]
  assert list(np.cumsum(list(told.values()))) == list(want.ends["a"])
  monkeypatch.setattr(ManifestSource, "fields", None)  # `record` calls it
  again = text_classes(config, tokenizer, open_sources(config))["one"]
  np.testing.assert_array_equal(again.rows["a"], want.rows["a"])


PROCESS = """
import json, sys
from mico_jax.data.pipeline import Pipeline
from mico_jax.data.tokenizer import make_tokenizer
from mico_jax.testing.tiny_data import config_of, manifest_source

path, process, workdir = sys.argv[1], int(sys.argv[2]), sys.argv[3]
data = {"text_buckets": (10, 6), "max_bad_fraction": 0.5}
config = config_of(
  batch=4, groups=("ti",), a=manifest_source(path), data=data
)
tokenizer = make_tokenizer(config.data.tokenizer)
rows = lambda size: range(process, size, 2)
pipeline = Pipeline(
  config, tokenizer, end_step=12, workdir=workdir, rows=rows
)
for step, task, batch in pipeline:
  ids = batch["text"]["ti"]
  length = pipeline.order.text_length(step)
  print(json.dumps([step, task, length, batch["row"].tolist(), ids.tolist()]))
"""


def test_processes_agree_on_lengths_and_rows(corpus, tmp_path, repository):
  """Two real ones, which hash texts differently and start together."""
  config, tokenizer = corpus
  path = config.data.sources["a"].path
  children = [
    subprocess.Popen(
      [
        *(sys.executable, "-c", PROCESS, path, str(process)),
        str(tmp_path / str(process)),
      ],
      stdout=subprocess.PIPE,
      env={
        **os.environ,
        "PYTHONPATH": str(repository),
        "PYTHONHASHSEED": str(process),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
      },
      text=True,
    )
    for process in range(2)
  ]
  said = [child.communicate(timeout=120)[0] for child in children]
  assert [child.returncode for child in children] == [0, 0]
  parts = [[json.loads(line) for line in text.splitlines()] for text in said]
  whole = Pipeline(config, tokenizer, end_step=12, workdir=tmp_path)
  lengths = set()
  for one, two, (step, task, batch) in zip(*parts, whole, strict=True):
    length = whole.order.text_length(step)
    lengths.add(length)
    assert one[:3] == two[:3] == [step, task, length]
    assert (one[3], two[3]) == ([0, 2], [1, 3])
    together = np.empty_like(batch["text"]["ti"])
    together[0::2], together[1::2] = one[4], two[4]
    np.testing.assert_array_equal(together, batch["text"]["ti"])
  assert lengths == {6, 10, 0}
