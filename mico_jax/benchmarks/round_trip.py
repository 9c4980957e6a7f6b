"""Import and export of a full-size official folder: bytes, memory, time.

    python -m mico_jax.benchmarks.round_trip --preset mico_g14 --dir DIR

writes an official folder of random weights (5.2 GB for ViT-g with EVA-CLIP's
text tower), imports it, exports it as a `.pt` and as safetensors, and loads the
import onto eight CPU devices, each in a separate process. The name, dtype and
SHA-256 of every tensor are compared before and after. Times are compared with a
plain copy of the file and SHA-256 of the copy.
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
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mico_jax.checkpoint import manifest
from mico_jax.config import ModelConfig
from mico_jax.interop.exporting.official_folder import encoder_type
from mico_jax.interop.files import (
  safetensors_file,
  safetensors_writer,
  torch_writer,
)
from mico_jax.interop.files.tensors import Item, Tensor, Tensors
from mico_jax.interop.names import mico
from mico_jax.interop.names.weight_map import to_theirs
from mico_jax.models import PRESETS, build

DEVICES = 8  # onto which the import is loaded
LOAD = """
import jax, json, resource, sys
from mico_jax import axes
from mico_jax.checkpoint import restore
from mico_jax.config import ParallelConfig
from mico_jax.models import build
from mico_jax.parallel import mesh, sharding

peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
now = lambda: int(open("/proc/self/statm").read().split()[1]) * 4096
devices = mesh.make_mesh(ParallelConfig(mesh={"data": -1}))
text = open(sys.argv[1] + "/config/config.json", "rb").read()
config = restore.parse_config(text, sys.argv[1])
rules = tuple(
  (name, "data" if name == axes.EMBED else None) for name, _ in axes.DDP_RULES
)
places = sharding.param_shardings(
  devices, build(config.model).logical_axes(), rules
)
before = now()
params, _ = restore.stream_params(sys.argv[1], places)
held = sum(
  s.data.nbytes for x in jax.tree.leaves(params) for s in x.addressable_shards
)
print(json.dumps({"before": before, "peak": peak(), "device_bytes": held}))
"""


# --------------------------------------------------------------- random weights
def _text_tower(width: int = 768, layers: int = 12) -> dict[str, Any]:
  """Tensor shapes of the text tower of EVA-CLIP's g/14, by name."""
  top = "vision_encoder.text."
  shapes: dict[str, Any] = {
    f"{top}positional_embedding": (77, width),
    f"{top}text_projection": (width, 1024),
    f"{top}token_embedding.weight": (49408, width),
  }
  for i in range(layers):
    block = f"{top}transformer.resblocks.{i}."
    for name, rows, columns in (
      ("attn.in_proj_", 3 * width, width),
      ("attn.out_proj.", width, width),
      ("mlp.c_fc.", 4 * width, width),
      ("mlp.c_proj.", width, 4 * width),
    ):
      shapes[f"{block}{name}weight"] = (rows, columns)
      shapes[f"{block}{name}bias"] = (rows,)
    for norm in ("ln_1.", "ln_2."):
      shapes[f"{block}{norm}weight"] = shapes[f"{block}{norm}bias"] = (width,)
  shapes[f"{top}ln_final.weight"] = shapes[f"{top}ln_final.bias"] = (width,)
  return shapes


def _shapes(config: ModelConfig) -> dict[str, Any]:
  """Shapes of the tensors of an official file, by name."""
  ours = manifest.flatten(build(config).abstract_params())
  shapes: dict[str, Any] = {}
  for entry in mico.entries(config):
    shape = ours["/".join(entry.path)].shape
    one = tuple(shape[1:] if entry.layers else shape)
    if len(entry.names) > 1:
      one = (*one[:-1], one[-1] // len(entry.names))
    like = np.broadcast_to(np.zeros((), np.int8), one)
    theirs = to_theirs(like, entry, patch_size=config.vision.patch_size).shape
    for i in range(max(entry.layers, 1)):
      shapes |= {name.format(i=i): theirs for name in entry.names}
  return shapes


def random_tensors(config: ModelConfig, seed: int = 0) -> Tensors:
  """Random tensors of an official file, generated when they are read."""
  shapes = _shapes(config)
  if config.vision.width == 1408:
    shapes |= _text_tower()
  tensors: Tensors = {}
  for i, (name, shape) in enumerate(shapes.items()):

    def load(shape: Any = shape, i: int = i) -> np.ndarray:
      rng = np.random.default_rng([seed, i])
      drawn = rng.standard_normal(shape, np.float32) * np.float32(0.02)
      return np.asarray(drawn)  # NumPy turns shape () into a scalar

    tensors[name] = Tensor(name, shape, np.dtype(np.float32), load)
  for name, value in mico.buffers(config).items():
    tensors[name] = Tensor(name, value.shape, value.dtype, lambda v=value: v)
  for copy, original in mico.TIED.items():
    tensors[copy] = dataclasses.replace(tensors[original], name=copy)
  return tensors


def write_folder(
  folder: pathlib.Path, config: ModelConfig, form: str, seed: int
) -> tuple[pathlib.Path, dict[str, Any]]:
  """Writes an official folder of random weights.

  Args:
    folder: to write.
    config: of the model.
    form: "pt" or "safetensors".
    seed: of the weights.

  Returns:
    Its weights file, and (dtype, shape, SHA-256) of each tensor.
  """
  (folder / "ckpt").mkdir(parents=True)
  (folder / "log").mkdir()
  vision, text = config.vision, config.text
  kind = encoder_type(vision)
  settings: dict[str, Any] = {
    "vision_encoder_type": kind,
    "vision_resolution": vision.image_size,
    "contra_dim": config.embed_dim,
  }
  if not kind:
    head = vision.width // vision.num_heads
    settings["tiny_vision"] = {"width": vision.width, "head_width": head}
    settings["tiny_bert"] = {"num_attention_heads": text.num_heads}
  (folder / "log" / "hps.json").write_text(json.dumps({"model_cfg": settings}))
  special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
  pieces = [*special, *(f"p{i}" for i in range(text.vocab_size - 5))]
  (folder / "vocab.txt").write_text("\n".join(pieces) + "\n")
  items = [
    Item(name, one.shape, one.dtype, one.load)
    for name, one in random_tensors(config, seed).items()
  ]
  if form == "pt":
    file = folder / "ckpt" / "model_step_1.pt"
    written = torch_writer.write(file, items, ties=mico.TIED)
  else:
    file = folder / "ckpt" / "model_step_1.safetensors"
    written = safetensors_writer.write(
      folder / "ckpt", items, max_shard_size=2**62
    )
    (folder / "ckpt" / safetensors_writer.WEIGHTS).rename(file)
  return file, hashes(written.tensors)


def hashes(records: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """Name -> dtype, shape and SHA-256 of the tensors of a report."""
  return {
    one["name"]: (one["dtype"], list(one["shape"]), one["sha256"])
    for one in records
  }


# ------------------------------------------------------------------ measurement
def measured(command: Sequence[str], **environment: str) -> dict[str, Any]:
  """Runs a command; returns its wall and CPU time, peak memory and output.

  Raises:
    RuntimeError: if it fails.
  """
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
    "cpu_seconds": usage.ru_utime + usage.ru_stime,
    "peak_bytes": usage.ru_maxrss * 1024,
    "output": output,
  }


def copy_and_hash(
  file: pathlib.Path, target: pathlib.Path
) -> tuple[float, float]:
  """Wall and CPU seconds of a plain copy of a file and its SHA-256."""
  start, cpu = time.perf_counter(), time.process_time()
  shutil.copyfile(file, target)
  with open(target, "rb") as copied:
    hashlib.file_digest(copied, "sha256")
  seconds = time.perf_counter() - start, time.process_time() - cpu
  target.unlink()
  return seconds


def file_hashes(file: pathlib.Path) -> dict[str, Any]:
  """Name -> dtype, shape and SHA-256 of tensors of a safetensors file."""
  records = {}
  for name, tensor in safetensors_file.open_tensors(file).items():
    data = np.ascontiguousarray(tensor.load()).reshape(-1).view(np.uint8)
    digest = hashlib.sha256(data.data).hexdigest()
    records[name] = (tensor.dtype.name, list(tensor.shape), digest)
  return records


def run(
  preset: str, form: str, folder: pathlib.Path, seed: int = 0
) -> dict[str, Any]:
  """Runs all measurements of one model in an empty folder."""
  config = dataclasses.replace(
    PRESETS[preset],
    normals_as="depth",
    heads=(*"tsvad", "va", "id", "vs", "vas"),
    frame_table={"video": 8, "audio": 4, "depth": 1},
  )
  file, wanted = write_folder(folder / "official", config, form, seed)
  plain_seconds, plain_cpu = copy_and_hash(file, folder / "copy")
  results: dict[str, Any] = {
    "preset": preset,
    "form": form,
    "seed": seed,
    "tensors": len(wanted),
    "file_bytes": file.stat().st_size,
    "copy_and_hash_seconds": plain_seconds,
    "copy_and_hash_cpu_seconds": plain_cpu,
  }
  command = [sys.executable, "-m", "mico_jax"]
  out, source = folder / "imported", folder / "official"
  plain = folder / "safetensors"
  export = ["export", "--checkpoint", str(out), "--compare", "off", "--to"]
  steps = {
    "import": ["import", "--from", "mico", str(source), "--out", str(out)],
    "export_pt": [*export, "mico", "--out", str(folder / "pt")],
    "export_safetensors": [*export, "safetensors", "--out", str(plain)],
  }
  steps["import"] += ["--self-check", "off"]
  for name, arguments in steps.items():
    if name == "export_pt":
      shutil.rmtree(source)
    result = measured([*command, *arguments])
    results[f"{name}_seconds"] = result["seconds"]
    times = result["seconds"] / results["copy_and_hash_seconds"]
    results[f"{name}_times_copy_and_hash"] = times
    results[f"{name}_cpu_seconds"] = result["cpu_seconds"]
    results[f"{name}_peak_bytes"] = result["peak_bytes"]
  report = json.loads((out / "import_report.json").read_text())
  results["import_identical"] = hashes(report["tensors"]) == wanted
  report = json.loads((folder / "pt" / "export_report.json").read_text())
  results["export_pt_identical"] = hashes(report["tensors"]) == wanted
  back: dict[str, Any] = {}
  for path in sorted(plain.glob("*.safetensors")):
    back |= file_hashes(path)
  results["export_safetensors_identical"] = back == wanted
  return {**results, **load(out)}


def load(out: pathlib.Path) -> dict[str, Any]:
  """Time and host memory of loading an import onto a mesh."""
  flags = f"--xla_force_host_platform_device_count={DEVICES}"
  loaded = measured([sys.executable, "-c", LOAD, str(out)], XLA_FLAGS=flags)
  memory = json.loads(loaded.pop("output"))
  entries = manifest.read(out)["items"]["params"].values()
  largest = max(4 * int(np.prod(e["shape"])) for e in entries)
  beyond = memory["peak"] - memory["before"] - memory["device_bytes"]
  return {
    "load_seconds": loaded["seconds"],
    "load_peak_bytes": memory["peak"],
    "load_device_bytes": memory["device_bytes"],
    "load_beyond_devices_bytes": beyond,
    "largest_array_bytes": largest,
    "load_beyond_devices_arrays": beyond / largest,
  }


def main(argv: Sequence[str] | None = None) -> int:
  """Prints the measurements as JSON; 1 if any byte differs."""
  parser = argparse.ArgumentParser(description=main.__doc__)
  parser.add_argument("--preset", default="mico_g14", choices=tuple(PRESETS))
  parser.add_argument("--form", default="pt", choices=("pt", "safetensors"))
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument(
    "--dir", type=pathlib.Path, help="for the files (default: temporary)"
  )
  arguments = parser.parse_args(argv)
  with tempfile.TemporaryDirectory(dir=arguments.dir) as scratch:
    results = run(
      arguments.preset, arguments.form, pathlib.Path(scratch), arguments.seed
    )
  print(json.dumps(results, indent=1))
  same = [
    value for name, value in results.items() if name.endswith("identical")
  ]
  return 0 if all(same) else 1


if __name__ == "__main__":
  sys.exit(main())
