"""Evaluating a checkpoint on other samples than it was pinned to."""

from __future__ import annotations

import dataclasses
import shutil

import pytest

import mico_jax
from mico_jax.config import ConfigError
from mico_jax.data.sources import pin_sources
from mico_jax.run.commands.evaluate import evaluate_model
from mico_jax.testing import tiny_checkpoint
from mico_jax.testing.tiny_data import manifest_source, write_manifest


def _checkpoint(folder, path):
  """A tiny checkpoint whose source "test" is pinned to a manifest."""
  step = tiny_checkpoint.save_tiny(folder / "run")
  config = tiny_checkpoint.tiny_config()
  sources = {**config.data.sources, "test": manifest_source(path)}
  config = dataclasses.replace(
    config,
    data=dataclasses.replace(config.data, sources=sources),
    evaluation=dataclasses.replace(config.evaluation, groups=("i",), size=0),
  )
  tiny_checkpoint.resign(step, pin_sources(config))
  return mico_jax.load(str(folder / "run"))


def test_another_manifest_needs_no_pin_of_its_own(tmp_path, capsys):
  first = write_manifest(tmp_path / "first", 5)
  other = write_manifest(tmp_path / "other", 7)
  model = _checkpoint(tmp_path, first)
  assert evaluate_model(model, cheap=True)
  results = evaluate_model(
    model, [f"data.sources.test.path={other}"], cheap=True
  )
  assert results
  said = capsys.readouterr().err
  assert "data source 'test': path given" in said
  assert "do not apply" in said
  # A pin that the user gives holds, and so does the former on the same path.
  with pytest.raises(ConfigError, match="samples was 5, is now 7"):
    evaluate_model(
      model,
      [f"data.sources.test.path={other}", "data.sources.test.count=5"],
      cheap=True,
    )
  shutil.copy(other, first)
  with pytest.raises(ConfigError, match="changed: samples was 5, is now 7"):
    evaluate_model(model, cheap=True)
