"""The restart loop, with commands that end in every way."""

from __future__ import annotations

import shutil
import subprocess
import time

import pytest

pytestmark = pytest.mark.skipif(
  shutil.which("bash") is None, reason="needs bash"
)


@pytest.fixture
def restart(repository, tmp_path):
  """Starts the loop over a bash text; $COUNT counts its starts."""
  script = tmp_path / "command"
  count = tmp_path / "count"

  def start(text: str, *options: str) -> subprocess.Popen[str]:
    script.write_text(f'#!/usr/bin/env bash\necho start >> "{count}"\n{text}')
    script.chmod(0o755)
    return subprocess.Popen(
      [
        *("bash", str(repository / "launch/restart.sh"), "--delay", "0"),
        *(*options, "--", str(script)),
      ],
      stderr=subprocess.PIPE,
      text=True,
    )

  start.count = lambda: (  # type: ignore[attr-defined]
    len(count.read_text().splitlines()) if count.exists() else 0
  )
  return start


def test_resumes_until_it_is_done(restart, tmp_path):
  # Lost a peer, hung, was killed, then ends well.
  codes = tmp_path / "codes"
  codes.write_text("75\n76\nkill\n0\n")
  process = restart(
    f"code=$(head -n 1 {codes}); sed -i 1d {codes}\n"
    "[[ $code == kill ]] && kill -KILL $$\nexit $code"
  )
  _, err = process.communicate(timeout=30)
  assert process.returncode == 0
  assert restart.count() == 4
  assert "status 75" in err
  assert "status 137" in err


def test_a_mistake_is_final(restart):
  process = restart("exit 2")
  process.communicate(timeout=30)
  assert process.returncode == 2
  assert restart.count() == 1


@pytest.mark.parametrize(("options", "starts"), [(("-n", "2"), 3), ((), 10)])
def test_gives_up(restart, options, starts):
  process = restart("exit 1", *options)
  _, err = process.communicate(timeout=60)
  assert process.returncode == 1
  assert restart.count() == starts
  assert "giving up" in err


def test_sigterm_is_passed_on_and_final(restart):
  process = restart(
    "trap 'sleep 0.3; exit 143' TERM\nfor _ in $(seq 200); do sleep 0.1; done"
  )
  for _ in range(200):
    if restart.count():
      break
    time.sleep(0.05)
  time.sleep(0.3)
  process.terminate()
  process.communicate(timeout=30)
  assert process.returncode == 143
  assert restart.count() == 1


def test_dry_run(repository):
  done = subprocess.run(
    ["bash", str(repository / "launch/restart.sh"), "--dry-run", "a", "b c"],
    capture_output=True,
    text=True,
    check=True,
  )
  assert done.stdout.strip() == r"a b\ c"
