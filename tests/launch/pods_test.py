"""What the launchers of clusters would run, with stand-ins for their tools."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess

import pytest

pytestmark = pytest.mark.skipif(
  shutil.which("bash") is None, reason="needs bash"
)

STUB = """#!/usr/bin/env bash
{ printf '%q ' "$(basename "$0")" "$@"; echo; } >> "$RECORD"
if [[ $(basename "$0") == scontrol && $1 == show ]]; then echo nodeA; fi
if [[ $(basename "$0") == kubectl ]]; then cat >> "$RECORD"; fi
if [[ $(basename "$0") == srun ]]; then env | grep MICO_JAX >> "$RECORD"; fi
exit "${STUB_CODE:-0}"
"""


@pytest.fixture
def launch(repository, tmp_path):
  """Runs a launcher; returns its result and what the stand-ins were told."""
  folder = tmp_path / "bin"
  folder.mkdir()
  for name in ("gcloud", "kubectl", "srun", "scontrol", "uv", "git", "curl"):
    (folder / name).write_text(STUB)
    (folder / name).chmod(0o755)
  record = tmp_path / "record"

  def run(script: str, *arguments: str, **environment: str):
    record.write_text("")
    done = subprocess.run(
      ["bash", str(repository / "launch" / script), *arguments],
      env={
        "PATH": f"{folder}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "TMPDIR": str(tmp_path),
        "RECORD": str(record),
        **environment,
      },
      capture_output=True,
      text=True,
      timeout=60,
      check=False,
    )
    return done, record.read_text()

  return run


POD = ("--tpu", "pod", "--zone", "us-x1-a", "--project", "p")


@pytest.mark.parametrize("action", ["setup", "run", "doctor", "stop"])
def test_tpu_dry_run_prints_exactly_what_runs(launch, action):
  arguments = (action, *POD, "--", "--config", "demo", "--config.name=a b")
  dry, told = launch("tpu_pod.sh", *arguments[:7], "--dry-run", *arguments[7:])
  assert dry.returncode == 0, dry.stderr
  assert told == ""
  real, told = launch("tpu_pod.sh", *arguments)
  assert real.returncode == 0, real.stderr
  words = [shlex.split(line) for line in told.splitlines()]
  planned = [shlex.split(line) for line in dry.stdout.splitlines()]
  planned = [line for line in planned if line[0] in ("gcloud", "git")]
  assert len(words) == len(planned) >= 1
  for told_line, line in zip(words, planned, strict=True):
    # The name of the archive is drawn anew.
    assert [w for w in told_line if "mico_jax." not in w] == [
      w for w in line if "mico_jax." not in w
    ]


def test_tpu_commands(launch):
  _, told = launch("tpu_pod.sh", "run", *POD, "--", "--config.name=a b")
  (line,) = (shlex.split(x) for x in told.splitlines())
  assert line[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "pod"]
  assert "--worker=all" in line
  inner = line[line.index("--command") + 1]
  assert inner.startswith(
    "MICO_JAX_COORDINATOR=auto mico_jax/launch/restart.sh"
  )
  assert shlex.split(inner)[-2:] == ["pretrain", "--config.name=a b"]
  _, told = launch("tpu_pod.sh", "doctor", *POD, "--hosts", "64")
  assert "doctor\\ --pod\\ --hosts\\ 64" in told


def test_mistakes_end_with_two(launch):
  for arguments in (
    ("fly", *POD),
    ("run", "--tpu", "x"),
    ("run", *POD, "--config", "demo"),
  ):
    done, _ = launch("tpu_pod.sh", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("launch/tpu_pod.sh: ")
  done, _ = launch("gke.sh", "--name", "Upper", "--", "x")
  assert done.returncode == 2
  done, _ = launch("setup.sh", "--extra", "gpu")
  assert done.returncode == 2


def test_setup_installs_its_own_python(launch, repository, tmp_path):
  dry, _ = launch("setup.sh", "--dry-run", "--pinned")
  real, told = launch("setup.sh", "--pinned")
  assert real.returncode == 0, real.stderr
  planned = [shlex.split(x)[1:] for x in dry.stdout.splitlines()]
  assert planned == [shlex.split(x)[1:] for x in told.splitlines()]
  assert planned[0][:3] == ["venv", "--python", "3.12"]
  assert f"{repository}[tpu]" in planned[1]
  assert str(repository / "launch/constraints.txt") in planned[1]


GKE = ("--name", "g14", "--accelerator", "tpu-v5-lite-podslice",
       "--topology", "16x16", "--hosts", "64")  # fmt: skip


def test_gke_writes_a_job_set(launch):
  yaml = pytest.importorskip("yaml")
  arguments = (*GKE, "--slices", "2", "--", "--config.name=it's")
  done, _ = launch("gke.sh", *arguments)
  assert done.returncode == 0, done.stderr
  found = yaml.safe_load(done.stdout)
  assert found["kind"] == "JobSet"
  (job,) = found["spec"]["replicatedJobs"]
  assert job["replicas"] == 2
  spec = job["template"]["spec"]
  assert spec["parallelism"] == spec["completions"] == 64
  pod = spec["template"]["spec"]
  assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "16x16"
  (container,) = pod["containers"]
  assert container["resources"]["limits"]["google.com/tpu"] == 4
  (script,) = container["args"]
  assert shlex.split(script)[-1] == "--config.name=it's"
  assert "uv venv --python 3.12" in script
  assert "'mico-jax[tpu]'" in script or "mico-jax\\[tpu\\]" in script


def test_gke_apply(launch):
  arguments = (*GKE, "--apply", "--", "--config", "demo")
  dry, told = launch("gke.sh", "--dry-run", *arguments)
  assert told == ""
  assert dry.stdout.endswith("# kubectl apply -f -\n")
  _, told = launch("gke.sh", *arguments)
  head, _, rest = told.partition("\n")
  assert head.split() == ["kubectl", "apply", "-f", "-"]
  assert dry.stdout.startswith(rest)


SLURM = {
  "SLURM_JOB_ID": "20007",
  "SLURM_NNODES": "4",
  "SLURM_JOB_NODELIST": "node[A-D]",
}


def test_slurm_job(launch):
  arguments = ("--config", "demo", "--workdir", "/shared/a b")
  dry, told = launch("slurm.sbatch", "--dry-run", *arguments, **SLURM)
  assert told.split() == ["scontrol", "show", "hostnames", "node\\[A-D\\]"]
  real, told = launch("slurm.sbatch", *arguments, **SLURM)
  assert real.returncode == 0, real.stderr
  _, srun, *variables = told.splitlines()
  assert sorted(variables) == [
    "MICO_JAX_COORDINATOR=nodeA:20007",
    "MICO_JAX_NUM_PROCESSES=4",
  ]
  words = shlex.split(srun)
  assert shlex.split(dry.stdout)[3:] == words
  assert words[-5:] == ["pretrain", *arguments]
  assert "MICO_JAX_PROCESS_ID=$SLURM_PROCID" in srun.replace("\\", "")


@pytest.mark.parametrize(("code", "queued"), [("2", False), ("75", True)])
def test_slurm_job_is_queued_again(launch, tmp_path, code, queued):
  scontrol = tmp_path / "bin" / "scontrol"
  text = scontrol.read_text().replace('exit "${STUB_CODE:-0}"', "exit 0")
  scontrol.write_text(text)
  done, told = launch("slurm.sbatch", "--config", "x", **SLURM, STUB_CODE=code)
  assert done.returncode == int(code)
  assert ("scontrol requeue 20007" in told) == queued


def test_slurm_dry_run_outside_a_job(launch):
  done, _ = launch("slurm.sbatch", "--dry-run", "--config", "demo")
  assert done.returncode == 0
  assert "MICO_JAX_COORDINATOR=node1:20001" in done.stdout


def test_every_launcher_is_clean(repository):
  shellcheck = shutil.which("shellcheck")
  if shellcheck is None:
    pytest.skip("needs shellcheck")
  folder = repository / "launch"
  scripts = sorted([*folder.glob("*.sh"), *folder.glob("*.sbatch")])
  assert len(scripts) >= 6
  done = subprocess.run(
    [shellcheck, *map(str, scripts)],
    capture_output=True,
    text=True,
    check=False,
  )
  assert done.returncode == 0, done.stdout
