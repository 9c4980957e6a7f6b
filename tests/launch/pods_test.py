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
  for name in ("gcloud", "kubectl", "srun", "scontrol", "uv", "git", "curl",
               "docker"):  # fmt: skip
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


@pytest.mark.parametrize("action", ["setup", "run", "logs", "doctor", "stop"])
def test_tpu_dry_run_prints_exactly_what_runs(launch, action):
  arguments = (action, *POD, "--", "--config", "demo", "--config.name=a b")
  dry, told = launch("tpu_pod.sh", *arguments[:7], "--dry-run", *arguments[7:])
  assert dry.returncode == 0, dry.stderr
  assert told == ""
  real, told = launch("tpu_pod.sh", *arguments)
  assert real.returncode == 0, real.stderr
  words = [shlex.split(line) for line in told.splitlines()]
  words = [line for line in words if line[0] == "gcloud"]
  planned = [shlex.split(line) for line in dry.stdout.splitlines()]
  planned = [line for line in planned if line[0] == "gcloud"]
  assert len(words) == len(planned) >= 1
  for told_line, line in zip(words, planned, strict=True):
    # The name of the archive is drawn anew.
    assert [w for w in told_line if "mico_jax." not in w or " " in w] == [
      w for w in line if "mico_jax." not in w or " " in w
    ]


def test_tpu_commands(launch):
  _, told = launch("tpu_pod.sh", "run", *POD, "--", "--config.name=a b")
  look, start, follow = (shlex.split(x) for x in told.splitlines())
  for line in (look, start, follow):
    assert line[:6] == ["gcloud", "compute", "tpus", "tpu-vm", "ssh", "pod"]
    assert "--worker=all" in line
  inner = start[start.index("--command") + 1]
  assert shlex.split(inner) == [
    *("mico_jax/launch/service.sh", "start", "--", "--config.name=a b"),
  ]
  assert follow[-1] == "mico_jax/launch/service.sh follow"
  _, told = launch("tpu_pod.sh", "doctor", *POD, "--hosts", "64")
  assert "doctor\\ --pod\\ --hosts\\ 64" in told


def test_mistakes_end_with_two(launch):
  for arguments in (
    ("fly", *POD),
    ("run", "--tpu", "x"),
    ("run", *POD, "--config", "demo"),
    ("run", *POD),
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
  told = [shlex.split(x) for x in told.splitlines()]
  assert planned == [x[1:] for x in told if x[0] != "git"]
  assert planned[0][:3] == ["venv", "--python", "3.12"]
  assert f"{repository}[tpu,gcs]" in planned[1]
  assert str(repository / "launch/constraints.txt") in planned[1]


IMAGE = ("--image", "hub/mico_jax:v1")
GKE = ("--name", "g14", "--accelerator", "tpu-v5-lite-podslice",
       "--topology", "16x16", "--hosts", "64")  # fmt: skip


def job_set(text: str):
  """The parsed JobSet and the shell text that a container runs."""
  yaml = pytest.importorskip("yaml")
  found = yaml.safe_load(text)
  (job,) = found["spec"]["replicatedJobs"]
  pod = job["template"]["spec"]["template"]["spec"]
  (container,) = pod["containers"]
  (script,) = container["args"]
  return found, container, script


def test_gke_writes_a_job_set(launch):
  arguments = (*GKE, *IMAGE, "--slices", "2", "--", "--config.name=it's")
  done, _ = launch("gke.sh", *arguments)
  assert done.returncode == 0, done.stderr
  found, container, script = job_set(done.stdout)
  assert found["kind"] == "JobSet"
  (job,) = found["spec"]["replicatedJobs"]
  assert job["replicas"] == 2
  spec = job["template"]["spec"]
  assert spec["parallelism"] == spec["completions"] == 64
  pod = spec["template"]["spec"]
  assert pod["nodeSelector"]["cloud.google.com/gke-tpu-topology"] == "16x16"
  assert container["image"] == "hub/mico_jax:v1"
  assert container["resources"]["limits"]["google.com/tpu"] == 4
  assert shlex.split(script) == [
    *("exec", "mico-jax", "pretrain", "--config.name=it's"),
  ]


def test_gke_ends_the_set_for_mistakes_alone(launch):
  """2 ends it; anything else restarts it, at most so often."""
  done, _ = launch("gke.sh", *GKE, *IMAGE, "--restarts", "7", "--", "x")
  found, container, _ = job_set(done.stdout)
  policy = found["spec"]["failurePolicy"]
  assert policy["maxRestarts"] == 7
  (rule,) = policy["rules"]
  assert rule == {
    "action": "FailJobSet",
    "onJobFailureReasons": ["PodFailurePolicy"],
  }
  (job,) = found["spec"]["replicatedJobs"]
  spec = job["template"]["spec"]
  assert spec["backoffLimit"] == 0
  assert spec["template"]["spec"]["restartPolicy"] == "Never"
  (rule,) = spec["podFailurePolicy"]["rules"]
  assert rule["action"] == "FailJob"
  assert rule["onExitCodes"] == {
    "containerName": container["name"],
    "operator": "In",
    "values": [2],
  }
  done, _ = launch("gke.sh", *GKE, *IMAGE, "--", "x")
  assert job_set(done.stdout)[0]["spec"]["failurePolicy"]["maxRestarts"] == 100


@pytest.mark.parametrize(
  "source",
  ["git+https://host/me/mico_jax@0123abc", "https://host/mico_jax-1-any.whl"],
)
def test_gke_installs_a_pinned_source(launch, tmp_path, source):
  done, _ = launch("gke.sh", *GKE, "--source", source, "--", "--config", "x")
  _, _, script = job_set(done.stdout)
  assert f"mico-jax[tpu,gcs] @ {source};" in shlex.split(script)
  # A failed installation is no mistake of the run: uv's 2 becomes 75.
  (tmp_path / "bin" / "uv").write_text("#!/bin/sh\nexit 2\n")
  path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
  ended = subprocess.run(
    ["bash", "-c", script], env={"PATH": path}, check=False
  )
  assert ended.returncode == 75


@pytest.mark.parametrize(
  "where",
  [
    (),
    ("--source", "mico-jax"),
    ("--source", "mico-jax==0.1.0"),
    ("--source", "git+https://host/me/mico_jax"),
    ("--source", "git+https://host/me/mico_jax@main"),
    ("--source", "git+ssh://git@host/mico_jax"),
    ("--image", "hub/mico_jax"),
    ("--image", "hub:5000/mico_jax"),
    ("--image", "hub/mico_jax:latest"),
    (*IMAGE, "--source", "https://host/a.whl"),
    ("--build", "--source", "https://host/a.whl"),
  ],
)
def test_gke_refuses_what_may_change(launch, where):
  done, told = launch("gke.sh", *GKE, *where, "--", "--config", "demo")
  assert done.returncode == 2, done.stdout
  assert done.stderr.startswith("launch/gke.sh: ")
  assert done.stdout == told == ""


def test_gke_stops_when_the_image_is_not_built(launch):
  arguments = (*GKE, *IMAGE, "--build", "--", "--config", "demo")
  dry, told = launch("gke.sh", "--dry-run", *arguments)
  assert told == ""
  assert "# docker push hub/mico_jax:v1" in dry.stdout
  # The stand-in of git makes no archive for docker to read.
  done, told = launch("gke.sh", *arguments)
  assert done.returncode != 0
  assert "push" not in told


def test_gke_apply(launch):
  arguments = (*GKE, *IMAGE, "--apply", "--", "--config", "demo")
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


@pytest.mark.parametrize(
  ("restarts", "before", "queued"),
  [(None, "99", True), (None, "100", False), ("3", "2", True),
   ("3", "3", False)],
)  # fmt: skip
def test_slurm_restarts_are_capped(launch, tmp_path, restarts, before, queued):
  scontrol = tmp_path / "bin" / "scontrol"
  text = scontrol.read_text().replace('exit "${STUB_CODE:-0}"', "exit 0")
  scontrol.write_text(text)
  cap = {"MICO_JAX_RESTARTS": restarts} if restarts else {}
  done, told = launch(
    "slurm.sbatch", "--config", "x", **SLURM, **cap,
    SLURM_RESTART_COUNT=before, STUB_CODE="75",
  )  # fmt: skip
  assert done.returncode == 75
  assert ("scontrol requeue 20007" in told) == queued
  assert ("giving up" in done.stderr) != queued


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
