"""Names, numbers and machines that are not there: one line, status 2."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from mico_jax import files
from mico_jax.checkpoint import restore
from mico_jax.checkpoint.manifest import CheckpointError
from mico_jax.cli.main import main
from mico_jax.config import ConfigError
from mico_jax.testing import tiny_checkpoint


def refused(capsys, *arguments, say=""):
  """Ends with status 2 and one line that holds `say`."""
  assert main([str(a) for a in arguments]) == 2
  error = capsys.readouterr().err
  assert len(error.splitlines()) == 1, error
  assert say in error, error


# --------------------------------------------------------------------- names
@pytest.mark.parametrize(
  "arguments",
  [
    ("inspect", "--checkpoint", ""),
    ("inspect", "--config", ""),
    ("pretrain", "--config", "demo", "--init", ""),
    ("pretrain", "--config", "demo", "--workdir", ""),
    ("score", "--checkpoint", "", "--text", "a", "x.png"),
    ("import", "--from", "bert", "x", "--out", "y", "--onto", ""),
    ("import", "--from", "bert", "x", "--out", "y", "--vocab", ""),
    ("trace", "--workdir", "", "--step", "1"),
  ],
)
def test_an_unset_variable_of_the_shell(capsys, arguments):
  refused(capsys, *arguments, say="is empty")


def test_an_empty_name_of_a_place():
  with pytest.raises(ConfigError, match="is empty"):
    files.place("")


# Another test may have made memory:// known.
@pytest.mark.parametrize("scheme", ["ftp", "foo"])
def test_a_store_that_is_unknown(capsys, scheme):
  place = f"{scheme}://x"
  refused(capsys, "trace", "--workdir", place, "--step", 1, say="no store")


def test_a_store_without_credentials(capsys, monkeypatch):
  class NoCredentialsError(Exception):  # as botocore names it
    pass

  def fail(*_):
    raise NoCredentialsError("Unable to locate credentials")

  monkeypatch.setattr(restore, "step_folders", fail)
  refused(capsys, "inspect", "--checkpoint", "s3://x", say="credentials")


def test_a_full_disk_as_tensorstore_says_it(capsys, monkeypatch):
  def fail(*_):
    raise ValueError(
      'RESOURCE_EXHAUSTED: Failed writing: "/x" '
      "[os_error_code='28'] [source locations='a.cc:1']"
    )

  monkeypatch.setattr(restore, "step_folders", fail)
  assert main(["inspect", "--checkpoint", "x"]) == 75
  error = capsys.readouterr().err
  assert error == f"mico-jax: error: {os.strerror(28)}\n"


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="needs /proc")
def test_a_folder_that_takes_no_folders():
  with pytest.raises(FileNotFoundError):
    files.make_folder("/proc/mico_jax/run")


# ------------------------------------------------------------------- numbers
def test_a_profile_that_ends_before_it_begins(capsys):
  arguments = ("pretrain", "--config", "demo", "--profile-steps", "5,2")
  refused(capsys, *arguments, say="ends before it begins")


@pytest.mark.parametrize("number", ["0", "-3", "100000", "x"])
def test_a_number_of_devices(capsys, number):
  arguments = ("inspect", "--config", "demo", "--sharding", "x.png")
  refused(capsys, *arguments, f"--devices={number}", say="--devices")


def test_a_vocabulary_that_the_data_makes(capsys):
  arguments = ("inspect", "--config", "perception/grid_av:/none/manifest.jsonl")
  refused(capsys, *arguments, say="vocab_size=0 takes that of the tokenizer")


@pytest.mark.parametrize("slice_", ["v5e:0x0", "v5e:9x9x9", "v5e:"])
def test_a_slice_that_no_compiler_knows(capsys, slice_):
  pytest.importorskip("libtpu")
  refused(capsys, "bench", "attention", "--aot", slice_, say="no slice")


# ------------------------------------------------------------------- devices
def test_a_run_on_a_platform_that_is_not_there(tmp_path):
  code = (
    "from mico_jax.cli.main import main; "
    "raise SystemExit(main(['pretrain', '--config', 'demo']))"
  )
  found = subprocess.run(
    [sys.executable, "-c", code],
    env={**os.environ, "JAX_PLATFORMS": "nope"},
    cwd=tmp_path,
    capture_output=True,
    text=True,
    check=False,
  )
  assert found.returncode == 2, found.stderr
  assert "Traceback" not in found.stderr
  assert "JAX_PLATFORMS=nope" in found.stderr


# --------------------------------------------------------------------- pipes
@pytest.fixture(scope="module")
def saved(tmp_path_factory):
  root = tmp_path_factory.mktemp("pipes") / "run"
  tiny_checkpoint.save_tiny(root)
  return root


@pytest.mark.parametrize(
  "name",
  [
    "manifest/manifest.json",
    "manifest/manifest.sha256",
    "config/config.json",
    "params/manifest.ocdbt",
  ],
)
def test_a_pipe_is_not_waited_for(saved, tmp_path, name):
  shutil.copytree(saved, tmp_path / "run")
  place = tmp_path / "run" / "checkpoints" / "1" / name
  place.unlink()
  os.mkfifo(place)
  with pytest.raises(CheckpointError):
    restore.open_checkpoint(tmp_path / "run")
