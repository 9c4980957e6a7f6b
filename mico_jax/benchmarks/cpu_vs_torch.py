"""EVA-01 on the CPU: this package and PyTorch with equal weights and images.

    python -m mico_jax.benchmarks.cpu_vs_torch

Peers are timm's `Eva` class and the `modeling_mico.py` that an export writes.
Each side runs in separate processes, one for each number of threads. The best
number is chosen first, then the sides take turns and the median of their ratios
is printed (below 1: this package is faster). Needs torch and timm.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any, cast

import numpy as np

SIDES = ("jax", "timm", "modeling")
# Only a few of the 40 blocks of g/14, which would take minutes.
SHAPES: dict[str, dict[str, Any]] = {
  "b16": {
    "patch_size": 16,
    "width": 768,
    "depth": 12,
    "num_heads": 12,
    "mlp_dim": 3072,
  },
  "g14": {"depth": 4},
}
PAUSE = 0.25  # seconds between turns, until threads of the last turn sleep


# ------------------------------------------------------------------------ files
def write_weights(folder: pathlib.Path, shape: str, seed: int = 0) -> None:
  """Writes the same random encoder for each side."""
  import jax

  from mico_jax import config as c
  from mico_jax.checkpoint import manifest
  from mico_jax.checkpoint.restore import Checkpoint
  from mico_jax.data.tokenizer import make_tokenizer
  from mico_jax.interop.exporting import export, timm_folder, torch_folder
  from mico_jax.interop.files import safetensors_writer
  from mico_jax.interop.files.tensors import item
  from mico_jax.interop.names import timm_vision
  from mico_jax.models import VISION, build

  vision = dataclasses.replace(VISION["eva01_g14"], **SHAPES[shape])
  model_config = c.ModelConfig(
    vision=vision,
    text=c.TextConfig(
      vocab_size=512, width=64, depth=1, num_heads=1, mlp_dim=64
    ),
    embed_dim=8,
    heads=("t", "v"),
    frame_table={"video": 1},
    scan=False,
  )
  config = c.Config(
    model=model_config,
    data=c.DataConfig(tokenizer=c.TokenizerConfig(kind="omniworld")),
  )
  model, rng = build(model_config), np.random.default_rng(seed)
  params = jax.tree.map(
    lambda s: (0.02 * rng.standard_normal(s.shape)).astype(np.float32),
    model.abstract_params(),
  )
  tokenizer = make_tokenizer(config.data.tokenizer)
  checkpoint = Checkpoint(folder, 0, config, {}, params, "params", {})
  source = export.OpenedCheckpoint(checkpoint, params, tokenizer, model)
  for side in SIDES:
    (folder / side).mkdir()
  torch_folder.write(
    source, folder / "modeling", export.ExportReport("torch", {})
  )
  items = timm_vision.vision_items(params, vision, "timm")
  safetensors_writer.write(folder / "timm", items)
  name, arguments = timm_folder.model(vision)
  about = {"architecture": name, "model_args": arguments}
  export.write_json(folder / "timm" / "config.json", about)
  flat = manifest.flatten({"vision": params["vision"]})
  safetensors_writer.write(
    folder / "jax", [item(name, value) for name, value in flat.items()]
  )
  export.write_json(folder / "jax" / "model.json", c.to_dict(config))


# ---------------------------------------------------------------------- workers
def _jax(folder: pathlib.Path, images: np.ndarray) -> Callable[[], Any]:
  import jax
  import jax.numpy as jnp

  from mico_jax import config as c
  from mico_jax.checkpoint import manifest
  from mico_jax.interop.files import safetensors_file
  from mico_jax.kernels.compiler import forward_options
  from mico_jax.layers.stack import split_layers
  from mico_jax.models import build

  config = c.from_dict(json.loads((folder / "model.json").read_text()))
  model = build(config.model)
  flat = safetensors_file.read(folder / "model.safetensors")
  # Parameters and compiler options as in `mico_jax.load` on a CPU.
  params = jax.tree.map(jnp.asarray, split_layers(manifest.unflatten(flat)))
  run = jax.jit(
    lambda p, x: model.encode(p, "image", x),
    compiler_options=forward_options(),
  )
  x = jnp.asarray(images[:, None])
  return lambda: np.asarray(run(params, x).block_until_ready())[:, 0]


def _timm(folder: pathlib.Path, images: np.ndarray) -> Callable[[], Any]:
  import timm.models.eva
  import torch

  from mico_jax.interop.files import safetensors_file

  about = json.loads((folder / "config.json").read_text())
  created = timm.create_model(about["architecture"], **about["model_args"])
  model = cast(timm.models.eva.Eva, created)
  model.eval()
  flat = safetensors_file.read(folder / "model.safetensors")
  state = {name: torch.from_numpy(value) for name, value in flat.items()}
  model.load_state_dict(state)
  x = torch.from_numpy(images).permute(0, 3, 1, 2).contiguous()

  def run() -> Any:
    with torch.inference_mode():
      return model.forward_features(x).numpy()

  return run


def _modeling(folder: pathlib.Path, images: np.ndarray) -> Callable[[], Any]:
  import torch

  from mico_jax.interop.exporting import torch_folder as exporter

  model = exporter.load_module(folder).MiCo.from_folder(folder)
  x = torch.from_numpy(images[:, None])

  def run() -> Any:
    with torch.inference_mode():
      return model.encode("image", x).numpy()[:, 0]

  return run


MAKERS = {"jax": _jax, "timm": _timm, "modeling": _modeling}


def work(side: str, folder: pathlib.Path, batch: int, threads: int) -> None:
  """Runs a worker: prints the seconds of a forward pass per input line."""
  os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
  if side != "jax":
    import torch

    torch.set_num_threads(threads)
  rng = np.random.default_rng(1)
  images = rng.standard_normal((batch, 224, 224, 3)).astype(np.float32)
  run = MAKERS[side](folder / side, images)
  np.save(folder / f"{side}-{batch}-{threads}.npy", run())
  run()
  print("ready", flush=True)
  for _ in sys.stdin:
    start = time.perf_counter()
    run()
    print(time.perf_counter() - start, flush=True)


class Worker:
  """A process that runs one side with a number of threads."""

  def __init__(self, side: str, folder: pathlib.Path, batch: int, threads: int):
    arguments = ["--worker", side, "--folder", str(folder)]
    arguments += ["--batch", str(batch), "--threads", str(threads)]
    self.name = f"{side}-{batch}-{threads}"
    self.threads = threads
    self._process = subprocess.Popen(
      [sys.executable, "-m", "mico_jax.benchmarks.cpu_vs_torch", *arguments],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      text=True,
      env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    if self._answer() != "ready":
      raise RuntimeError(f"{self.name} did not start.")

  def _answer(self) -> str:
    assert self._process.stdout is not None
    return self._process.stdout.readline().strip()

  def time(self) -> float:
    """Seconds of one forward pass."""
    time.sleep(PAUSE)
    assert self._process.stdin is not None
    self._process.stdin.write("run\n")
    self._process.stdin.flush()
    return float(self._answer())

  def close(self) -> None:
    """Ends the process."""
    assert self._process.stdin is not None
    self._process.stdin.close()
    self._process.wait()


# ------------------------------------------------------------------ measurement
def compare(
  folder: pathlib.Path, batch: int, threads: Sequence[int], rounds: int
) -> dict[str, Any]:
  """Times the sides in turns, each at its best number of threads."""
  with contextlib.ExitStack() as stack:
    chosen: dict[str, Worker] = {}
    for side in SIDES:
      workers = [Worker(side, folder, batch, n) for n in threads]
      for worker in workers:
        stack.callback(worker.close)
      chosen[side] = min(
        workers, key=lambda w: statistics.median(w.time() for _ in range(3))
      )
    outputs = {
      side: np.load(folder / f"{worker.name}.npy")
      for side, worker in chosen.items()
    }
    turns = [
      {side: worker.time() for side, worker in chosen.items()}
      for _ in range(rounds)
    ]
  results: dict[str, Any] = {}
  for side in SIDES:
    times = [turn[side] for turn in turns]
    results[side] = {
      "threads": chosen[side].threads,
      "median_ms": 1e3 * statistics.median(times),
    }
    if side != "jax":
      ratios = [turn["jax"] / turn[side] for turn in turns]
      results[side]["jax_over_it"] = statistics.median(ratios)
      gap = np.abs(outputs[side] - outputs["jax"]).max()
      results[side]["largest_difference"] = float(gap)
  return results


def main(argv: Sequence[str] | None = None) -> int:
  """Prints one JSON object per shape and batch."""
  parser = argparse.ArgumentParser(description=main.__doc__)
  parser.add_argument("--shapes", nargs="+", default=list(SHAPES))
  parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
  parser.add_argument("--rounds", type=int, default=15)
  parser.add_argument(
    "--thread-counts",
    nargs="+",
    type=int,
    default=sorted({1, len(os.sched_getaffinity(0))}),
  )
  for name in ("--worker", "--folder", "--batch", "--threads"):
    parser.add_argument(name, help=argparse.SUPPRESS)
  arguments = parser.parse_args(argv)
  if arguments.worker:
    place = pathlib.Path(arguments.folder)
    work(arguments.worker, place, int(arguments.batch), int(arguments.threads))
    return 0
  for shape in arguments.shapes:
    with tempfile.TemporaryDirectory() as scratch:
      folder = pathlib.Path(scratch)
      write_weights(folder, shape)
      for batch in arguments.batches:
        results = compare(
          folder, batch, arguments.thread_counts, arguments.rounds
        )
        print(
          json.dumps({"shape": shape, "batch": batch, **results}), flush=True
        )
  return 0


if __name__ == "__main__":
  sys.exit(main())
