"""`require` by the index: the samples that the records would have given."""

from __future__ import annotations

import itertools
import json
import random

import numpy as np
import pytest

from mico_jax.config import ConfigError, SourceConfig
from mico_jax.data import presence
from mico_jax.data.index import classes
from mico_jax.data.sources import manifest, open_source
from mico_jax.modalities import DecodeError
from mico_jax.testing.tiny_data import config_of, png, write_tar

# Of every kind that a field may hold, and what makes a record broken.
VALUES = (
  *(None, "a text", "", [], ["one", "two"], ["one", 2], [None], 7, True),
  *({"omni": "a"}, {"vision": None}, {"vision": []}, {"a": [], "omni": "x"}),
  *({"omni": 3}, {"vision": ["x"], "subtitle": "y"}, [["a", "b"]], ["a", "b"]),
)
FIELDS = (
  *("image", "audio", "caption", "captions", "omni_caption", "subtitle"),
  *("vision_caption", "audio_caption", "my_caption", "alt_text", "split"),
  *("captions.vision", "negatives", "questions", "id", "other", "text"),
)


def _lines(rng: random.Random, count: int) -> list[bytes]:
  lines = []
  for number in range(count):
    fields = {n: rng.choice(VALUES) for n in rng.sample(FIELDS, 3)}
    if number % 2:  # of the usual kind
      fields = {"id": f"s{number}", "split": "train"}
      fields |= {n: "x.png" for n in ("image", "audio") if rng.random() < 0.7}
      fields |= {n: ["a"] for n in FIELDS[2:9:2] if rng.random() < 0.4}
    if number % 50 == 1:
      fields |= {f"f{i}": i for i in range(number, number + 8)}  # too many
    lines.append(json.dumps(fields).encode())
  return [*lines, b"{broken", b'{"image": "\xff", "captions": {"omni": "a"}}']


def _by_records(config, name="a") -> list[int] | None:
  """What reading every record gives; None: nothing."""
  spec = config.data.sources[name]
  bare = config_of(a=SourceConfig(**{**vars(spec), "require": ()}))
  source, rows = open_source(bare, name), []
  for index in range(len(source)):
    try:
      record = source.record(index)
    except DecodeError:
      rows.append(index)
      continue
    if all(presence.has(record, n) for n in spec.require):
      rows.append(index)
  return rows or None


def _by_index(config, name="a") -> list[int] | None:
  try:
    source = open_source(config, name)
  except ConfigError:
    return None
  return [source._row(i) for i in range(len(source))]


WANTED = (
  *(("image",), ("audio", "image"), ("caption",), ("caption:omni",)),
  *(("caption:vision",), ("subtitle",), ("caption:my", "image")),
  *(("caption:audio",), ("caption:none",), ("caption:alt_text",)),
)
MAPPED = (
  {},
  {"captions": {"vision": "other"}},
  {"fields": {"image": "other"}, "captions": {"my": "caption"}},
  {"captions": {"vision": "captions"}},
  {"where": {"caption": "a text"}},
)


@pytest.mark.parametrize("mapped", MAPPED)
def test_a_manifest_gives_what_its_records_give(mapped, tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  path = tmp_path / "m.jsonl"
  path.write_bytes(b"\n".join(_lines(random.Random(0), 300)))
  some = False
  for require in WANTED:
    spec = SourceConfig(
      kind="manifest", path=str(path), require=require, **mapped
    )
    config = config_of(a=spec)
    want = _by_records(config)
    assert _by_index(config) == want, require
    some |= want is not None and len(want) > 20
  assert some or "where" in mapped


@pytest.mark.parametrize(
  ("where", "captions"), [({}, {}), ({"label": 1}, {"vision": "cap"})]
)
def test_shards_give_what_their_records_give(where, captions, tmp_path):
  members = []
  endings = ("png", "wav", "txt", "json", "cap", "cls")
  texts = {"txt": b"a", "cap": b"b", "cls": b"1", "png": png(1), "wav": b"w"}
  for number, there in enumerate(
    itertools.product((False, True), repeat=len(endings))
  ):
    for ending in itertools.compress(endings, there):
      data = texts.get(ending, b'{"vision_caption": "c", "label": 1}')
      if number % 7 == 3 and ending in ("txt", "json", "cls"):
        data = b"\xff"  # broken
      members.append((f"s{number:02d}.{ending}", data))
  middle = len(members) // 2
  while members[middle - 1][0][:3] == members[middle][0][:3]:
    middle += 1
  write_tar(tmp_path / "x-0.tar", members[:middle])
  write_tar(tmp_path / "x-1.tar", members[middle:])
  for require in (*WANTED[:6], ("audio", "caption")):
    spec = SourceConfig(
      kind="webdataset", path=str(tmp_path / "x-*.tar"), require=require,
      where=where, captions=captions,
    )  # fmt: skip
    config = config_of(a=spec)
    assert _by_index(config) == _by_records(config), require


def test_no_record_is_read_where_the_index_tells(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  monkeypatch.setattr(classes, "_KEPT", 0)
  path = tmp_path / "m.jsonl"
  line = '{"id": "%d", "image": "%s", "captions": {"vision": "a"}}\n'
  path.write_text(
    "".join(line.replace(', "image": "%s"', "") % i if i % 3 else line % (i, i)
            for i in range(3000))
  )  # fmt: skip
  read = []
  record = manifest.ManifestSource.record
  monkeypatch.setattr(
    manifest.ManifestSource,
    "record",
    lambda self, index: (read.append(index), record(self, index))[1],
  )
  spec = SourceConfig(
    kind="manifest", path=str(path), require=("image", "caption:vision")
  )
  assert len(open_source(config_of(a=spec), "a")) == 1000
  assert not read
  source = open_source(config_of(a=spec), "a")  # kept
  np.testing.assert_array_equal(source._rows, np.arange(0, 3000, 3))
