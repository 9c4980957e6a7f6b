"""What may pass is waited out; what stays is a bad sample, whatever it is."""

from __future__ import annotations

import builtins
import dataclasses
import errno
import os

import numpy as np
import pytest

from mico_jax import extras, failures
from mico_jax.config import ConfigError
from mico_jax.data import faults
from mico_jax.data.bad_samples import read_bad_samples
from mico_jax.data.faults import guarded
from mico_jax.data.pipeline import Pipeline
from mico_jax.data.sources import open_sources
from mico_jax.data.tokenizer import make_tokenizer
from mico_jax.failures import TransientError
from mico_jax.modalities import MODALITIES, DecodeError
from mico_jax.testing.tiny_data import (
  config_of,
  manifest_source,
  write_manifest,
)


def _raises(error):
  def call():
    raise error

  return call


@pytest.mark.parametrize(
  "error",
  [
    KeyError("x"),
    RecursionError("deep"),
    MemoryError("373 GiB"),
    OverflowError(),
    AssertionError("no"),
    OSError(errno.EIO, "of a decoder, which reads no store"),
  ],
)
def test_content_may_raise_anything(error):
  with pytest.raises(DecodeError) as caught:
    guarded(_raises(error), "image")
  text = str(caught.value)
  assert text.startswith(f"image: {type(error).__name__}")
  assert "\n" not in text


def test_what_is_no_matter_of_the_sample_passes():
  for error in (ConfigError("x"), TransientError("x"), KeyboardInterrupt()):
    with pytest.raises(type(error)) as caught:
      guarded(_raises(error))
    assert caught.value is error
  with pytest.raises(TransientError, match="image: OSError"):
    guarded(_raises(OSError(errno.ESTALE, "x")), "image", reads=True)
  with pytest.raises(DecodeError, match="FileNotFoundError"):
    guarded(_raises(FileNotFoundError(2, "x")), "image", reads=True)


def test_lack_of_memory_is_waited_out_while_there_is_none(monkeypatch):
  left, slept = [3], []

  def allocate():
    if left[0]:
      raise DecodeError("cannot be read") from MemoryError("no room")
    return "done"

  def short():
    left[0] -= 1
    return left[0] > 0

  monkeypatch.setattr(faults, "memory_is_short", short)
  monkeypatch.setattr("time.sleep", slept.append)
  assert guarded(allocate) == "done"
  assert len(slept) == 2
  monkeypatch.setattr(faults, "memory_is_short", lambda: True)
  monkeypatch.setenv(failures.PATIENCE_VARIABLE, "5")
  with pytest.raises(TransientError, match="short of memory for 5 s"):
    guarded(_raises(MemoryError()))
  # Nested calls share the turn of the one that is repeated.
  monkeypatch.setattr(faults, "memory_is_short", lambda: False)
  with pytest.raises(DecodeError, match="MemoryError"):
    guarded(lambda: guarded(_raises(MemoryError())))


def _run(config, work, sources):
  tokenizer = make_tokenizer(config.data.tokenizer)
  pipeline = Pipeline(
    config, tokenizer, workdir=work, end_step=2, sources=sources
  )
  return [batch["inputs"] for _, _, batch in pipeline]


@pytest.fixture
def disk(tmp_path, monkeypatch):
  """A set of eight, and a switch: how many reads fail, and with which errno."""
  config = config_of(a=manifest_source(write_manifest(tmp_path)))
  state = {"left": 0, "errno": errno.EIO, "hits": 0}
  real_open, real_pread = builtins.open, os.pread

  def fails():
    if state["left"]:
      state["left"] -= 1
      state["hits"] += 1
      raise OSError(state["errno"], os.strerror(state["errno"]))

  def flaky_open(path, *args, **kwargs):
    if str(path).endswith((".png", ".tar")):
      fails()
    return real_open(path, *args, **kwargs)

  def flaky_pread(*args):
    fails()
    return real_pread(*args)

  monkeypatch.setattr(builtins, "open", flaky_open)
  monkeypatch.setattr(os, "pread", flaky_pread)
  return config, state


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.ENOSPC])
def test_a_passing_fault_changes_no_sample(tmp_path, disk, monkeypatch, code):
  config, state = disk
  want = _run(config, tmp_path / "good", open_sources(config))
  waits = []
  monkeypatch.setattr("time.sleep", waits.append)
  state.update(left=7, errno=code)
  got = _run(config, tmp_path / "bad", open_sources(config))
  assert state["hits"] == 7
  assert len(waits) >= 7
  assert not read_bad_samples(str(tmp_path / "bad"))
  for one, two in zip(want, got, strict=True):
    for key in one:
      np.testing.assert_array_equal(one[key], two[key])


def test_a_store_that_stays_away_ends_the_start(tmp_path, disk, monkeypatch):
  config, state = disk
  sources = open_sources(config)
  monkeypatch.setenv(failures.PATIENCE_VARIABLE, "0.5")
  state.update(left=10**9)
  with pytest.raises(TransientError, match=r"reading .*still failing after"):
    _run(config, tmp_path / "run", sources)
  assert not read_bad_samples(str(tmp_path / "run"))


@pytest.mark.parametrize("error", [RecursionError("deep"), MemoryError()])
def test_a_decoder_that_raises_is_a_bad_sample(tmp_path, monkeypatch, error):
  config = config_of(
    a=manifest_source(write_manifest(tmp_path)),
    groups=("ti",),
    data={"max_bad_fraction": 0.5},
  )
  image, first = MODALITIES["image"], []

  def decode(raw, geometry):
    first[:] = first or [raw]
    if raw == first[0]:
      raise error
    return image.decode(raw, geometry)

  monkeypatch.setitem(
    MODALITIES, "image", dataclasses.replace(image, decode=decode)
  )
  _run(config, tmp_path / "run", open_sources(config))
  (entry,) = read_bad_samples(str(tmp_path / "run"))
  assert entry["reason"].startswith(f"image: {type(error).__name__}")
  assert entry["modalities"] == ["image"]


def test_a_missing_package_is_no_broken_sample():
  def lacking(name):
    raise ModuleNotFoundError(f"No module named {name!r}", name=name)

  with pytest.raises(ConfigError) as error:
    guarded(lambda: lacking("rdkit"), "graph")
  hint = extras.install("molecules")
  assert str(error.value) == f"graph needs the package rdkit: {hint}."
  # What no extra brings is a matter of the sample's content.
  with pytest.raises(
    DecodeError, match="image: ModuleNotFoundError: No module"
  ):
    guarded(lambda: lacking("anything"), "image")
