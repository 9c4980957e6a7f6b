"""Ids may repeat: a sample is what its source and index say."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from mico_jax.config import InputConfig, SourceConfig
from mico_jax.data.bad_samples import read_bad_samples
from mico_jax.data.pipeline import Pipeline, trace
from mico_jax.data.sources import open_source
from mico_jax.data.tokenizer import make_tokenizer
from mico_jax.testing.tiny_data import (
  config_of,
  manifest_source,
  png,
  wav,
  write_manifest,
  write_tar,
)


def _equal_ids(tmp_path, n=8):
  return manifest_source(write_manifest(tmp_path, n, id=["same"] * n))


def _shards(tmp_path):
  """Two shards that both start at 0000."""
  for shard in range(2):
    members = []
    for i in range(4):
      members.append((f"{i:04d}.png", png(20 * (4 * shard + i))))
      members.append((f"{i:04d}.txt", b"a small cube"))
    write_tar(tmp_path / f"shard{shard}.tar", members)
  return SourceConfig(kind="webdataset", path=str(tmp_path / "shard*.tar"))


def _values(config, work="", end_step=4):
  tokenizer = make_tokenizer(config.data.tokenizer)
  return [
    batch["inputs"]["image"][:, 0, 0, 0, 0].tolist()
    for _, _, batch in Pipeline(
      config, tokenizer, workdir=work, end_step=end_step
    )
  ]


@pytest.mark.parametrize("make", [_equal_ids, _shards])
def test_the_cache_keeps_samples_of_one_id_apart(tmp_path, make):
  source = make(tmp_path)
  plain = _values(config_of(a=source, groups=("ti",)))
  cached = _values(config_of(a=source, groups=("ti",), data={"cache_mib": 64}))
  assert cached == plain
  assert sorted(plain[0] + plain[1]) == [20 * i for i in range(8)]


def test_sources_of_equal_ids_are_apart(tmp_path):
  one = manifest_source(write_manifest(tmp_path / "one"))
  other = manifest_source(write_manifest(tmp_path / "other"))
  for i in range(8):
    (tmp_path / "other" / f"{i}.png").write_bytes(png(20 * i + 1))
  for cache in (0, 64):
    config = config_of(
      a=one, b=other, groups=("ti",), data={"cache_mib": cache}
    )
    seen = np.ravel(_values(config, end_step=4))
    assert sorted(seen.tolist()) == sorted(
      [20 * i for i in range(8)] + [20 * i + 1 for i in range(8)]
    )


def test_equal_ids_are_counted_and_named(tmp_path, capsys):
  open_source(config_of(a=_equal_ids(tmp_path)), "a")
  said = capsys.readouterr().err
  assert "source 'a': 1 id occurs up to 8 times (same)" in said
  open_source(config_of(w=_shards(tmp_path)), "w")
  said = capsys.readouterr().err
  assert "source 'w': 4 ids occur twice (0000, 0001, 0002, ...)" in said
  assert said.count("\n") == 1
  path = write_manifest(tmp_path / "apart")
  open_source(config_of(a=manifest_source(path)), "a")
  assert not capsys.readouterr().err


def test_bad_samples_and_trace_say_the_index(tmp_path):
  source = _equal_ids(tmp_path)
  (tmp_path / "3.png").write_bytes(b"broken")
  config = config_of(a=source, groups=("ti",), data={"max_bad_fraction": 0.5})
  work = tmp_path / "run"
  values = _values(config, work, end_step=2)
  (entry,) = read_bad_samples(str(work))
  assert (entry["index"], entry["id"], entry["substitute"]) == (
    *(3, "same", "same"),
  )
  for step in range(2):
    for row in trace(config, step, work)[1]:
      assert values[step][row.row] == 20 * row.index
      assert row.id == "same"
      assert row.asked == (3 if row.substituted else row.index)


def test_samples_of_one_id_are_augmented_apart(tmp_path):
  sounds = [wav(8000)] * 8
  write_tar(
    tmp_path / "t.tar", [(f"{i}.wav", data) for i, data in enumerate(sounds)]
  )
  path = write_manifest(
    tmp_path, id=["same"] * 8, audio=[f"t.tar:{i}.wav" for i in range(8)]
  )
  config = config_of(a=manifest_source(path), groups=("ta",), batch=8)
  inputs = {"audio": InputConfig(frames=1, mode="spec_augment")}
  data = dataclasses.replace(config.data, inputs=inputs)
  config = dataclasses.replace(config, data=data)
  tokenizer = make_tokenizer(config.data.tokenizer)
  ((_, _, batch),) = Pipeline(config, tokenizer, end_step=1)
  drawn = {sound.tobytes() for sound in batch["inputs"]["audio"]}
  assert len(drawn) == 8
