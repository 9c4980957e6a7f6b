"""Peak memory and time of an import, and of loading it onto devices.

    python -m mico_jax.benchmarks.import_memory --model mico_g14

writes a released folder of random weights, imports it in a process of its own,
and loads the import onto eight CPU devices in another. The yardstick is what a
plain copy of the file with SHA-256 takes. `--form pt` needs torch.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from mico_jax.checkpoint import manifest
from mico_jax.config import ModelConfig
from mico_jax.interop import mico, safetensors
from mico_jax.interop.entries import to_theirs
from mico_jax.interop.tensors import Tensor, Tensors
from mico_jax.models import PRESETS, build

KINDS = {
  (1408, 40): "evaclip01_giant",
  (768, 12): "evaclip02_base",
}
LOAD = """
import jax, json, resource, sys
from mico_jax.checkpoint import restore
from mico_jax.config import ParallelConfig
from mico_jax.models import build
from mico_jax.parallel import mesh, sharding

peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
devices = mesh.make_mesh(ParallelConfig(mesh={"data": -1}))
config = restore.parse_config(
  open(sys.argv[1] + "/config/config.json", "rb").read(), sys.argv[1]
)
rules = tuple(
  (name, "data" if name == "embed" else None)
  for name, _ in __import__("mico_jax.axes").axes.DDP_RULES
)
places = sharding.param_shardings(
  devices, build(config.model).logical_axes(), rules
)
before = peak()
params, _ = restore.stream_params(sys.argv[1], places)
held = sum(
  s.data.nbytes for x in jax.tree.leaves(params) for s in x.addressable_shards
)
print(json.dumps({"before": before, "peak": peak(), "device_bytes": held}))
"""


def random_tensors(config: ModelConfig, seed: int = 0) -> Tensors:
  """Tensors of a released file, drawn when they are read."""
  shapes = manifest.flatten(build(config).abstract_params())
  found: Tensors = {}

  def add(name: str, shape: tuple[int, ...]) -> None:
    key = [seed, len(found)]

    def load() -> np.ndarray:
      rng = np.random.default_rng(key)
      return rng.standard_normal(shape, np.float32) * np.float32(0.02)

    found[name] = Tensor(name, shape, np.dtype(np.float32), load)

  patch = config.vision.patch_size
  for entry in mico.entries(config):
    shape = shapes["/".join(entry.path)].shape
    one = tuple(shape[1:] if entry.layers else shape)
    if len(entry.names) > 1:
      one = (*one[:-1], one[-1] // len(entry.names))
    like = np.broadcast_to(np.zeros((), np.int8), one)
    theirs = to_theirs(like, entry, patch_size=patch).shape
    for i in range(max(entry.layers, 1)):
      for name in entry.names:
        add(name.format(i=i), theirs)
  for copy, original in mico.TIED.items():
    found[copy] = dataclasses.replace(found[original], name=copy)
  return found


def write_folder(folder: pathlib.Path, config: ModelConfig, form: str) -> Any:
  """A released folder of random weights; returns its file."""
  (folder / "ckpt").mkdir(parents=True)
  (folder / "log").mkdir()
  vision = config.vision
  settings = {
    "vision_encoder_type": KINDS.get((vision.width, vision.depth), ""),
    "vision_resolution": vision.image_size,
    "contra_dim": config.embed_dim,
    "tiny_vision": {
      "width": vision.width,
      "head_width": vision.width // vision.num_heads,
    },
  }
  text = json.dumps({"model_cfg": settings})
  (folder / "log" / "hps.json").write_text(text)
  special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
  pieces = [*special, *(f"p{i}" for i in range(config.text.vocab_size - 5))]
  (folder / "vocab.txt").write_text("\n".join(pieces) + "\n")
  file = folder / "ckpt" / f"model_step_1.{form}"
  tensors = random_tensors(config)
  if form == "safetensors":
    safetensors.write(file, tensors)
  else:
    _write_torch(file, tensors)
  return file


def _write_torch(file: pathlib.Path, tensors: Tensors) -> None:
  code = (
    "import sys, torch\n"
    "from mico_jax.interop.tensors import open_tensors\n"
    "found = open_tensors(sys.argv[1])\n"
    "state = {n: torch.from_numpy(t.load()) for n, t in found.items()}\n"
    "torch.save(state, sys.argv[2])\n"
  )
  plain = file.with_suffix(".safetensors")
  safetensors.write(plain, tensors)
  subprocess.run([sys.executable, "-c", code, plain, file], check=True)
  plain.unlink()


def measured(command: Sequence[str], **environment: str) -> dict[str, Any]:
  """Runs a process; its wall time, peak memory and output."""
  start = time.perf_counter()
  with subprocess.Popen(
    command,
    stdout=subprocess.PIPE,
    text=True,
    env={**os.environ, "JAX_PLATFORMS": "cpu", **environment},
  ) as process:
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
  if process.returncode:
    raise RuntimeError(f"{command[:6]} failed with {process.returncode}.")
  return {
    "seconds": time.perf_counter() - start,
    "peak_bytes": usage.ru_maxrss * 1024,
    "output": output,
  }


def copy_and_hash(file: pathlib.Path, target: pathlib.Path) -> float:
  """Seconds that a plain copy of a file and SHA-256 of it take."""
  start = time.perf_counter()
  shutil.copyfile(file, target)
  with open(target, "rb") as copied:
    hashlib.file_digest(copied, "sha256")
  seconds = time.perf_counter() - start
  target.unlink()
  return seconds


def run(model: str, form: str, folder: pathlib.Path) -> dict[str, Any]:
  """All measurements of one model."""
  config = dataclasses.replace(
    PRESETS[model],
    normals_as="depth",
    heads=(*"tsvad", "va", "id", "vs", "vas"),
    frame_table={"video": 8, "audio": 4, "depth": 1},
  )
  file = write_folder(folder / "released", config, form)
  plain = copy_and_hash(file, folder / "copy")
  out = str(folder / "imported")
  command = [sys.executable, "-m", "mico_jax", "import", "--from", "mico"]
  command += [str(folder / "released"), "--out", out, "--self-check", "off"]
  imported = measured(command)
  flags = "--xla_force_host_platform_device_count=8"
  loaded = measured([sys.executable, "-c", LOAD, out], XLA_FLAGS=flags)
  memory = json.loads(loaded.pop("output"))
  entries = manifest.read(out)["items"]["params"].values()
  largest = max(4 * int(np.prod(e["shape"])) for e in entries)
  extra = memory["peak"] - memory["before"] - memory["device_bytes"]
  return {
    "model": model,
    "form": form,
    "file_bytes": file.stat().st_size,
    "copy_and_hash_seconds": plain,
    "import_seconds": imported["seconds"],
    "import_times_copy": imported["seconds"] / plain,
    "import_peak_bytes": imported["peak_bytes"],
    "load_seconds": loaded["seconds"],
    "load_peak_bytes": memory["peak"],
    "load_device_bytes": memory["device_bytes"],
    "load_beyond_devices_bytes": extra,
    "largest_array_bytes": largest,
  }


def main(argv: Sequence[str] | None = None) -> int:
  """Prints the measurements as JSON."""
  parser = argparse.ArgumentParser(description=main.__doc__)
  parser.add_argument("--model", default="mico_g14", choices=tuple(PRESETS))
  parser.add_argument("--form", default="pt", choices=("pt", "safetensors"))
  parser.add_argument(
    "--folder", type=pathlib.Path, help="for the files (default: temporary)"
  )
  arguments = parser.parse_args(argv)
  with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
    found = run(arguments.model, arguments.form, pathlib.Path(scratch))
  print(json.dumps(found, indent=1))
  return 0


if __name__ == "__main__":
  sys.exit(main())
