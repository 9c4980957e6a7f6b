"""Batches, their order over processes and restarts, and broken samples."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import subprocess
import sys
import time

import numpy as np
import pytest

from mico_jax.config import ConfigError, SourceConfig, TaskConfig
from mico_jax.data.bad_samples import TooManyBadSamples, read_bad_samples
from mico_jax.data.pipeline import (
  Pipeline,
  StalledDecoder,
  batch_spec,
  evaluation_batches,
  trace,
)
from mico_jax.data.sources import ManifestSource, open_sources, pin_sources
from mico_jax.data.tokenizer import make_tokenizer
from mico_jax.testing.tiny_data import (
  config_of,
  manifest_source,
  write_manifest,
)


@pytest.fixture(scope="module")
def tokenizer():
  return make_tokenizer(config_of().data.tokenizer)


def _omniworld(**options):
  config = config_of(world=SourceConfig(size=50), groups=("tv", "tva"))
  tasks = {
    "a": TaskConfig(
      steps=2,
      sources={"world": 1},
      batch_size=4,
      objectives={"contrastive": ("tv", "tva"), "question_answering": ("tva",)},
    ),
    "b": TaskConfig(
      sources={"world": 1},
      batch_size=2,
      objectives={"contrastive": ("tidn", "tvas")},
    ),
  }
  data = dataclasses.replace(config.data, num_negatives=2, **options)
  return dataclasses.replace(config, tasks=tasks, data=data)


def _digest(batch):
  digest = hashlib.sha256()
  for name in sorted(batch):
    value = batch[name]
    for key in sorted(value) if isinstance(value, dict) else [None]:
      array = value if key is None else value[key]
      digest.update(array.tobytes())
  return digest.hexdigest()


def test_batches_fit_their_spec(tokenizer):
  config = _omniworld()
  tasks = set()
  for _, task, batch in Pipeline(config, tokenizer, end_step=3):
    tasks.add(task)
    spec = batch_spec(config, task)
    assert set(spec) == set(batch)
    for name, node in spec.items():
      items = node.items() if isinstance(node, dict) else [(None, node)]
      for key, shape in items:
        array = batch[name] if key is None else batch[name][key]
        assert array.shape == shape.shape, (name, key)
        assert array.dtype == shape.dtype, (name, key)
    assert all(p.all() for p in batch["present"].values())
    for ids in batch["text"].values():
      assert (ids[:, 0] == tokenizer.info.cls).all()
      assert ((ids == tokenizer.info.sep).sum(1) == 1).all()
    for group, ids in batch["negative_text"].items():
      assert (ids[:, :, 0] == tokenizer.info.cls).all()
      assert (ids != batch["text"][group][:, None]).any(2).all()
  assert tasks == {"a", "b"}


@pytest.mark.parametrize("processes", [2, 4])
def test_same_batches_on_any_topology_after_a_restart(tokenizer, processes):
  config = config_of(world=SourceConfig(size=9), groups=("ti", "tia"))
  want = {s: b for s, _, b in Pipeline(config, tokenizer, end_step=7)}
  for start, end in ((0, 3), (3, 7)):
    parts = [
      Pipeline(
        config,
        tokenizer,
        start_step=start,
        end_step=end,
        rows=lambda size, p=p: range(p, size, processes),
      )
      for p in range(processes)
    ]
    for made in zip(*parts, strict=True):
      step = made[0][0]
      for p, (_, _, batch) in enumerate(made):
        for key, array in batch["inputs"].items():
          np.testing.assert_array_equal(
            array, want[step]["inputs"][key][p::processes]
          )
        for key, ids in batch["text"].items():
          np.testing.assert_array_equal(
            ids, want[step]["text"][key][p::processes]
          )


def test_augmentation_is_keyed_by_the_sample(tmp_path, tokenizer):
  config = config_of(
    a=manifest_source(write_manifest(tmp_path, 4)), batch=4, groups=("ta",)
  )
  config = dataclasses.replace(
    config,
    data=dataclasses.replace(
      config.data,
      inputs={"audio": dataclasses.replace(
        config.data.inputs["video"], frames=1, mode="spec_augment"
      )},
    ),
  )  # fmt: skip
  batches = list(Pipeline(config, tokenizer, end_step=3))
  again = list(Pipeline(config, tokenizer, end_step=3))
  assert [_digest(b) for *_, b in batches] == [_digest(b) for *_, b in again]
  by_id = [
    {r.id: b["inputs"]["audio"][r.row].tobytes() for r in trace(config, s)[1]}
    for s, _, b in batches
  ]
  assert by_id[0].keys() == by_id[1].keys()  # one epoch per step
  assert all(by_id[0][k] != by_id[1][k] for k in by_id[0])


def _broken(tmp_path, n=8, bad=("3.png",)):
  path = write_manifest(tmp_path, n)
  for name in bad:
    (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:40])
  return config_of(
    a=manifest_source(path), data={"max_bad_fraction": 0.5}, groups=("ti",)
  )


def test_broken_samples_are_replaced_and_noted_once(tmp_path, tokenizer):
  config = _broken(tmp_path)
  work = tmp_path / "run"
  whole = list(Pipeline(config, tokenizer, workdir=work, end_step=8))
  lines = (work / "bad_samples.jsonl").read_text().splitlines()
  assert len(lines) == 4  # 8 steps of 4 rows read each of 8 samples 4 times
  entry = json.loads(lines[0])
  assert entry["id"] == "s3"
  assert entry["substitute"] not in ("", "s3")
  assert "not a readable image" in entry["reason"]
  # Steps 4-7 again, as after a kill; then a process that owns half the rows.
  for rows in (None, lambda size: range(0, size, 2)):
    pipeline = Pipeline(
      config, tokenizer, workdir=work, start_step=4, end_step=8, rows=rows
    )
    for (step, _, batch), (want_step, _, want) in zip(
      pipeline, whole[4:], strict=True
    ):
      assert step == want_step
      chosen = batch["row"]
      np.testing.assert_array_equal(
        batch["inputs"]["image"], want["inputs"]["image"][chosen]
      )
  assert (work / "bad_samples.jsonl").read_text().splitlines() == lines
  # Trace names the substitute, and its pixels are those that were trained on.
  task, rows = trace(config, entry["step"], work)
  row = rows[entry["row"]]
  assert (task, row.id, row.substituted) == ("one", "s3", entry["substitute"])
  value = whole[entry["step"]][2]["inputs"]["image"][row.row, 0, 0, 0, 0]
  assert value == 20 * int(row.substituted[1:]) % 256


def test_reading_ahead_notes_nothing(tmp_path, tokenizer):
  config = _broken(tmp_path, bad=("1.png", "2.png", "3.png", "4.png"))
  steps = iter(Pipeline(config, tokenizer, workdir=tmp_path, end_step=12))
  next(steps)
  time.sleep(0.3)
  assert {e["step"] for e in read_bad_samples(str(tmp_path))} <= {0}


def test_too_many_broken_samples_stop_the_run(tmp_path, tokenizer):
  config = _broken(tmp_path, bad=("1.png", "5.png"))
  data = dataclasses.replace(config.data, max_bad_fraction=0.0)
  config = dataclasses.replace(config, data=data)
  with pytest.raises(TooManyBadSamples, match="max_bad_fraction") as error:
    list(Pipeline(config, tokenizer, workdir=tmp_path, end_step=12))
  assert "\n" not in str(error.value)
  assert read_bad_samples(str(tmp_path))


def test_all_samples_broken_is_an_error(tmp_path, tokenizer):
  config = _broken(tmp_path, 2, bad=("0.png", "1.png"))
  with pytest.raises(ConfigError, match="in a row"):
    list(Pipeline(config, tokenizer, end_step=1))


def test_a_cut_line_does_not_spoil_the_next(tmp_path, tokenizer):
  config = _broken(tmp_path)
  file = tmp_path / "bad_samples.jsonl"
  file.write_text('{"step": 0, "ro')
  list(Pipeline(config, tokenizer, workdir=tmp_path, end_step=8))
  assert len(read_bad_samples(str(tmp_path))) == 4


def test_stalled_decoder_names_the_sample(tmp_path, tokenizer):
  config = config_of(
    a=manifest_source(write_manifest(tmp_path)),
    data={"timeout": 0.2},
    groups=("ti",),
  )
  sources = open_sources(config)
  assert isinstance(sources["a"], ManifestSource)
  files = sources["a"]._files
  read = files.read

  def slow(reference, **options):
    if reference == "3.png":
      time.sleep(3)
    return read(reference, **options)

  files.read = slow
  with pytest.raises(StalledDecoder, match=r"s3 .*data\.timeout"):
    list(Pipeline(config, tokenizer, sources=sources, end_step=4))
  reading = evaluation_batches(
    config, "a", batch_size=4, keys=("image",), source=sources["a"]
  )
  with pytest.raises(StalledDecoder, match=r"a\[3\] .*data\.timeout"):
    list(reading)


def test_missing_modality_is_not_present(tmp_path, tokenizer):
  sounds = [None, None, "sound.tar:s1.wav", None]
  path = write_manifest(tmp_path, 4, audio=sounds)
  config = config_of(a=manifest_source(path))
  ((_, _, batch),) = Pipeline(config, tokenizer, end_step=1)
  assert batch["present"]["audio"].sum() == 1
  assert batch["present"]["image"].all()
  rows = batch["inputs"]["audio"][~batch["present"]["audio"]]
  assert (rows == 0).all()


def test_task_that_does_not_fit_its_source(tmp_path, tokenizer):
  config = config_of(
    a=manifest_source(write_manifest(tmp_path)), groups=("tv",)
  )
  with pytest.raises(ConfigError, match=r"sources\.a\.fields"):
    Pipeline(config, tokenizer)


def test_notebooks_have_no_worker_processes(tokenizer, monkeypatch):
  config = config_of(world=SourceConfig(size=4), data={"num_workers": 2})
  monkeypatch.setattr("mico_jax.data.pipeline._in_notebook", lambda: True)
  with pytest.raises(ConfigError, match="num_workers=0"):
    Pipeline(config, tokenizer)


def test_evaluation_batches(tmp_path):
  config = _broken(tmp_path, 7)
  batches = list(
    evaluation_batches(config, "a", batch_size=4, keys=("image", "audio"))
  )
  assert [b["weight"].tolist() for b, _ in batches] == [
    [1, 1, 1, 1],
    [1, 1, 1, 0],
  ]
  # Of the broken one, what is good.
  assert batches[0][0]["present"]["image"].tolist() == [1, 1, 1, 0]
  assert batches[0][0]["present"]["audio"].all()
  (first, _) = evaluation_batches(config, "a", batch_size=4, keys=("image",))
  assert first[0]["weight"].tolist() == [1, 1, 1, 0]
  assert [r and r.id for r in first[1]] == ["s0", "s1", "s2", None]
  ids = [r and r.id for _, found in batches for r in found]
  assert ids == ["s0", "s1", "s2", "s3", "s4", "s5", "s6"]
  assert batches[1][0]["row"].tolist() == [4, 5, 6, 7]


def test_changed_data_is_refused(tmp_path):
  path = write_manifest(tmp_path)
  config = pin_sources(config_of(a=manifest_source(path)))
  assert config.data.sources["a"].count == 8
  open_sources(config)
  path.write_text("\n".join(path.read_text().splitlines()[1:]))
  with pytest.raises(ConfigError, match="changed: samples was 8, is now 7"):
    open_sources(config)


SCRIPT = """
import sys
from mico_jax.config import *
from mico_jax.data.pipeline import Pipeline
from mico_jax.data.tokenizer import make_tokenizer
config = Config(
  model=ModelConfig(vision=VisionConfig(image_size=32, patch_size=16)),
  data=DataConfig(sources={"w": SourceConfig(size=20)},
                  tokenizer=TokenizerConfig(kind="omniworld")),
  tasks={"t": TaskConfig(sources={"w": 1}, batch_size=4,
                         objectives={"contrastive": ("tvadns",)})})
pipeline = Pipeline(config, make_tokenizer(config.data.tokenizer), end_step=1)
((step, task, batch),) = pipeline
assert len(batch["inputs"]) == 5, batch["inputs"].keys()
assert "tensorflow" not in sys.modules and "torch" not in sys.modules
print("fine")
"""


def test_no_device_is_woken(repository):
  """Any JAX call in a data worker would ask for this platform and raise."""
  import os

  done = subprocess.run(
    [sys.executable, "-c", SCRIPT],
    env={**os.environ, "JAX_PLATFORMS": "nonexistent",
         "PYTHONPATH": str(repository)},
    capture_output=True,
    text=True,
    timeout=120,
    check=False,
  )  # fmt: skip
  assert done.stdout.strip() == "fine", done.stderr


@pytest.mark.slow
def test_worker_processes_give_the_same_batches(repository, tmp_path):
  script = tmp_path / "main.py"
  body = (
    SCRIPT.split("config = Config(")[0]
    + f"""
import dataclasses, hashlib
def main():
  config = Config({SCRIPT.split("config = Config(")[1].split("pipeline =")[0]}
  for n in (0, 2):
    config = dataclasses.replace(
      config, data=dataclasses.replace(config.data, num_workers=n))
    h = hashlib.sha256()
    tokenizer = make_tokenizer(config.data.tokenizer)
    for _, _, b in Pipeline(config, tokenizer, end_step=5):
      for k in sorted(b["inputs"]):
        h.update(b["inputs"][k].tobytes())
    print(h.hexdigest())
if __name__ == "__main__":
  main()
"""
  )
  script.write_text(body)
  import os

  done = subprocess.run(
    [sys.executable, str(script)],
    env={**os.environ, "JAX_PLATFORMS": "nonexistent",
         "PYTHONPATH": str(repository)},
    capture_output=True,
    text=True,
    timeout=300,
    check=False,
  )  # fmt: skip
  one, two = done.stdout.split()
  assert one == two, done.stderr
