"""A model as StableHLO: functions that need JAX alone, on CPU, GPU and TPU.

Each function is one file of `jax.export` with a symbolic batch size; the
weights are arguments, stored in `model.safetensors`, so a file has kilobytes.
Inputs are preprocessed arrays, whose shapes `functions.json` states: frames of
the encoder's size, log-mel slices, token ids.

    weights = safetensors.numpy.load_file("model.safetensors")
    embed = jax.export.deserialize(open("embed_image.stablehlo", "rb").read())
    z = embed.call(weights, frames)      # [B, E], unit norm
"""

from __future__ import annotations

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np

from mico_jax.checkpoint import selfcheck
from mico_jax.checkpoint.manifest import flatten, unflatten
from mico_jax.config import Config
from mico_jax.inference.prepare import Preparer, trained_contexts
from mico_jax.inference.self_check import VARIANTS, on_cpu
from mico_jax.interop.exporting import export
from mico_jax.interop.exporting.export import ExportReport, OpenedCheckpoint
from mico_jax.interop.files import safetensors_writer
from mico_jax.interop.files.tensors import item
from mico_jax.modalities import MODALITIES, by_letter
from mico_jax.models import MiCo, build, forward

PLATFORMS = ("cpu", "cuda", "tpu")
SUFFIX = ".stablehlo"


@dataclasses.dataclass(frozen=True)
class Function:
  """One function to export.

  Attributes:
    call: (weights by path, *arrays) -> array.
    inputs: name -> shape without the batch axis, and dtype.
    returns: description of the result.
  """

  call: Callable[..., Any]
  inputs: Mapping[str, jax.ShapeDtypeStruct]
  returns: str


def _spec(preparer: Preparer, key: str) -> jax.ShapeDtypeStruct:
  """Shape and dtype of one prepared input."""
  if MODALITIES[key].kind == "interface":
    return jax.ShapeDtypeStruct((preparer.max_length(key),), np.dtype("int32"))
  geometry = preparer.geometry(key)
  sample = MODALITIES[key].example(geometry, 0)
  array = preparer.mode(key).host(sample, geometry, None)
  return jax.ShapeDtypeStruct(array.shape, array.dtype)


def functions(config: Config, tokenizer: Any) -> dict[str, Function]:
  """All functions of a model by name.

  `embed_<modality>`, `embed_<group>` for joint heads and `match_<letters>` for
  each modality and each context of training. They compute in float32, as the
  self-check does.
  """
  model = build(
    dataclasses.replace(
      config.model,
      dtype="float32",
      attention="xla",
      remat="none",
      scan=True,
      matmul_precision="highest",
    )
  )
  preparer = Preparer(config, tokenizer)
  specs = {key: _spec(preparer, key) for key in preparer.keys}
  table: dict[str, Function] = {}
  known = {MODALITIES[key].letter: key for key in preparer.keys}
  for letter, key in known.items():
    table[f"embed_{key}"] = _embed(model, preparer, letter, specs)
  for head in config.model.heads:
    if len(head) > 1 and set(head) <= set(known):
      table[f"embed_{head}"] = _embed(model, preparer, head, specs)
  singles = [letter for letter in known if letter != "t"]
  for letters in dict.fromkeys([*singles, *trained_contexts(config)]):
    if letters and set(letters) <= set(known) and "t" in known:
      table[f"match_{letters}"] = _match(model, preparer, letters, specs)
  return table


def _encode(
  model: MiCo, preparer: Preparer, params: Any, inputs: Mapping[str, Any]
) -> forward.Encoded:
  pad = model.config.text.pad_id
  return forward.encode_inputs(model, preparer.config, params, inputs, pad=pad)


def _embed(
  model: MiCo, preparer: Preparer, letters: str, specs: Mapping[str, Any]
) -> Function:
  keys = [by_letter(letter).key for letter in letters]

  def call(weights: Mapping[str, Any], *arrays: Any) -> Any:
    params = unflatten(weights)
    inputs = dict(zip(keys, arrays, strict=True))
    encoded = _encode(model, preparer, params, inputs)
    return forward.embed(model, params, encoded, (letters,))[letters]

  return Function(
    call, {key: specs[key] for key in keys}, "unit-norm embeddings [B, E]"
  )


def _match(
  model: MiCo, preparer: Preparer, letters: str, specs: Mapping[str, Any]
) -> Function:
  keys = [by_letter(letter).key for letter in letters]

  def call(weights: Mapping[str, Any], ids: Any, *arrays: Any) -> Any:
    params = unflatten(weights)
    inputs = dict(zip(keys, arrays, strict=True))
    encoded = _encode(model, preparer, params, inputs)
    context = forward.project(model, params, encoded, letters)
    return forward.match_probability(model, params, ids, context)

  inputs = {"text": specs["text"], **{key: specs[key] for key in keys}}
  return Function(call, inputs, "probability that they belong together [B]")


def lower(function: Function, params: Mapping[str, Any]) -> jax.export.Exported:
  """Exports a function for every platform, with a symbolic batch size.

  Args:
    function: to export.
    params: nested dict; only shapes and dtypes are used.
  """
  (batch,) = jax.export.symbolic_shape("b")
  weights = {
    path: jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype)
    for path, leaf in flatten(params).items()
  }
  arrays = [
    jax.ShapeDtypeStruct((batch, *spec.shape), spec.dtype)
    for spec in function.inputs.values()
  ]
  traced = jax.export.export(jax.jit(function.call), platforms=PLATFORMS)
  return traced(weights, *arrays)


def write(
  source: OpenedCheckpoint,
  folder: pathlib.Path,
  report: ExportReport,
  options: export.Options = export.DEFAULTS,
) -> None:
  """Writes the functions, their description and the weights.

  Args:
    source: the checkpoint.
    folder: an existing folder.
    report: gets the files and tensors.
    options: of the export.
  """
  described: dict[str, Any] = {}
  for name, function in functions(source.config, source.tokenizer).items():
    path = folder / (name + SUFFIX)
    path.write_bytes(lower(function, source.params).serialize())
    described[name] = {
      "file": path.name,
      "arguments": ["weights", *function.inputs],
      "inputs": {
        key: {"shape": ["B", *spec.shape], "dtype": spec.dtype.name}
        for key, spec in function.inputs.items()
      },
      "returns": function.returns,
    }
    report.add_file("functions", path, path.name)
  items = (
    item(path, np.asarray(leaf))
    for path, leaf in flatten(source.params).items()
  )
  written = safetensors_writer.write(
    folder, items, max_shard_size=options.max_shard_size
  )
  report.add("weights", written)
  several = len(written.files) > 1
  about = {
    "platforms": PLATFORMS,
    "weights": safetensors_writer.INDEX
    if several
    else safetensors_writer.WEIGHTS,
    "functions": described,
    "preprocessing": Preparer(source.config, source.tokenizer).describe(),
  }
  export.write_json(folder / "functions.json", about)
  export.write_files(folder / "tokenizer", source.tokenizer.files())


def compare(source: OpenedCheckpoint, folder: pathlib.Path) -> dict[str, float]:
  """Calls the written embedding functions on the self-check inputs.

  Returns:
    Largest absolute difference of each embedding.
  """
  stored = source.self_check()
  inputs = selfcheck.inputs(stored)
  preparer = Preparer(source.config, source.tokenizer)
  flat = flatten(source.params)
  weights = {path: jnp.asarray(leaf) for path, leaf in flat.items()}
  gaps = {}
  with on_cpu(), jax.default_matmul_precision("highest"):
    for key in preparer.keys:
      rows = [
        (f"embed/{key}/{variant}", inputs[f"{key}/{variant}"])
        for variant in VARIANTS
        if f"{key}/{variant}" in inputs
      ]
      if key == "text":
        rows = [("embed/text", selfcheck.array_text(inputs["text"]))]
      if not rows:
        continue
      data = (folder / f"embed_{key}{SUFFIX}").read_bytes()
      array = np.stack([preparer.prepare_one(key, raw) for _, raw in rows])
      got = jax.export.deserialize(bytearray(data)).call(weights, array)
      for (name, _), row in zip(rows, np.asarray(got), strict=True):
        want = stored[selfcheck.OUTPUT + name]
        gaps[name] = float(np.abs(row - want).max())
  return gaps
