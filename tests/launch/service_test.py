"""A TPU VM from its creation to the end of a run, with stand-ins.

gcloud runs what it is told in a folder that stands for the host's home; uv,
sudo and systemctl do there what the launchers need of them.
"""

from __future__ import annotations

import os
import shutil
import subprocess

import pytest

pytestmark = pytest.mark.skipif(
  shutil.which("bash") is None, reason="needs bash"
)

STUBS = {
  "gcloud": """
    echo "$*" >> "$RECORD"
    export HOME=$HOST
    cd "$HOME"
    case "$*" in
      *" scp "*) cp "$5" "$HOME/${6#*:}" ;;
      *) for last; do true; done; bash -c "$last" ;;
    esac
  """,
  "uv": """
    echo "uv $*" >> "$RECORD"
    if [[ $1 == venv ]]; then
      mkdir -p "$4/bin"; cp "$(type -P true)" "$4/bin/python"
    else
      cp "$STUBS/mico-jax" "$(dirname "$4")/mico-jax"
    fi
  """,
  # The run: ends with the statuses of a file, one after the other.
  "mico-jax": """
    echo "run $MICO_JAX_COORDINATOR: $*"
    echo "mico-jax $*" >> "$RECORD"
    code=$(head -n 1 "$CODES")
    sed -i 1d "$CODES"
    exit "${code:-0}"
  """,
  "sudo": """
    case "$1" in
      tee) cat > "$HOST/unit" ;;
      *) "$@" ;;
    esac
  """,
  "systemctl": """
    echo "systemctl $*" >> "$RECORD"
    case "$1" in
      is-active) [[ -e $HOST/active ]] ;;
      cat) [[ -e $HOST/unit ]] ;;
      start)
        code=0
        bash "$HOST/.mico_jax_service.sh" >> "$HOST/mico_jax.log" 2>&1 ||
          code=$?
        echo "$code" > "$HOST/status"
        EXIT_STATUS=$code bash -c "$(sed -n \
          "s/^ExecStopPost=+.bin.sh -c '\\(.*\\)'$/\\1/p" "$HOST/unit" |
          sed 's/\\$\\$/$/g')"
        ;;
      show) [[ $3 == MainPID ]] && echo 0 || cat "$HOST/status" ;;
    esac
  """,
  "sleep": "exit 0",
}


@pytest.fixture
def pod(checkout, tmp_path):
  """Runs `tpu_pod.sh`; returns its result and what the stand-ins were told."""
  stubs, host = tmp_path / "stubs", tmp_path / "host"
  stubs.mkdir()
  host.mkdir()
  for name, text in STUBS.items():
    (stubs / name).write_text(f"#!/usr/bin/env bash\n{text}")
    (stubs / name).chmod(0o755)
  root = checkout()
  codes, record = tmp_path / "codes", tmp_path / "record"

  def run(action: str, *arguments: str, codes_of_runs: tuple[int, ...] = ()):
    codes.write_text("".join(f"{x}\n" for x in codes_of_runs))
    record.write_text("")
    rest = ["--", *arguments] if arguments else []
    done = subprocess.run(
      ["bash", str(root / "launch/tpu_pod.sh"), action, "--tpu", "pod",
       "--zone", "z", *rest],
      env={
        "PATH": f"{stubs}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "TMPDIR": str(tmp_path),
        "HOST": str(host),
        "STUBS": str(stubs),
        "RECORD": str(record),
        "CODES": str(codes),
      },
      capture_output=True,
      text=True,
      timeout=60,
      check=False,
    )  # fmt: skip
    return done, record.read_text()

  run.host = host  # type: ignore[attr-defined]
  return run


def test_a_new_host_is_set_up_and_runs(pod):
  done, told = pod("run", "--config", "demo", "--config.name=a b's")
  assert done.returncode == 0, done.stderr
  assert "no installation" in done.stderr
  assert "nothing is uncommitted" in done.stderr
  install = next(x for x in told.splitlines() if x.startswith("uv pip"))
  assert install.endswith(f"--editable {pod.host}/mico_jax[tpu,gcs]")
  assert f"--constraint {pod.host}/mico_jax/launch/constraints.txt" in install
  assert "mico-jax pretrain --config demo --config.name=a b's" in told
  assert "run auto: pretrain" in done.stdout  # the host's log, followed
  # Nothing of it stays on this machine.
  assert not list(pod.host.parent.glob("mico_jax.*"))
  # Again, the host has its installation; a recreated one has nothing.
  _, told = pod("run", "--config", "demo")
  assert "uv" not in told
  shutil.rmtree(pod.host)
  pod.host.mkdir()
  done, told = pod("run", "--config", "demo")
  assert done.returncode == 0, done.stderr
  assert "uv venv" in told


def test_the_service_starts_with_the_host_until_it_is_done(pod):
  done, told = pod("run", "--config", "x", codes_of_runs=(75, 1, 0))
  assert done.returncode == 0
  assert told.count("mico-jax pretrain") == 3
  assert "systemctl enable mico_jax.service" in told
  assert told.rstrip().count("systemctl disable mico_jax.service") == 1
  unit = (pod.host / "unit").read_text()
  assert "WantedBy=multi-user.target" in unit
  assert f"StandardError=append:{pod.host}/mico_jax.log" in unit


def test_a_mistake_is_final(pod):
  done, told = pod("run", "--config", "x", codes_of_runs=(2, 0))
  assert done.returncode == 2
  assert told.count("mico-jax pretrain") == 1
  assert "systemctl disable mico_jax.service" in told


def test_restarts_are_capped(pod):
  """Ten failures within a minute each; it may start again with the host."""
  done, told = pod("run", "--config", "x", codes_of_runs=(75,) * 200)
  assert done.returncode == 75
  assert told.count("mico-jax pretrain") == 10
  assert "systemctl disable" not in told
  done, _ = pod("logs")
  assert "giving up" in done.stdout


def test_a_run_is_not_changed_under_way(pod):
  pod("setup")
  (pod.host / "active").touch()
  done, told = pod("setup")
  assert done.returncode == 2
  assert "a run is going on" in done.stderr
  assert "uv" not in told
  done, told = pod("run", "--config", "x")
  assert done.returncode == 2
  assert "a run is going on" in done.stderr
  assert "mico-jax pretrain" not in told


def test_stop(pod):
  pod("setup")
  done, told = pod("stop")
  assert done.returncode == 0
  assert "disable" not in told  # nothing was started
  pod("run", "--config", "x")
  done, told = pod("stop")
  assert done.returncode == 0
  assert "systemctl disable --now mico_jax.service" in told


def test_systemd_takes_the_service(repository, tmp_path):
  analyze = shutil.which("systemd-analyze")
  if analyze is None:
    pytest.skip("needs systemd-analyze")
  done = subprocess.run(
    ["bash", str(repository / "launch/service.sh"), "start", "--dry-run", "--",
     "--config", "x"],
    capture_output=True, text=True, check=True,
  )  # fmt: skip
  mark = "/etc/systemd/system/mico_jax.service: "
  lines = [x for x in done.stdout.splitlines() if x.startswith(mark.strip())]
  unit = tmp_path / "mico_jax.service"
  unit.write_text("".join(f"{x.removeprefix(mark)}\n" for x in lines))
  found = subprocess.run(
    [analyze, "verify", str(unit)], capture_output=True, text=True, check=False
  )
  if "Failed to" in found.stderr and "mico_jax" not in found.stderr:
    pytest.skip("systemd-analyze does not work here")
  assert found.returncode == 0, found.stderr
  assert "mico_jax.service" not in found.stderr, found.stderr


def test_gke_runs_the_digest_of_what_it_built(checkout, tmp_path):
  yaml = pytest.importorskip("yaml")
  root, stubs = checkout(), tmp_path / "stubs"
  (root / "new").write_text("not committed")
  stubs.mkdir()
  (stubs / "docker").write_text(
    "#!/usr/bin/env bash\n"
    f'echo "$*" >> {tmp_path}/told\n'
    f"[[ $1 != build ]] || tar tf - > {tmp_path}/shipped\n"
    "[[ $1 != image ]] || printf '%s\\n' other/mico_jax@sha256:00 "
    "hub:5000/mico_jax@sha256:12ab\n"
  )
  (stubs / "docker").chmod(0o755)
  done = subprocess.run(
    ["bash", str(root / "launch/gke.sh"), "--name", "g", "--accelerator", "a",
     "--topology", "4x4", "--hosts", "4", "--image", "hub:5000/mico_jax:v1",
     "--build", "--", "--config", "demo"],
    env={"PATH": f"{stubs}:{os.environ['PATH']}", "TMPDIR": str(tmp_path),
         "HOME": str(tmp_path)},
    capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert "1 uncommitted, NOT included" in done.stderr
  shipped = (tmp_path / "shipped").read_text().split()
  assert "launch/Dockerfile" in shipped
  assert "new" not in shipped
  told = (tmp_path / "told").read_text().splitlines()
  assert [x.split()[0] for x in told] == ["build", "push", "image"]
  (job,) = yaml.safe_load(done.stdout)["spec"]["replicatedJobs"]
  (container,) = job["template"]["spec"]["template"]["spec"]["containers"]
  assert container["image"] == "hub:5000/mico_jax@sha256:12ab"
