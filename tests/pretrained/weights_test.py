"""Weights that come with the package: every door takes their names."""

from __future__ import annotations

import dataclasses
import io
import json
import os
import pathlib
import re
import shutil
import subprocess
import sys
import types
import zipfile

import numpy as np
import pytest

import mico_jax
from mico_jax import pretrained
from mico_jax.checkpoint import named, restore
from mico_jax.checkpoint.manifest import CheckpointError
from mico_jax.cli.main import main
from mico_jax.config import ConfigError
from mico_jax.interop.importing.formats import FORMATS
from mico_jax.testing import tiny_checkpoint
from mico_jax.world import World

NAME = "omniworld-tiny"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
  """A cache folder of these tests alone."""
  folder = tmp_path_factory.mktemp("cache")
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("XDG_CACHE_HOME", str(folder))
    yield folder


@pytest.fixture(scope="module")
def model(cache):
  return mico_jax.load(NAME)


@pytest.fixture
def fresh_cache(tmp_path, monkeypatch):
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  return tmp_path / "cache" / "mico_jax" / named.CACHE
