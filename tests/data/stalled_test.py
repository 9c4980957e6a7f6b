"""A decoder that hangs: the start ends, the second time it is quarantined."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest

from mico_jax.data.bad_samples import read_bad_samples
from mico_jax.data.gallery import evaluation_batches
from mico_jax.data.guard import Guard, waiting
from mico_jax.data.pipeline import Pipeline, StalledDecoder, trace
from mico_jax.data.stalled import EVALUATION, Stalled
from mico_jax.data.tokenizer import make_tokenizer
from mico_jax.failures import TransientError
from mico_jax.modalities import MODALITIES
from mico_jax.testing.tiny_data import (
  config_of,
  manifest_source,
  png,
  write_manifest,
)

HANGS = png(60)  # sample 3


@pytest.fixture
def slow(monkeypatch):
  """Decoding sample 3 takes longer than the timeout."""
  image = MODALITIES["image"]

  def decode(raw, geometry):
    if raw == HANGS:
      time.sleep(5)
    return image.decode(raw, geometry)

  monkeypatch.setitem(
    MODALITIES, "image", dataclasses.replace(image, decode=decode)
  )


def _config(tmp_path):
  return config_of(
    a=manifest_source(write_manifest(tmp_path)),
    data={"timeout": 1.0, "max_bad_fraction": 0.5},
    groups=("ti",),
  )


def _start(config, work):
  tokenizer = make_tokenizer(config.data.tokenizer)
  pipeline = Pipeline(config, tokenizer, workdir=work, end_step=2)
  return [b["inputs"]["image"][:, 0, 0, 0, 0].tolist() for *_, b in pipeline]


def test_the_second_stall_quarantines_the_sample(tmp_path, slow):
  config, work = _config(tmp_path), tmp_path / "run"
  with pytest.raises(StalledDecoder, match=r"s3 \(a\[3\]\) .*data\.timeout"):
    _start(config, work)
  assert isinstance(StalledDecoder(), TransientError)  # status 75
  (line,) = (work / "stalled.jsonl").read_text().splitlines()
  noted = json.loads(line)
  assert (noted["source"], noted["index"], noted["id"]) == ("a", 3, "s3")
  assert not noted.get("quarantined")
  assert not read_bad_samples(str(work))
  second = _start(config, work)
  (entry,) = read_bad_samples(str(work))
  assert (entry["id"], entry["index"]) == ("s3", 3)
  assert "quarantined" in entry["reason"]
  assert 60 not in np.ravel(second)
  # From now on it is not read at all, and the same one stands for it.
  began = time.monotonic()
  assert _start(config, work) == second
  assert time.monotonic() - began < 4
  assert len((work / "stalled.jsonl").read_text().splitlines()) == 2
  row = trace(config, entry["step"], work)[1][entry["row"]]
  assert (row.asked, row.substituted) == (3, entry["substitute"])


def test_trace_knows_what_will_be_read_instead(tmp_path):
  config, work = _config(tmp_path), str(tmp_path / "run")
  for _ in range(2):
    stalled = Stalled(work)
    error = StalledDecoder("x")
    error.source, error.index, error.id = "a", 3, "s3"
    stalled.note(error, 0)
  tokenizer = make_tokenizer(config.data.tokenizer)
  list(Pipeline(config, tokenizer, end_step=4, workdir=work))
  told = [trace(config, s, work)[1] for s in range(4)]
  (tmp_path / "run" / "bad_samples.jsonl").unlink()
  assert [trace(config, s, work)[1] for s in range(4)] == told
  assert sum(bool(r.substituted) for rows in told for r in rows) == 2


def test_an_evaluation_quarantines_it_too(tmp_path, slow):
  config, work = _config(tmp_path), str(tmp_path / "run")

  def read():
    ((batch, records),) = evaluation_batches(
      config, "a", batch_size=8, keys=("image",), stalled=Stalled(work)
    )
    return batch["weight"].tolist(), [r and r.id for r in records]

  with pytest.raises(StalledDecoder):
    read()
  weights, ids = read()
  assert weights == [1, 1, 1, 0, 1, 1, 1, 1]
  assert ids == [*("s0", "s1", "s2"), None, *("s4", "s5", "s6", "s7")]
  (*_, last) = (tmp_path / "run" / "stalled.jsonl").read_text().splitlines()
  assert json.loads(last)["step"] == EVALUATION
  began = time.monotonic()
  assert read() == (weights, ids)
  assert time.monotonic() - began < 4


def test_waiting_for_a_store_is_no_stalled_decoder(monkeypatch):
  guard = Guard(0.2)
  guard.at("a", 1)

  def wait():
    with waiting():
      time.sleep(1)
    return "read"

  assert guard.run(wait) == "read"
  monkeypatch.setenv("MICO_JAX_PATIENCE", "0")
  with pytest.raises(TransientError, match=r"a\[1\] was not read") as error:
    guard.run(wait)
  assert not isinstance(error.value, StalledDecoder)


SCRIPT = """
import dataclasses, sys, time
from mico_jax.data import pipeline
from mico_jax.data.tokenizer import make_tokenizer
from mico_jax.failures import TransientError
from mico_jax.modalities import MODALITIES
from mico_jax.testing.tiny_data import config_of, manifest_source, png
image = MODALITIES["image"]
def decode(raw, geometry):
  if raw == png(60):
    time.sleep(60)
  return image.decode(raw, geometry)
MODALITIES["image"] = dataclasses.replace(image, decode=decode)
def main():
  config = config_of(
    a=manifest_source(sys.argv[1]), groups=("ti",),
    data={"timeout": 3.0, "max_bad_fraction": 0.5, "num_workers": 1})
  tokenizer = make_tokenizer(config.data.tokenizer)
  made = pipeline.Pipeline(config, tokenizer, workdir=sys.argv[2], end_step=2)
  try:
    print(len(list(made)), made.bad_samples.count)
  except TransientError as error:
    print(type(error).__name__)
if __name__ == "__main__":
  main()
"""


@pytest.mark.slow
def test_worker_processes_tell_the_run(tmp_path, repository):
  path = write_manifest(tmp_path)
  script = tmp_path / "main.py"
  script.write_text(SCRIPT)
  said = []
  for _ in range(2):
    done = subprocess.run(
      [sys.executable, str(script), str(path), str(tmp_path / "run")],
      env={**os.environ, "PYTHONPATH": str(repository)},
      capture_output=True,
      text=True,
      timeout=300,
      check=False,
    )
    said.append(done.stdout.strip() or done.stderr)
  assert said == ["StalledDecoder", "2 1"]
