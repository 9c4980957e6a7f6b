"""Odd inputs that are kept beside the checkout, by the doors of a user."""

from __future__ import annotations

import io
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from mico_jax.config import ConfigError, SourceConfig
from mico_jax.data.pipeline import Pipeline
from mico_jax.data.sources import open_source
from mico_jax.data.tokenizer import make_tokenizer
from mico_jax.testing.tiny_data import config_of, manifest_source


def _webdataset(path, **options):
  return SourceConfig(kind="webdataset", path=str(path), **options)


def _pictures(config, steps):
  tokenizer = make_tokenizer(config.data.tokenizer)
  pipeline = Pipeline(config, tokenizer, end_step=steps)
  found = [b["inputs"]["image"] for _, _, b in pipeline]
  assert not pipeline.bad_samples.count
  return np.concatenate(found)


@pytest.mark.parametrize(
  ("name", "count", "said"),
  [
    ("shard*.tar", 8, "4 ids occur twice (0000, 0001, 0002, ...)"),
    ("dupid.jsonl", 10, "1 id occurs up to 10 times"),
  ],
)
def test_equal_ids(cases_dir, capsys, name, count, said):
  path = cases_dir / "duplicate_ids_cache" / name
  source = manifest_source(path) if "jsonl" in name else _webdataset(path)
  found = [
    _pictures(
      config_of(a=source, batch=count, groups=("ti",), data={"cache_mib": mib}),
      3,
    )
    for mib in (0, 64)
  ]
  np.testing.assert_array_equal(*found)
  for epoch in np.split(found[1], 3):
    assert len({picture.tobytes() for picture in epoch}) == count
  assert said in capsys.readouterr().err


@pytest.mark.parametrize("clip", ["av.mp4", "av_offset.mp4"])
def test_video_and_sound_of_one_file(cases_dir, tmp_path, clip):
  folder = cases_dir / "av_one_file"
  text = (folder / "avfile.jsonl").read_text()
  (tmp_path / "m.jsonl").write_text(text.replace("av.mp4", clip))
  shutil.copy(folder / clip, tmp_path)
  source = manifest_source(tmp_path / "m.jsonl")
  config = config_of(a=source, groups=("tva",))
  tokenizer = make_tokenizer(config.data.tokenizer)
  pipeline = Pipeline(config, tokenizer, end_step=2)
  for _, _, batch in pipeline:
    assert batch["present"]["video"].all()
    assert batch["present"]["audio"].all()
    assert batch["inputs"]["video"].any()
  assert not pipeline.bad_samples.count


def test_keys_with_dots(cases_dir):
  path = cases_dir / "tar_dots" / "dots.tar"
  with pytest.raises(ConfigError, match=r"2 members such as .*key_dot='last'"):
    open_source(config_of(a=_webdataset(path)), "a")
  source = open_source(config_of(a=_webdataset(path, key_dot="last")), "a")
  found = [source.record(i) for i in range(len(source))]
  assert [r.id for r in found] == [
    "train.v1/2.0 (x)",
    "train.v1/2.1 (y)",
  ]
  assert all(r.captions["omni"] and "audio" in r.media for r in found)


@pytest.mark.parametrize(
  ("name", "member"), [("dups.tar", "a.jpg"), ("dups8.tar", "0.png")]
)
def test_members_that_repeat(cases_dir, name, member):
  path = cases_dir / "tar_duplicates" / name
  with pytest.raises(ConfigError, match="1 member names repeat") as error:
    open_source(config_of(a=_webdataset(path)), "a")
  assert name in str(error.value)
  assert f"{member} 2 times" in str(error.value)


@pytest.mark.parametrize("name", ["a[1]/plain.tar", "a,b.tar"])
def test_a_path_that_exists_is_no_pattern(cases_dir, tmp_path, name):
  path = tmp_path / name
  path.parent.mkdir(exist_ok=True)
  shutil.copy(cases_dir / "glob_in_path" / "plain.tar", path)
  config = config_of(a=_webdataset(path), batch=8, groups=("ti",))
  assert len(_pictures(config, 1)) == 8


def test_another_source_is_evaluated(cases_dir, tmp_path):
  from mico_jax.data.sources import pin_sources
  from mico_jax.run.commands.evaluate import unpinned

  for file in (cases_dir / "evaluate_other_source").iterdir():
    shutil.copy(file, tmp_path)
  old = pin_sources(config_of(test=manifest_source(tmp_path / "labels.jsonl")))
  override = f"data.sources.test.path={tmp_path / 'labels_some.jsonl'}"
  from mico_jax import config as config_lib

  new = config_lib.override(old, [override])
  with pytest.raises(ConfigError, match="changed"):
    open_source(new, "test")
  assert len(open_source(unpinned(old, new, [override]), "test"))


def test_cases_are_what_they_say(cases_dir):
  """The pictures of the cases differ, so that the tests above can fail."""
  folder = cases_dir / "duplicate_ids_cache"
  pictures = set()
  for i in range(10):
    with Image.open(io.BytesIO((folder / f"p{i}.png").read_bytes())) as image:
      pictures.add(image.convert("RGB").tobytes())
  assert len(pictures) == 10
  lines = (folder / "dupid.jsonl").read_text().splitlines()
  assert len({json.loads(line)["id"] for line in lines}) == 1
