"""What the launchers ship of a checkout, and what they say of it."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib

import pytest

pytestmark = pytest.mark.skipif(
  shutil.which("bash") is None, reason="needs bash"
)


def ship(root, *arguments):
  return subprocess.run(
    ["bash", str(root / "launch/checkout.sh"), *map(str, arguments)],
    capture_output=True,
    text=True,
    check=False,
  )


@pytest.fixture
def changed(checkout, tmp_path):
  """A checkout with files changed, new, staged, deleted and ignored."""
  (root := checkout()).joinpath("launch/restart.sh").write_text("changed")
  (root / "new file").write_text("new")
  (root / "staged").write_text("staged")
  subprocess.run(["git", "add", "staged"], cwd=root, check=True)
  (root / "launch/gke.sh").unlink()
  (root / ".git/info/exclude").write_text("ignored\n")
  (root / "ignored").write_text("ignored")
  return root


def members(archive):
  with tarfile.open(archive) as tar:
    return {
      m.name: tar.extractfile(m).read().decode()
      for m in tar.getmembers()
      if m.isfile()
    }


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_the_last_commit_is_shipped(changed, tmp_path, repository, suffix):
  done = ship(changed, tmp_path / f"a.{suffix}")
  assert done.returncode == 0, done.stderr
  head, *lines = done.stderr.splitlines()
  assert "4 uncommitted, NOT included" in head
  assert sorted(x.split(maxsplit=1)[1] for x in lines) == [
    *('"new file"', "launch/gke.sh", "launch/restart.sh", "staged"),
  ]
  found = members(tmp_path / f"a.{suffix}")
  original = (repository / "launch/restart.sh").read_text()
  assert found["launch/restart.sh"] == original
  assert "launch/gke.sh" in found
  assert not {"new file", "staged", "ignored"} & set(found)


@pytest.mark.parametrize("suffix", ["tar", "tar.gz"])
def test_uncommitted_changes_are_shipped_when_asked(changed, tmp_path, suffix):
  done = ship(changed, "--uncommitted", tmp_path / f"a.{suffix}")
  assert done.returncode == 0, done.stderr
  assert "4 uncommitted, included" in done.stderr
  found = members(tmp_path / f"a.{suffix}")
  assert found["launch/restart.sh"] == "changed"
  assert found["new file"] == "new"
  assert found["staged"] == "staged"
  assert "launch/gke.sh" not in found
  assert "ignored" not in found


def test_a_clean_checkout_says_so(checkout, tmp_path):
  root = checkout()
  done = ship(root)
  assert done.returncode == 0
  assert "nothing is uncommitted" in done.stderr
  done = ship(root, "--dry-run", tmp_path / "a.tar")
  assert done.stdout.startswith("git ")
  assert not (tmp_path / "a.tar").exists()


def test_mistakes(checkout, tmp_path):
  root = checkout()
  assert ship(root, "a.zip").returncode == 2
  assert ship(root, "a.tar", "b.tar").returncode == 2
  shutil.rmtree(root / ".git")
  done = ship(root, tmp_path / "a.tar")
  assert done.returncode == 2
  assert "no git checkout" in done.stderr


def test_what_is_shipped_builds_and_installs(checkout, tmp_path, repository):
  """As on a host: out of the archive, without the rest of the checkout."""
  if importlib.util.find_spec("setuptools") is None:
    pytest.skip("needs setuptools")
  names = [x for x in ("pyproject.toml", "setup.py", "README.md", "LICENSE",
                       "mico_jax", "configs")
           if (repository / x).exists()]  # fmt: skip
  root = checkout(*names)
  assert ship(root, tmp_path / "a.tar.gz").returncode == 0
  host = tmp_path / "host"
  host.mkdir()
  with tarfile.open(tmp_path / "a.tar.gz") as tar:
    tar.extractall(host, filter="data")
  wheels = tmp_path / "wheels"
  pip = [sys.executable, "-m", "pip"]
  if subprocess.run([*pip, "--version"], capture_output=True).returncode:
    pytest.skip("needs pip")
  subprocess.run(
    [*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", wheels,
     host],
    check=True,
  )  # fmt: skip
  (wheel,) = wheels.glob("*.whl")
  target = tmp_path / "env"
  subprocess.run(
    [*pip, "install", "-q", "--no-deps", "--target", target, wheel],
    check=True,
  )
  code = (
    "import mico_jax, pathlib; from mico_jax import config; "
    "config.load('demo'); print(pathlib.Path(mico_jax.__file__).parent)"
  )
  done = subprocess.run(
    [sys.executable, "-c", code],
    cwd=tmp_path,
    env={"PYTHONPATH": str(target), "JAX_PLATFORMS": "cpu"},
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stderr
  assert done.stdout.strip() == str(target / "mico_jax")


def test_the_image_has_extras_that_exist(repository):
  text = (repository / "launch/Dockerfile").read_text()
  (names,) = re.findall("^ARG EXTRAS=(.+)$", text, re.MULTILINE)
  project = tomllib.loads((repository / "pyproject.toml").read_text())
  assert "gcs" in names.split(",")
  assert set(names.split(",")) <= set(
    project["project"]["optional-dependencies"]
  )


@pytest.mark.slow
def test_docker_builds_the_image(checkout, tmp_path):
  docker = shutil.which("docker")
  if docker is None or subprocess.run(
    [docker, "info"], capture_output=True, check=False
  ).returncode:  # fmt: skip
    pytest.skip("needs a docker that runs")
  names = ("pyproject.toml", "setup.py", "README.md", "LICENSE", "mico_jax")
  root = checkout(*names, "configs")
  assert ship(root, tmp_path / "a.tar").returncode == 0
  with (tmp_path / "a.tar").open("rb") as archive:
    subprocess.run(
      [docker, "build", "--file", "launch/Dockerfile", "--tag",
       "mico_jax_test", "--build-arg", "EXTRAS=gcs", "-"],
      stdin=archive, check=True,
    )  # fmt: skip
  subprocess.run(
    [docker, "run", "--rm", "mico_jax_test", "mico-jax", "--help"], check=True
  )
