"""Where `mico-jax pretrain` keeps compiled programs for the next start."""

from __future__ import annotations

import io
import os

import jax
import numpy as np
import pytest

from mico_jax.cli.main import main
from mico_jax.testing import tiny_checkpoint

NAMES = (
  "jax_compilation_cache_dir",
  "jax_persistent_cache_min_compile_time_secs",
)


@pytest.fixture
def kept(tmp_path, monkeypatch):
  """Runs the command up to the training; returns the folder it set."""
  before = {name: getattr(jax.config, name) for name in NAMES}
  (tmp_path / "tiny.py").write_text(tiny_checkpoint.CONFIG_FILE)
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
  found = []

  def seen(*_, **__):
    found.append(jax.config.jax_compilation_cache_dir)
    raise SystemExit(0)

  monkeypatch.setattr("mico_jax.run.pretrain.pretrain", seen)

  def run(backend: str, *arguments: str, **environment: str) -> str | None:
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    for name, value in environment.items():
      monkeypatch.setenv(name, value)
    jax.config.update(NAMES[0], environment.get("JAX_COMPILATION_CACHE_DIR"))
    with pytest.raises(SystemExit):
      main(["pretrain", "--config", str(tmp_path / "tiny.py"), *arguments])
    return found.pop()

  yield run
  for name, value in before.items():
    jax.config.update(name, value)


@pytest.mark.parametrize(
  ("workdir", "folder"),
  [
    ("gs://bucket/runs/g14", "gs://bucket/runs/compiled"),
    ("gs://bucket/g14/", "gs://bucket/compiled"),
    ("s3://bucket/a/b", "s3://bucket/a/compiled"),
    ("gs://bucket", "{cache}/mico_jax/compiled"),
    ("runs/g14", "{cache}/mico_jax/compiled"),
    ("/shared/g14", "{cache}/mico_jax/compiled"),
  ],
)
def test_accelerators_keep_programs_outside_the_workdir(
  kept, tmp_path, workdir, folder
):
  wanted = folder.format(cache=tmp_path / "cache")
  assert kept("tpu", "--workdir", workdir) == wanted
  assert kept("gpu", "--workdir", workdir) == wanted


def test_programs_of_a_cpu_are_not_kept(kept):
  assert kept("cpu", "--workdir", "runs/g14") is None


def test_what_the_user_says_comes_first(kept):
  own = "--config.train.compilation_cache=own"
  assert kept("cpu", own) == "own"
  assert kept("tpu", JAX_COMPILATION_CACHE_DIR="other") == "other"
  assert os.environ["JAX_COMPILATION_CACHE_DIR"] == "other"
  assert kept("tpu", own) == "own"
  assert not kept("tpu", JAX_COMPILATION_CACHE_DIR="")


def test_commands_that_use_a_checkpoint_keep_their_programs(
  tmp_path, monkeypatch, capsys
):
  before = {name: getattr(jax.config, name) for name in NAMES}
  run, home = tmp_path / "run", tmp_path / "cache"
  tiny_checkpoint.save_tiny(run)
  monkeypatch.setenv("XDG_CACHE_HOME", str(home))
  monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
  (tmp_path / "a.npy").write_bytes(npy(np.zeros((20, 20, 3), np.uint8)))
  words = ["score", "--checkpoint", str(run), "--check", "off", "--text", "a"]
  try:
    jax.config.update(NAMES[0], None)
    assert main([*words, f"image:{tmp_path / 'a.npy'}"]) == 0
    folder = jax.config.jax_compilation_cache_dir
    assert folder.startswith(str(home / "mico_jax" / "compiled" / "cpu-"))
    other = [*words, str(tmp_path / "b.png"), str(tmp_path / "c.png")]
    capsys.readouterr()
    monkeypatch.setattr("mico_jax.inference.omni_model.load", None)
    assert main(other) == 2  # before anything is loaded
    assert "No such file" in capsys.readouterr().err
  finally:
    for name, value in before.items():
      jax.config.update(name, value)


def npy(array):
  file = io.BytesIO()
  np.save(file, array)
  return file.getvalue()
