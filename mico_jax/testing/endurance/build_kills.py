"""Kills `mico-jax data build` at random and compares what comes out.

  python -m mico_jax.testing.endurance.build_kills --clips 200 --kills 10

Raw videos are built once undisturbed and once with SIGKILL to the process, or
to it and its workers, at random moments. After each kill the same command is
started again. Both folders must hold the same files with the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

from mico_jax.testing.raw_videos import write_videos

_PATIENCE = 900.0  # s of a build, on a machine that does other things too


def command(raw: pathlib.Path, out: pathlib.Path, shards: int) -> list[str]:
  """A build of several stages in two workers."""
  return [
    *(sys.executable, "-m", "mico_jax", "data", "build", "--videos", str(raw)),
    *("--stages", "shots,clips,h264,audio", "--set", "clips.min_seconds=0.5"),
    *("--shards", str(shards), "--processes", "2", "--json"),
    *("--out", str(out)),
  ]


def start(argv: Sequence[str], log: Any) -> subprocess.Popen[bytes]:
  """The command in a process group of its own."""
  env = {**os.environ, "JAX_PLATFORMS": "cpu"}
  return subprocess.Popen(
    argv, stdout=log, stderr=log, env=env, start_new_session=True
  )


def digests(folder: pathlib.Path) -> dict[str, str]:
  """Name -> SHA-256 of every file."""
  return {
    path.name: hashlib.sha256(path.read_bytes()).hexdigest()
    for path in sorted(folder.iterdir())
  }


def statuses(folder: pathlib.Path) -> int:
  """Units that are done, as far as names tell."""
  return len(list(folder.glob("*.status.parquet")))


def wait_for_part(
  process: subprocess.Popen[bytes], out: pathlib.Path, done: int
) -> None:
  """Returns when a unit is being written and `done` are, or at the end."""
  while process.poll() is None and (
    statuses(out) < done or not list(out.glob("*.part"))
  ):
    time.sleep(0.005)


def killed(
  argv: Sequence[str],
  out: pathlib.Path,
  kills: int,
  shards: int,
  seconds: float,
  seed: int,
  log: Any,
) -> list[dict[str, Any]]:
  """Runs a build to its end through some kills; what each one met.

  Args:
    argv: of the build.
    out: its folder.
    kills: each after a unit began to be written; fewer where the build was
      quicker.
    shards: of the build.
    seconds: that it takes undisturbed, from its first unit on.
    seed: of the moments.
    log: file of the output.

  Raises:
    RuntimeError: if the build ends with an error.
  """
  rng, events = random.Random(seed), []
  while True:
    process = start(argv, log)
    deadline = time.monotonic() + _PATIENCE
    if len(events) < kills:
      before = statuses(out)
      wait_for_part(process, out, len(events) * shards // kills)
      time.sleep(rng.uniform(0, 0.4 * seconds / shards))
      if process.poll() is None:
        whole = rng.random() < 0.5
        send = os.killpg if whole else os.kill
        send(process.pid, signal.SIGKILL)
        process.wait()
        parts = len(list(out.glob("*.part")))
        done = statuses(out)
        events.append(
          {"whole": whole, "before": before, "done": done, "parts": parts}
        )
        continue
    status = process.wait(timeout=max(1.0, deadline - time.monotonic()))
    if status:
      raise RuntimeError(f"the build ended with status {status}; see its log.")
    return events


def compare(
  folder: pathlib.Path, clips: int, kills: int, shards: int, seed: int
) -> dict[str, Any]:
  """Builds twice; what happened, and whether the bytes are the same.

  Args:
    folder: where everything is written.
    clips: of two shots a video.
    kills: see `killed`.
    shards: of each build.
    seed: of the moments.

  Raises:
    RuntimeError: if a build fails.
  """
  raw, calm, wild = (folder / name for name in ("raw", "calm", "killed"))
  write_videos(raw, -(-clips // 2), 2.0)
  with open(folder / "log.txt", "w") as log:
    process = start(command(raw, calm, shards), log)
    wait_for_part(process, calm, 0)
    begin = time.monotonic()
    if process.wait(timeout=_PATIENCE):
      raise RuntimeError(f"the first build failed; see {folder / 'log.txt'}.")
    seconds = time.monotonic() - begin
    argv = command(raw, wild, shards)
    events = killed(argv, wild, kills, shards, seconds, seed, log)
  return {
    "clips": clips,
    "shards": shards,
    "seconds": round(seconds, 1),
    "kills": events,
    "files": len(digests(calm)),
    "same": digests(calm) == digests(wild),
  }


def main(argv: Sequence[str] | None = None) -> int:
  """Prints the comparison as JSON; 0 if the bytes are the same."""
  parser = argparse.ArgumentParser(description=__doc__)
  parser.add_argument("--clips", type=int, default=200)
  parser.add_argument("--kills", type=int, default=10)
  parser.add_argument("--shards", type=int, default=8)
  parser.add_argument("--seed", type=int, default=0)
  args = parser.parse_args(argv)
  folder = pathlib.Path(tempfile.mkdtemp(prefix="build-kills-"))
  result = compare(folder, args.clips, args.kills, args.shards, args.seed)
  if result["same"]:
    shutil.rmtree(folder)
  else:
    print(f"left for a look: {folder}", file=sys.stderr)
  print(json.dumps(result, indent=1))
  return 0 if result["same"] else 1


if __name__ == "__main__":
  sys.exit(main())
