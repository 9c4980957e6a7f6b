"""A workdir stays bound to its config when the package gets new fields."""

from __future__ import annotations

import json

import pytest

from mico_jax.checkpoint.workdir import claim_workdir
from mico_jax.config import ConfigError
from mico_jax.testing.tiny_checkpoint import tiny_config


def test_fields_that_came_later_are_at_their_defaults(tmp_path):
  config = tiny_config()
  assert not claim_workdir(tmp_path, config)
  path = tmp_path / "config.json"
  stored = json.loads(path.read_text())
  for source in stored["data"]["sources"].values():
    del source["options"]  # as before the field came
  path.write_text(json.dumps(stored))
  assert claim_workdir(tmp_path, config)
  # Another value is no default, and a field that went is named.
  stored["data"]["sources"]["train"]["options"] = {"delimiter": ";"}
  path.write_text(json.dumps(stored))
  with pytest.raises(ConfigError, match=r"sources\.train\.options\.delimiter"):
    claim_workdir(tmp_path, config)
  stored["data"]["sources"]["train"] = {"blur": "red"}
  path.write_text(json.dumps(stored))
  with pytest.raises(ConfigError, match=r"sources\.train\.blur: 'red', now"):
    claim_workdir(tmp_path, config)
